"""Where the gains of GRPO land, at the size of the demo: made household games, on a laptop's CPU.

The policy starts from a short fine-tuning of the demo's base on scripted thoughts that name the
action (30 updates of configs/demo.py): the base itself wins 3 % of its sampled episodes, so that
half the groups are flat. Two arms: the loss of all sampled tokens, and that without 30 % of the
actions (reduced action supervision). D1 to D3 say where each one's gain landed, by the same records
as those of a fine-tuned study.

Command   cotjax train --config configs/demo.py --out runs/grpo_start --config.train.steps=30
          cotjax export --run runs/grpo_start --arm named --out runs/grpo_start/model
          cotjax rl --config configs/grpo_demo.py
Hardware  2 CPU cores: some 40 minutes an arm, computed from 110 CPU seconds a step
Result    not run to its end. Greedily the start wins 58 % of in-domain games by CoT actions, and
          25 % of those in longer rooms; the first 5 of 40 steps sampled a success of 0.33, 0.44,
          0.32, 0.40 and 0.32, of 64 episodes each: no gain yet
"""

from cotjax.config import default_config


def get_config():
    config = default_config()
    config.title = "Where the gains of GRPO land: the demo"
    config.out = "runs/grpo_demo"
    config.cpu_devices = 2
    config.games.train = 150  # of each in-domain task type
    config.games.in_domain = 64
    config.games.ood_domains = ("ood_rooms",)
    config.games.ood = 12
    config.task_types.collect = config.task_types.in_domain
    config.model.base = "runs/grpo_start/model"
    config.rl.tasks, config.rl.group, config.rl.slots = 8, 8, 32
    config.rl.clip_high = 0.28
    config.train.steps, config.train.save_every = 40, 20
    config.train.batch = 4
    config.train.row_length = 2048
    config.train.learning_rate = 3e-4  # 1e-3 unlearns what the start knows
    config.train.warmup = 0
    config.train.schedule = "constant"
    config.train.vector_rate = 10.0
    config.evaluate.max_steps = 20
    config.evaluate.max_new_tokens = 64
    config.evaluate.slots = 38
    config.evaluate.offline = ("cot_constrained", "prompt_constrained")
    config.primary.measure = "d1"  # free decoding hides the prompt action from D3
    config.primary.domains = ("in_domain",)
    config.arms = {
        "grpo": {"label": "GRPO", "fraction": 0.0, "advantage": "grpo"},
        "grpo_reduced": {"label": "GRPO, k = 0.3", "fraction": 0.3, "advantage": "grpo"},
    }
    return config
