"""The AutoCoA demo with fewer updates and questions, to check that everything works.

The base does not learn its facts in so few updates, so the gate behind it is open.

Command   cotjax autocoa --quick
Time      3.2 minutes on 2 idle CPU cores (2026-11-28)
"""

import autocoa_demo


def get_config():
    config = autocoa_demo.get_config()
    config.title = "AutoCoA: when and how to search, the quick demo"
    config.out = "runs/autocoa_demo_quick"
    config.games.in_domain = 12
    config.games.ood = 4
    config.train.steps = config.train.save_every = 8
    config.train.warmup = 3
    config.autocoa.least_known = 0.0
    config.autocoa.choices = 80
    config.autocoa.episodes, config.autocoa.thinking = 60, 12
    config.autocoa.grafts = config.autocoa.states = 8
    stages = config.autocoa.stages
    stages.base.steps, stages.sft1.steps, stages.few.steps = 60, 8, 8
    stages.sft2_replay.steps = 8
    config.rl.tasks, config.rl.group, config.rl.slots = 4, 4, 16
    stages.rl.steps, stages.rl.simulated_steps = 3, 2
    stages.rl2_alone.steps = 2
    # Reinforcement learning with real searches is checked by rl2_alone.
    with config.unlocked():
        del config.autocoa.stages["rl2"], config.autocoa.arms["sft1_2_rl2"]
    config.evaluate.max_steps = 4
    return config
