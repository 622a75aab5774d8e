"""The base model that ships with cotjax, second stage: goes on from what configs/base.py left, with less random play."""

import base


def get_config():
    config = base.get_config()
    config.out = "runs/base-second"
    config.seed = 1  # other episodes of the same games
    config.collect.skill = (0.1, 0.6)
    config.collect.news = 0.9
    config.collect.max_steps = 24
    config.collect.episodes_per_game = 2
    config.data.direct_share = 0.5
    config.masking.supervised = ("PROMPT", "OBSERVATION", "REASONING", "ACTION_OPEN", "ACTION", "ACTION_CLOSE", "END")
    config.model.base = "runs/base-start"
    config.train.steps = 800
    config.train.save_every = 100
    config.train.learning_rate = 2e-3
    config.train.warmup = 30
    return config
