"""The demo with every cell trained from three seeds, so that intervals hold over seeds too.

Command   launch/demo.sh --full      (or: cotjax demo --full)
Hardware  2 CPU cores
"""

import demo


def get_config():
    config = demo.get_config()
    config.title = "Where the gains of CoT training land: the demo, three seeds"
    config.out = "runs/demo-full"
    config.seeds = (0, 1, 2)
    config.arms = demo.CELLS
    return config
