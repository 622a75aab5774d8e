"""The base model that ships with cotjax, stage 3 of 4: as stage 2, with norm scales that move ten times as fast.

Command   cotjax train --config configs/base_third.py           (stop it at step 400: its schedule is that of 900)
          cotjax export --run runs/base-third --arm base --step 400 --out runs/base-3
Hardware  2 CPU cores, shared; 7 minutes for 400 steps
"""

import base_second


def get_config():
    config = base_second.get_config()
    config.out = "runs/base-third"
    config.seed = 2  # other episodes of the same games
    config.data.direct_share = 0.4
    config.model.base = "runs/base-2"
    config.train.steps = 900
    config.train.vector_rate = 10.0
    return config
