"""The base model that ships with cotjax, stage 2 of 4: longer play, trained as a language model on every token.

Command   cotjax train --config configs/base_second.py          (stop it at step 500: its schedule is that of 800)
          cotjax export --run runs/base-second --arm base --step 500 --out runs/base-2
Hardware  2 CPU cores, shared; 8 minutes for 500 steps
Result    observation tokens 0.27 nats
"""

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
    config.model.base = "runs/base-1"
    config.train.steps = 800
    config.train.save_every = 100
    config.train.warmup = 30
    return config
