"""configs/smollm2_alfworld.py in a size for 2 CPU cores: three arms, 18,000 tokens each, 8 games.

Its intervals are too wide to draw conclusions from.

Command   cotjax base smollm2 --out models/smollm2
          cotjax data import knowagent.jsonl --environment alfworld --out data/knowagent.jsonl
          cotjax study --config configs/smollm2_alfworld_quick.py \\
              --config.games.root=/path/to/alfworld
Budget    18,432 tokens an arm (6 updates of 2 rows of 1,536); a CoT episode decodes at most 8 x 72
          tokens, a prompt episode 8 x 16
Hardware  2 CPU cores, 10 GB: 27.2 minutes beside much other work, 35 CPU minutes (48 in float32)
Result    of 2026-11-28: too little training to move anything, and the report says so: no game is
          won at any checkpoint by either action, so where a gain landed is "not measurable (D3)".
          D1 in-domain, over the expert's states of 6 games: CoT 4 % [1, 25] at the base, 12 after
          "written", 0 after "named" and "unnamed"; prompt 8 % [2, 29], then 8, 12 and 4; chosen
          among admissible actions 12 % [4, 32], then 8, 12 and 12. The loss of "named" in its 6
          updates: 2.50, 2.36, 1.40, 1.14, 1.25, 1.08
"""

import smollm2_alfworld

ARMS = ("named", "unnamed", "written")


def get_config():
    config = smollm2_alfworld.get_config()
    config.title = "Where the gains of CoT training land: SmolLM2 on real ALFWorld games, quick"
    config.out = "runs/smollm2-alfworld-quick"
    config.games.train = 30
    config.games.in_domain = 6
    config.games.ood = 2
    config.prompt.admissible_count = 6
    config.train.batch = 2
    config.train.accumulate = 1
    config.train.steps = config.train.save_every = 6
    config.train.warmup = 1
    config.train.information_examples = 0  # it would take as long as the training
    config.evaluate.max_steps = 8
    config.evaluate.max_new_tokens = 72
    config.evaluate.episodes_at = (0, -1)
    config.arms = {arm: smollm2_alfworld.ARMS[arm] for arm in ARMS}
    return config
