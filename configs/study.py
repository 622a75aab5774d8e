"""Standard SFT against reduced action supervision: to start from with your own data or model.

Command   cotjax study --config configs/study.py
          cotjax study --config configs/study.py --config.data.trajectories=mine.jsonl
Hardware  2 CPU cores; 10 minutes; largest process 1.6 GB
Result    standard SFT at step 150, 60 in-domain games: success by CoT actions 0.72 [0.59, 0.81],
          by prompt actions 0.02 [0.00, 0.09], gap +0.70 [+0.55, +0.80]; D1 0.86 and 0.29, from
          0.58 and 0.24 at the base. On scripted thoughts that name the action, the arms cannot
          differ: the action tokens carry 0.07 % of the loss (configs/demo.py has other data).
"""

from cotjax.config import default_config


def get_config():
    config = default_config()
    config.title = "Where the gains of CoT training land: SFT and k = 0.3"
    config.out = "runs/study"
    config.cpu_devices = 2
    config.games.train = 150  # of each in-domain task type: 600
    config.games.in_domain = 60
    config.games.ood = 20
    config.task_types.collect = config.task_types.in_domain  # the OOD task types are never shown
    # A model that has only seen faultless play repeats itself when an action has no effect.
    config.collect.slips = 0.3
    config.train.steps = 150
    config.train.save_every = 30  # 5 checkpoints an arm, and the base
    config.train.learning_rate = 2e-3
    config.train.vector_rate = 10.0
    config.evaluate.max_steps = 20  # the scripted expert wins in 8 on average
    config.evaluate.max_new_tokens = 64  # the longest scripted response has some 50
    config.evaluate.slots = 40
    return config
