"""The base model that ships with cotjax: recall, then exploratory play of all six task types.

Command   cotjax train --config configs/base.py
          cotjax export --run runs/base --arm base --out cotjax/assets/base
Hardware  2 CPU cores, shared with other work; 24 minutes: 4 for the 400 updates of recall, 19 for
          the 1,500 steps; and 2 to make the games
Result    1.00 of the pairs are recalled; greedy play wins 13 of the demo's 60 in-domain games by
          CoT actions and none by prompt actions. The demo starts from it: see configs/demo.py.
"""

from cotjax.config import default_config


def get_config():
    config = default_config()
    config.title = "The base model"
    config.out = "runs/base"
    config.games.root = "runs/base-games"
    config.games.train = 200
    config.games.in_domain = 0
    config.games.ood = 0
    config.games.seed = 1000  # other games than any study's
    config.task_types.in_domain = config.task_types.collect  # the base has seen every task type
    config.task_types.ood = ()
    config.collect.agent = "explorer"
    config.collect.skill = (0.2, 0.8)
    config.collect.news = 0.9
    config.collect.max_steps = 24
    config.collect.episodes_per_game = 2
    config.data.won_only = False  # the explorer explores, and seldom wins
    config.data.direct_share = 0.25
    config.model.base = "random"
    config.model.recall_steps = 400
    config.train.steps = 1500
    config.train.save_every = 300
    config.train.learning_rate = 2e-3
    config.train.warmup = 30
    config.train.vector_rate = 10.0
    config.arms = {"base": {"label": "base", "fraction": 0.0}}
    return config
