"""The base model that ships with cotjax, stage 4 of 4: as stage 3, with a look-up drill beside each episode.

Command   cotjax train --config configs/base_fourth.py          (stop it at step 400: its schedule is that of 1,000)
          cotjax export --run runs/base-fourth --arm base --step 400 --out cotjax/assets/base
Hardware  2 CPU cores, shared; 6 minutes for 400 steps
Result    read at step 300 on 90 expert episodes: given the expert's thought, 0.93 or more of the actions of each kind. Not yet: finding
          the wanted thing among those in view (0.14 of the thoughts that should name it do), which keeps trained models from winning.
"""

import base_third


def get_config():
    config = base_third.get_config()
    config.out = "runs/base-fourth"
    config.collect.drills = 5000
    config.data.direct_share = 0.3
    config.model.base = "runs/base-3"
    config.train.steps = 1000
    return config
