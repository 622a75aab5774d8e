"""The base model that ships with cotjax, stage 1 of 4: exploratory play of all six task types, in both response forms.

Command   cotjax train --config configs/base.py
          cotjax export --run runs/base --arm base --out runs/base-1
Hardware  2 CPU cores, shared; 34 minutes for the 1,200 steps (7.4M tokens), 8 minutes for the games
Result    loss 0.43 nats a reasoning token; action tokens 0.37. The action follows the thought (1.00 of "go", 0.79 of "take",
          given the expert's thought), but the thought rarely finds the wanted thing among those in view.
"""

from cotjax.config import default_config


def get_config():
    config = default_config()
    config.title = "The base model"
    config.out = "runs/base"
    config.games.root = "runs/base-games"  # shared by the four stages
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
