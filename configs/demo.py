"""The demo: a study with a known answer, on a laptop's CPU, from made games to the report.

The same games and episodes give the data of all cells; the scripted thoughts name the action that
follows, or they do not, and 0 or 30 % of the trajectories are written without thoughts ("mixed").
"direct" has no thoughts at all: the ceiling of a prompt action. "unnamed_reduced" drops 30 % of
the action losses where these carry a share of the loss: 8 % at the base and 13 to 23 % from update
13 on, against 0.04 % where the thoughts name the action.

Here: every cell but "unnamed_mixed", one seed each, expert states at updates 0, 30 and 60, episodes
at 0 and 60. configs/demo_full.py has every cell, three seeds, and episodes at the middle too.

Command   launch/demo.sh      (or: cotjax demo; cotjax study --config configs/demo.py)
Hardware  2 CPU cores
Result    of pilots with 60 in-domain games, one seed: D1 at the base 0.58 by CoT and 0.24 by prompt
          actions; "unnamed" at update 60: 0.53 and 0.30. Every in-domain response was valid, at the
          base and then. After 60 updates of "named" CoT actions won 8 of 20 longer rooms, 7 of 20
          games with held-out objects.
"""

from cotjax.config import default_config

CELLS = {
    "named": {"label": "thoughts name the action", "fraction": 0.0},
    "named_mixed": {"label": "named, 30 % direct", "fraction": 0.0, "direct_share": 0.3},
    "unnamed": {"label": "thoughts do not name it", "fraction": 0.0, "thoughts": "unnamed"},
    "unnamed_mixed": {
        **{"label": "unnamed, 30 % direct", "fraction": 0.0},
        **{"thoughts": "unnamed", "direct_share": 0.3},
    },
    "unnamed_reduced": {"label": "unnamed, k = 0.3", "fraction": 0.3, "thoughts": "unnamed"},
    "direct": {"label": "no thoughts", "fraction": 0.0, "direct_share": 1.0},
}
SHORT = ("named", "named_mixed", "unnamed", "unnamed_reduced", "direct")


def get_config():
    config = default_config()
    config.title = "Where the gains of CoT training land: the demo"
    config.out = "runs/demo"
    config.cpu_devices = 2
    config.games.train = 150  # of each in-domain task type: 600
    config.games.in_domain = 64
    # Out of domain: the same task types in longer rooms, which CoT actions win in 9 of 16.
    config.games.ood, config.games.ood_rooms = 0, 12
    config.task_types.collect = config.task_types.in_domain  # the OOD task types are never shown
    # A model that has only seen faultless play repeats itself when an action has no effect.
    config.collect.slips = 0.3
    config.train.steps = 60
    config.train.save_every = 30
    config.train.warmup = 10
    config.train.learning_rate = 2e-3
    config.train.information_examples = 16
    config.train.vector_rate = 10.0
    config.evaluate.max_steps = 20  # the scripted expert wins in 8 on average
    config.evaluate.max_new_tokens = 64  # the longest scripted response has some 50
    config.evaluate.slots = 38  # half of the games
    # Chosen among the admissible actions, the prompt action shows what free decoding hides.
    config.evaluate.offline = ("cot_constrained", "prompt_constrained")
    config.evaluate.episodes_at = (0, 60)  # expert states are measured at every checkpoint
    config.arms = {cell: CELLS[cell] for cell in SHORT}
    return config
