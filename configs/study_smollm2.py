"""The published study on real games: SmolLM2-135M-Instruct, ALFWorld's valid_unseen.

Fixed before a run; the report has its hash. Thoughts are those of a model ("written": KnowAgent's
episodes, as in configs/smollm2_alfworld.py) or scripted ones that do not name the action; each with
k = 0, with k = 0.3, and with as many random tokens dropped as k = 0.3 drops.

Primary endpoints, of D1 of actions chosen among the admissible ones, 90 in-domain games, base to
the last update, three seeds: where the gain of "written" and of "unnamed" lands, and whether the
gap of each stayed within 10 points; the same of "written_reduced" and "unnamed_reduced". One family
of eight (Holm, 5 %). Secondary, described: D3, in-domain and of the 38 OOD games (ALFWorld's OOD
split of the paper), D2, the trend, the differences between arms.

Command   cotjax base smollm2 --out models/smollm2
          cotjax data import knowagent.jsonl --environment alfworld --out data/knowagent.jsonl
          cotjax study --config configs/study_smollm2.py --config.games.root=/path/to/alfworld
Data      ALFWorld's json_2.1.1/train and json_2.1.1/valid_unseen, in the 0.4 command grammar
Power     three seeds: see `cotjax study --power`; a verdict on the gap needs a change of some 40
          points, so small ones can only be described
Budget    computed: 18 members of 1.5M tokens each; 256 episodes at the end of each, of at most
          15 x 112 tokens. On one GPU parts of 8 minutes: --arms written/seed-0 and so on; each
          resumes
Result    not run: no GPU with these games was at hand for as long
"""

import smollm2_alfworld

RANDOM = {"fraction": 0.3, "control": "random tokens"}
ARMS = {
    name: own for name, own in smollm2_alfworld.ARMS.items() if not name.startswith("named")
} | {
    "unnamed_random": {"label": "unnamed, random tokens", "thoughts": "unnamed", **RANDOM},
    "written_random": {
        **{"label": "a model's thoughts, random tokens", "trajectories": smollm2_alfworld.WRITTEN},
        **RANDOM,
    },
}


def get_config():
    config = smollm2_alfworld.get_config()
    config.title = "Where the gains of CoT training land: SmolLM2 on ALFWorld's unseen rooms"
    config.out = "runs/study_smollm2"
    config.seeds = (0, 1, 2)
    config.games.eval_split = "valid_unseen"
    config.games.in_domain = 90
    config.games.ood = 38
    config.train.batch, config.train.accumulate = 8, 1
    config.train.steps, config.train.save_every = 120, 60
    config.train.warmup = 10
    config.train.learning_rate = 1e-4
    config.evaluate.slots = 32
    config.evaluate.max_new_tokens = 112
    config.evaluate.offline = ("cot_constrained", "prompt_constrained")
    config.primary.measure = "d1"
    config.primary.kinds = ("cot_constrained", "prompt_constrained")
    config.primary.arms = ("written", "written_reduced", "unnamed", "unnamed_reduced")
    config.primary.domains = ("in_domain",)
    config.primary.assumed_base, config.primary.assumed_last = (0.15, 0.12), (0.45, 0.30)
    config.arms = ARMS
    return config
