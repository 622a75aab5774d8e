"""GRPO, GRPO with reduced action supervision and a control: one task type, three seeds.

Fixed before the run; the report has this file's settings and their hash. Settings are those of
configs/grpo_demo.py, which were chosen by runs of its arm "grpo" on other games. Games and training
seeds are new.

"grpo" trains on the loss of all sampled tokens; "grpo_plus" leaves the action tokens of 30 % of the
responses out of the policy's term, advantages unchanged; "grpo_random" leaves out as many tokens,
at random among all. All go on from one model: the demo's base after 30 updates on thoughts that
name the action.

Primary endpoints, of D1 of free actions, 96 in-domain games, start to step 60, three seeds: where
the gain of "grpo" and of "grpo_plus" lands, against a half, and whether the gap of each stays
within 10 points. The four are one family (Holm, 5 %). Secondary, described by intervals: success of
whole episodes, sampled at temperature 1 (D3), and the differences of "grpo_plus" and "grpo_random"
from "grpo". The paper has .44 (GRPO) and .52 (with k = 0.3), out of domain and without a control; a
difference that "grpo_random" has as well is not one of action tokens.

Command   cotjax train --config configs/demo.py --out runs/grpo_start --config.train.steps=30
          cotjax export --run runs/grpo_start --arm named --out runs/grpo_start/model
          cotjax study --config configs/study_rl_core.py
Power     `cotjax study --power`, 96 games, three seeds that differ by 0.3 logits: four studies of
          five give a verdict of the family to a change of CoT actions from 20.5 points, of prompt
          actions from 21.9, of the gap from 30; described, from 12.7, 13.3 and 18.3
Hash      c0618c8483ae… (the same command prints it, and the report has it)
Budget    computed: nine arms and seeds of 60 steps and two evaluations, 13 minutes each on 2 idle
          CPU cores
Result    not run
"""

import grpo_demo


def get_config():
    config = grpo_demo.get_config()
    config.title = "Where the gains of GRPO land, with and without reduced action supervision"
    config.out = "runs/study_rl_core"
    config.seed = 2606
    config.seeds = (11, 12, 13)
    config.primary.arms = ("grpo", "grpo_plus")
    config.arms = {
        "grpo": {"label": "GRPO", "objective": "grpo", "fraction": 0.0},
        "grpo_plus": {"label": "GRPO, k = 0.3", "objective": "grpo", "fraction": 0.3},
        "grpo_random": {
            **{"label": "GRPO, random tokens", "objective": "grpo", "fraction": 0.3},
            "control": "random tokens",
        },
    }
    return config
