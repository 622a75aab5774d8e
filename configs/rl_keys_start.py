"""Where configs/rl_keys.py starts: a tiny model that knows the format of a response and no rule.

It is fine-tuned on guesses: thoughts that name the door that is opened, which is any door. First it
is trained on associative recall: without it, 200 updates do not teach it to copy the door from its
thought, and key, thought and action are three independent guesses.

Command   cotjax train --config configs/rl_keys_start.py
          cotjax export --run runs/rl_keys_start --arm guesses --out runs/rl_keys_start/model
Hardware  2 CPU cores that also ran other work: 95 seconds
"""

from cotjax.config import default_config


def get_config():
    config = default_config("keys")
    config.title = "Keys: a policy that guesses"
    config.out = "runs/rl_keys_start"
    config.workers = 0
    config.games.in_domain = config.games.ood = 0  # nothing is played
    config.collect.agent = "explorer"
    config.collect.episodes_per_game = 20
    config.data.won_only = False
    config.data.max_length = config.train.row_length = 128
    config.model.base = "random"
    config.model.width, config.model.layers = 64, 2
    config.model.heads, config.model.kv_heads, config.model.head_size = 4, 2, 16
    config.model.feed_forward = 128
    config.model.recall_steps = 500
    config.train.steps = config.train.save_every = 200
    config.train.learning_rate = 5e-3
    config.train.vector_rate = 10.0
    config.train.information_examples = 0
    config.arms = {"guesses": {"label": "guesses", "fraction": 0.0}}
    return config
