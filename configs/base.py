"""The base model that ships with cotjax (checkpoint 0 of every study that does not bring its own)."""

from cotjax.config import default_config


def get_config():
    config = default_config()
    config.title = "The base model"
    config.out = "runs/base"
    config.games.train = 400
    config.games.in_domain = 0
    config.games.ood = 0
    config.games.seed = 1000  # other games than any study's
    config.task_types.in_domain = config.task_types.collect  # the base has seen every task type
    config.task_types.ood = ()
    config.collect.agent = "explorer"
    config.data.direct_share = 0.4
    config.data.max_length = 1024
    config.model.base = "random"
    config.train.row_length = 1024
    config.train.steps = 3000
    config.train.save_every = 500
    config.train.learning_rate = 2e-3
    config.train.warmup = 100
    config.masking.supervised = ("PROMPT", "OBSERVATION", "REASONING", "ACTION_OPEN", "ACTION", "ACTION_CLOSE", "END")
    config.arms = {"base": {"label": "base", "fraction": 0.0}}
    return config
