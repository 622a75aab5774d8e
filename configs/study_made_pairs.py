"""DPO, DPO+ and FRODO on the games and seeds of configs/study_made.py, from a short SFT.

"short" is 150 updates of SFT on thoughts that do not name the action, from which "more" goes on by
SFT, and "dpo" and "dpo_plus" (k = 0.3) by DPO, for 40 updates. FRODO's counterfactual thoughts have
to name the action, so "frodo" and its start "short_named" have thoughts that do: it is compared
with its start, not with DPO. The rejected side is the thought and action of another state.

Primary endpoints, of D1 of actions chosen among the admissible ones, 64 in-domain games, five
seeds, from the start of each arm: where the gain of "dpo" and of "dpo_plus" lands, and whether the
gap stayed within 10 points. The paper has these objectives out of domain alone: .59 (DPO), .61
(FRODO), .65 (DPO+), against .55 (SFT).

Command   cotjax study --config configs/study_made_pairs.py
Hash      51befa4498e3… (`cotjax study --power` prints it, and the report has it)
Budget    computed: 10 parts (`--parts`), for an arm needs its start; 2,300 updates of 8,192 tokens
Result    not run
"""

import study_made

UNNAMED, SHORT = study_made.UNNAMED, {"start": "short"}
ARMS = {
    "short": {"label": "short SFT", "steps": 150, "learning_rate": 2e-3, **UNNAMED},
    "more": {"label": "more SFT", "learning_rate": 1e-3, **UNNAMED, **SHORT},
    "dpo": {"label": "DPO", "objective": "dpo", **UNNAMED, **SHORT},
    "dpo_plus": {"label": "DPO+", "objective": "dpo", "fraction": 0.3, **UNNAMED, **SHORT},
    "short_named": {"label": "short SFT, named", "steps": 150, "learning_rate": 2e-3},
    "frodo": {"label": "FRODO", "objective": "frodo", "start": "short_named"},
}


def get_config():
    config = study_made.get_config()
    config.title = "Where the gains of DPO and FRODO land on made games"
    config.out = "runs/study_made_pairs"
    config.data.max_length = 1024  # of a pair, too
    config.train.steps = 40
    config.train.save_every = 20
    config.train.batch = 4
    config.train.row_length = 2048
    config.train.learning_rate = 3e-4
    config.train.warmup = 5
    config.train.schedule = "constant"
    config.primary.arms = ("dpo", "dpo_plus")
    config.arms = ARMS
    return config
