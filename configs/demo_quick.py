"""The demo with fewer games, cells, steps and checkpoints, to check that everything works.

Its intervals are too wide to draw conclusions from. Cells: "named", "named_mixed" and
"unnamed_reduced"; one seed each.

Command   launch/demo.sh --quick
"""

import demo

CELLS = ("named", "named_mixed", "unnamed_reduced")


def get_config():
    config = demo.get_config()
    config.title = "Where the gains of CoT training land: the quick demo"
    config.out = "runs/demo-quick"
    config.games.train = 20
    config.games.in_domain = 12
    config.games.ood = 6
    config.train.steps = 24
    config.train.save_every = 12
    config.train.warmup = 4
    config.arms = {cell: demo.CELLS[cell] for cell in CELLS}
    return config
