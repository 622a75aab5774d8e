"""The base model that ships with cotjax, fourth stage: play and drills."""

import base_third


def get_config():
    config = base_third.get_config()
    config.out = "runs/base-fourth"
    config.data.direct_share = 0.3
    config.model.base = "runs/base-third-400"
    config.train.steps = 1000
    return config
