"""Where the gains of GRPO land, at the size of the demo: made household games, on a laptop's CPU.

The policy starts from a short fine-tuning of the demo's base on scripted thoughts that name the
action (30 updates of configs/demo.py): the base itself wins 3 % of its sampled episodes, so that
half the groups are flat. Two arms: the loss of all sampled tokens, and that without 30 % of the
actions (reduced action supervision). D1 to D3 say where each one's gain landed, by the same records
as those of a fine-tuned study.

What makes a step cheap: two task types, 12 actions an episode and not 20, 32 episodes and not 64,
rows of 1,024 tokens and not 2,048 (attention grows with the square), no KL term, whose scoring
costs a quarter of an update, flat groups neither trained on nor refilled, and no prompt action
beside each sampled one.

Command   cotjax train --config configs/demo.py --out runs/grpo_start --config.train.steps=30
          cotjax export --run runs/grpo_start --arm named --out runs/grpo_start/model
          cotjax rl --config configs/grpo_demo.py
Hardware  2 CPU cores: a step takes some 15 CPU seconds, so 60 some 8 minutes an arm, computed from
          steps of 16 to 27 s at 0.7 of a core. 64 episodes of four types took 110 CPU seconds
Result    not run to its end. The first six steps, of 32 episodes each, sampled a success of 0.31,
          0.13, 0.41, 0.47, 0.34 and 0.06: games differ more than six steps teach, so nothing is
          shown yet. The config of before showed no gain in 5 steps either: in it a malformed step
          of a lost group had an advantage of -34, and ruled the update
"""

from cotjax.config import default_config


def get_config():
    config = default_config()
    config.title = "Where the gains of GRPO land: the demo"
    config.out = "runs/grpo_demo"
    config.cpu_devices = 2
    config.games.train = 150  # of each task type: 300, more than are played
    config.games.in_domain = 64
    config.games.ood_domains = ("ood_rooms",)
    config.games.ood = 12
    # The two of which the start wins most by chance: groups whose plays all lose teach nothing.
    types = ("pick_heat_then_place_in_recep", "look_at_obj_in_light")
    config.task_types.in_domain = config.task_types.collect = types
    config.model.base = "runs/grpo_start/model"
    config.rl.tasks, config.rl.group, config.rl.slots = 4, 8, 32
    config.rl.clip_high = 0.28
    config.rl.flat = "skip"
    config.rl.kl = 0.0
    config.rl.format_penalty = 0.0  # one response in a hundred is malformed
    config.rl.information = 0
    config.rl.live_prompt = False
    config.train.steps = config.train.save_every = 60
    config.train.batch = 4
    config.train.row_length = 1024
    config.train.remat = "dots"
    config.train.learning_rate = 1e-3
    config.train.warmup = 8  # Adam's first updates are the signs of one noisy gradient
    config.train.schedule = "constant"
    config.train.vector_rate = 1.0
    config.evaluate.max_steps = 12
    config.evaluate.max_length = 768
    config.evaluate.max_new_tokens = 56
    config.evaluate.slots = 38
    config.evaluate.offline = ("cot_constrained", "prompt_constrained")
    config.primary.measure = "d1"  # free decoding hides the prompt action from D3
    config.primary.domains = ("in_domain",)
    config.arms = {
        "grpo": {"label": "GRPO", "fraction": 0.0, "advantage": "grpo"},
        "grpo_reduced": {"label": "GRPO, k = 0.3", "fraction": 0.3, "advantage": "grpo"},
    }
    return config
