"""Reinforcement learning in a minute: a policy that guesses, and a hidden rule to find by reward.

Six keys, six doors, one step (cotjax/envs/keys.py). The start, configs/rl_keys_start.py, knows the
format and wins one game in six. The panel has arrangements that are not played in training.

Command   the two of configs/rl_keys_start.py, then: cotjax rl --config configs/rl_keys.py
Hardware  2 CPU cores that also ran other work: 40 seconds
Result    success on the panel (24 games, greedy CoT actions): 0.12 at first, 0.50, 0.38 and 0.46
          [0.28, 0.65] at steps 40, 80 and 120; of what is sampled 0.19 in the first ten steps and
          0.56 in the last ten. Prompt actions win nothing: this start has never seen one. With
          240 steps at a rate of 5e-4, entropy is below 0.1 nats a token from step 60 on, and three
          keys of six are never found.
"""

from cotjax.config import default_config


def get_config():
    config = default_config("keys")
    config.title = "Where the gains of GRPO land: keys"
    config.out = "runs/rl_keys"
    config.workers = 0
    config.games.in_domain, config.games.ood = 24, 0
    config.model.base = "runs/rl_keys_start/model"
    config.rl.tasks, config.rl.group, config.rl.slots = 12, 8, 96
    config.rl.kl = 0.0  # the start knows nothing worth keeping
    config.rl.flat = "skip"
    config.train.steps, config.train.save_every = 120, 40
    config.train.batch = 8
    config.train.row_length = config.data.max_length = 256
    config.train.learning_rate = 3e-4
    config.train.warmup = 0
    config.train.schedule = "constant"
    config.evaluate.slots = 24
    config.evaluate.max_steps = 1
    config.evaluate.max_length = 128
    config.evaluate.max_new_tokens, config.evaluate.max_action_tokens = 24, 8
    config.arms = {"grpo": {"label": "GRPO", "fraction": 0.0, "advantage": "grpo"}}
    return config
