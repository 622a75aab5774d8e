"""Where the gains of GRPO land, at the size of the demo: made household games, on a laptop's CPU.

The policy starts from a short fine-tuning of the demo's base on scripted thoughts that name the
action (30 updates of configs/demo.py): the base itself wins 3 % of its sampled episodes, so that
half the groups are flat. Two arms: the loss of all sampled tokens, and that without 30 % of the
actions (reduced action supervision). D1 to D3 say where each one's gain landed, by the same records
as those of a fine-tuned study.

What makes a step cheap: one task type, 12 actions an episode and not 20, 32 episodes and not 64,
rows of 1,024 tokens and not 2,048 (attention grows with the square), no KL term, whose scoring
costs a quarter of an update, flat groups neither trained on nor refilled, and no prompt action
beside each sampled one. What makes it learn: a penalty of refused actions, and a rate that its few
episodes bear. At twice the rate, with two updates a step and malformed responses unpunished,
sampled success fell from 0.32 to 0.07 in ten steps.

Command   cotjax train --config configs/demo.py --out runs/grpo_start --config.train.steps=30
          cotjax export --run runs/grpo_start --arm named --out runs/grpo_start/model
          cotjax rl --config configs/grpo_demo.py
Hardware  2 CPU cores that also did work of low priority: an arm takes 14.6 minutes from its games
          to the report (22 of CPU time). A step takes 9.5 s, of which play 3.1 and the update 5.7
Result    of "grpo" alone, 28 November 2026. Success on the panel, 96 games that are not played in
          training, sampled at temperature 1: 0.25 [0.17, 0.35] at the start, 0.54 [0.44, 0.64]
          after 60 steps, paired by game +0.29 [0.17, 0.40]. Of what is sampled in training 0.32 was
          won in the first ten steps, 0.50 in the last twenty; of its actions 0.32 and 0.15 were
          refused. Prompt actions win no game, so that D3 has no share. By D1, +7 points for CoT
          actions, 35 % [2, 88] of the gain is in prompt actions: "in both". Of those chosen among
          the admissible ones fewer are the expert's (45 to 37 %), so what they gain is form
"""

from cotjax.config import default_config


def get_config():
    config = default_config()
    config.title = "Where the gains of GRPO land: the demo"
    config.out = "runs/grpo_demo"
    config.cpu_devices = 2
    config.games.train = 240  # each is played in one step
    config.games.in_domain = 96
    config.games.ood_domains, config.games.ood = (), 0
    # What the start wins most of by chance: groups whose plays all lose teach nothing.
    types = ("pick_heat_then_place_in_recep",)
    config.task_types.in_domain = config.task_types.collect = types
    config.model.base = "runs/grpo_start/model"
    config.rl.tasks, config.rl.group, config.rl.slots = 4, 8, 32
    config.rl.clip_high = 0.28
    config.rl.flat = "skip"
    config.rl.kl = 0.0
    # A third of the start's actions is refused, most for going where it is. A win says little
    # about a single step of ten, and this does.
    config.rl.refused_penalty = config.rl.format_penalty = 0.5
    config.rl.information = 0
    config.rl.live_prompt = False
    config.train.steps, config.train.save_every = 60, 20
    config.train.batch = 4
    config.train.row_length = 1024
    config.train.remat = "dots"
    config.train.learning_rate = 3e-4
    config.train.warmup = 4  # Adam's first updates are the signs of one noisy gradient
    config.train.schedule = "constant"
    config.train.vector_rate = 1.0
    config.evaluate.max_steps = 12
    config.evaluate.max_length = 768
    config.evaluate.max_new_tokens = 56
    config.evaluate.slots = 48
    config.evaluate.halves = False  # environments answer at once: halves would only be smaller
    config.evaluate.temperature = 1.0  # the policy as it is trained, on the panel, too
    config.evaluate.episodes_at = (0, -1)
    config.evaluate.offline = ("cot_constrained", "prompt_constrained")
    config.primary.measure = "d1"  # free decoding hides the prompt action from D3
    config.primary.domains = ("in_domain",)
    config.arms = {
        "grpo": {"label": "GRPO", "fraction": 0.0, "advantage": "grpo"},
        "grpo_reduced": {"label": "GRPO, k = 0.3", "fraction": 0.3, "advantage": "grpo"},
    }
    return config
