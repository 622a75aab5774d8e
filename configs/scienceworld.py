"""ScienceWorld at demo size: seven task types whose gold paths are short, from games to report.

In domain: find an animal, a living or a non-living thing, the longest and the shortest lifespan.
Out of domain, as the last task types of their topics: find a plant, the longest lifespan and then
the shortest. The simplifications are "easy". For all 30 tasks take the defaults of task_types, and
100 or 200 steps: gold paths have up to 180.

Command   cotjax study --config configs/scienceworld.py
Needs     pip install "cotjax[scienceworld]", and Java
Hardware  2 CPU cores, and 0.5 GB of memory for the Java process of each core: 19 minutes beside
          other work on both cores, 13 of CPU time
Result    of 2026-11-28: the expert won all 120 training games and all 32 that are played, in 10
          steps on average. By CoT actions D1 goes from 0 % [0, 4] to 45 [37, 52] with standard SFT
          and 41 [35, 48] with k = 0.3, out of domain to 15 [9, 24] and 13 [6, 24], and the mean
          final score of in-domain episodes from 0.07 to 0.32 and 0.33. No game is won, so where a
          gain landed is "not measurable (D3)". Prompt actions stay at a D1 of 0 [0, 4]: 6 or 7 % of
          them are valid, since all thoughts name the action and a prompt action has none
"""

from cotjax.config import default_config


def get_config():
    config = default_config("scienceworld")
    config.title = "Where the gains of CoT training land: ScienceWorld, seven task types"
    config.out = "runs/scienceworld"
    config.cpu_devices = 2
    config.games.train = 120
    config.games.eval_split = "dev"
    config.games.in_domain = 22
    config.games.ood = 10
    config.task_types.in_domain = (
        "find-animal",
        "find-living-thing",
        "find-non-living-thing",
        "lifespan-longest-lived",
        "lifespan-shortest-lived",
    )
    config.task_types.ood = ("find-plant", "lifespan-longest-lived-then-shortest-lived")
    config.task_types.collect = config.task_types.in_domain
    config.collect.max_steps = 30
    config.data.max_length = 1024
    config.model.base = "random"  # the shipped base knows ALFWorld's words alone
    config.train.steps = 60  # of an arm
    config.train.row_length = 1024
    config.train.save_every = 30
    config.train.warmup = 10
    config.train.learning_rate = 2e-3
    config.train.vector_rate = 10.0
    config.train.remat = "none"  # a million parameters leave memory enough
    config.train.information_examples = 8
    config.evaluate.max_steps = 15
    config.evaluate.max_length = 2048
    config.evaluate.max_new_tokens = 64
    config.evaluate.slots = 16  # eight a Java process
    config.evaluate.episodes_at = (0, -1)
    return config
