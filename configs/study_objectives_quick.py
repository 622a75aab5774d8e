"""The study of objectives in minutes: keys, doors and a hidden rule, in one step.

The base guesses (configs/rl_keys_start.py), and its guesses are the rejected side of DPO; the
expert knows the rule. There is no FRODO: thoughts name the door ("the gold key is for door 2"), and
its counterfactual thoughts have to name the action. Intervals are too wide to draw conclusions
from: it shows that all arms train, play, report and resume.

Command   the two of configs/rl_keys_start.py, then:
          cotjax study --config configs/study_objectives_quick.py
Budget    computed: 10 updates of 8 rows of 256 tokens, then 40 for each of seven arms; of the three
          that play, 3,840 sampled episodes of one step each
Hardware  2 CPU cores that also ran other work: 4.5 minutes, of which 94 s of CPU
"""

import study_objectives

from cotjax.config import default_config

GUESSES = "runs/rl_keys_start/trajectories/train.jsonl"


def get_config():
    config = default_config("keys")
    config.title = "Where the gains of objectives land: keys"
    config.out = "runs/study_objectives_quick"
    config.workers = 0
    config.games.in_domain, config.games.ood = 24, 0
    config.model.base = "runs/rl_keys_start/model"
    config.rl.tasks, config.rl.group, config.rl.slots = 12, 8, 96
    config.rl.kl = 0.0  # the start knows nothing worth keeping
    config.rl.flat = "skip"
    config.train.steps, config.train.save_every = 40, 20
    config.train.batch = 8
    config.train.row_length = config.data.max_length = 256
    config.train.learning_rate = 3e-4
    config.train.warmup = 0
    config.train.schedule = "constant"
    config.train.information_examples = 8
    config.evaluate.slots = 24
    config.evaluate.max_steps = 1
    config.evaluate.max_length = 128
    config.evaluate.max_new_tokens, config.evaluate.max_action_tokens = 24, 8
    arms = {arm: dict(own) for arm, own in study_objectives.ARMS.items() if arm != "frodo"}
    for arm in ("dpo", "dpo_plus"):
        arms[arm]["rejected"] = GUESSES
    config.arms = arms
    config.arms.short.steps, config.arms.short.learning_rate = 10, 3e-4
    return config
