"""The demo's model on real ALFWorld games: trained on expert play, evaluated on valid_seen.

Command   ALFWORLD_DATA=/path/to/alfworld cotjax study --config configs/alfworld_valid_seen.py
Data      ALFWorld's json_2.1.1/train and json_2.1.1/valid_seen, in the 0.4 command grammar
Hardware  2 CPU cores, shared with other work; 13 minutes
Result    standard SFT at step 160, all 140 valid_seen games, 30 steps an episode. The 91 in-domain
          games: success by CoT actions 0.80 [0.71, 0.87], by prompt actions 0.07 [0.03, 0.14], gap
          +0.74 [+0.62, +0.82], from 0.16 and 0.00 at the base; D1 0.87 and 0.31, from 0.53 and
          0.21. The 49 OOD games: 0.02 [0.00, 0.11] and 0.00 [0.00, 0.07].
"""

from cotjax.config import default_config


def get_config():
    config = default_config()
    config.title = "Where the gains of CoT training land: real ALFWorld, valid_seen"
    config.out = "runs/alfworld"
    config.cpu_devices = 2
    config.games.source = "alfworld"
    config.games.train = 600
    config.games.eval_split = "valid_seen"
    config.games.in_domain = 91  # all of valid_seen
    config.games.ood = 49
    config.task_types.collect = config.task_types.in_domain
    config.collect.slips = 0.3
    config.evaluate.max_new_tokens = 64
    config.evaluate.slots = 48
    config.train.steps = 160
    config.train.save_every = 160
    config.train.learning_rate = 2e-3
    config.train.vector_rate = 10.0
    config.arms = {"sft": {"label": "standard SFT", "fraction": 0.0}}
    return config
