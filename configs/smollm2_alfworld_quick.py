"""configs/smollm2_alfworld.py in a size for 2 CPU cores: three arms, 18,000 tokens each, 8 games.

Its intervals are too wide to draw conclusions from.

Command   cotjax base smollm2 --out models/smollm2
          cotjax data import knowagent.jsonl --environment alfworld --out data/knowagent.jsonl
          cotjax study --config configs/smollm2_alfworld_quick.py \\
              --config.games.root=/path/to/alfworld
Budget    18,432 tokens an arm (6 updates of 2 rows of 1,536); a CoT episode decodes at most 8 x 72
          tokens, a prompt episode 8 x 16
Hardware  2 CPU cores, 12 GB; computed from 125 tokens/s: 3 arms of 150 s, 4 checkpoints of 225 s,
          5 minutes to compile: some 28 minutes
Result    of the training of "named": loss 2.51, 2.37, 1.40, 1.12, 1.24, 1.06 in the 6 updates
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
