"""The demo: a study with a known answer, on a laptop's CPU, from made games to the report.

The same games and episodes give the data of all cells; the scripted thoughts name the action that
follows, or they do not, and 0 or 30 % of the trajectories are written without thoughts ("mixed").
"direct" has no thoughts at all: the ceiling of a prompt action. "unnamed_reduced" drops 30 % of
the action losses where these carry a share of the loss: 8 % at the base and 13 to 23 % from update
13 on, against 0.04 % where the thoughts name the action.

Here: every cell but "unnamed_mixed", one seed each, expert states at updates 0, 30 and 60, episodes
at 0 and 60. configs/demo_full.py has every cell, three seeds, and episodes at the middle too.

Command   launch/demo.sh      (or: cotjax demo; cotjax study --config configs/demo.py)
Hardware  2 CPU cores: 13.2 minutes; the first time up to 2 more, which the making of games takes
Result    D1 of actions chosen among the admissible ones, 64 in-domain games, base to update 60:
          "named" 0.60 to 0.83 by CoT actions, 0.53 to 0.49 by prompt actions, so -17 % [-42, 6] of
          the gain is in the prompt action: "in the CoT advantage". "named_mixed" 0.83 and 0.75,
          92 % [71, 122]: "in the prompt action". Decoded freely: "named" 0.58 to 0.81 and 0.24 to
          0.30, "named_mixed" 0.81 and 0.58, "direct" 0.68 both ways, "unnamed" 0.53 and 0.30, with
          k = 0.3 0.50 and 0.33. Every response of the base was valid. Longer rooms by CoT actions:
          "named" wins 0.67 [0.39, 0.86], the base 0.08.
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
    config.games.ood_domains = ("ood_rooms",)
    config.games.ood = 12
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
    config.evaluate.episodes_at = (0, -1)  # base and last; expert states are measured everywhere
    # Freely decoded, most prompt actions of the base are no admissible ones, so that a gain of form
    # is among theirs. Chosen among the admissible ones, what a model knows is left.
    config.primary.measure = "d1"
    config.primary.kinds = ("cot_constrained", "prompt_constrained")
    # The two cells of which the truth is known, where there are games enough to decide.
    config.primary.arms = ("named", "named_mixed")
    config.primary.domains = ("in_domain",)
    config.primary.assumed_base, config.primary.assumed_last = (0.60, 0.53), (0.83, 0.49)
    config.arms = {cell: CELLS[cell] for cell in SHORT}
    return config
