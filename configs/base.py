"""The base model that ships with cotjax (checkpoint 0 of every study that does not bring its own)."""

from cotjax.config import default_config


def get_config():
    config = default_config()
    config.title = "The base model"
    config.out = "runs/base"
    config.games.train = 200
    config.games.in_domain = 0
    config.games.ood = 0
    config.games.seed = 1000  # other games than any study's
    config.task_types.in_domain = config.task_types.collect  # the base has seen every task type
    config.task_types.ood = ()
    config.collect.agent = "explorer"
    config.collect.skill = (0.05, 0.4)
    config.collect.max_steps = 16
    config.collect.episodes_per_game = 3
    config.data.direct_share = 0.35
    config.model.base = "random"
    config.train.steps = 1200
    config.train.save_every = 200
    config.train.learning_rate = 2e-3
    config.train.warmup = 100
    config.arms = {"base": {"label": "base", "fraction": 0.0}}
    return config
