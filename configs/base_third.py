"""The base model that ships with cotjax, third stage."""

import base_second


def get_config():
    config = base_second.get_config()
    config.out = "runs/base-third"
    config.seed = 2  # other episodes of the same games
    config.data.direct_share = 0.4
    config.model.base = "runs/base-second-500"
    config.train.steps = 900
    config.train.vector_rate = 10.0
    return config
