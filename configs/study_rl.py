"""The published study of reinforcement learning: GRPO, GRPO+ and a control, on made games.

Fixed before a run; the report has its hash. All arms go on from a short SFT ("short", 30 updates)
on thoughts that name the action: what RL starts from has to win now and then. "sft" goes on by SFT
for as many updates; "grpo_plus" leaves the actions' tokens of 30 % of the samples out of the policy
loss, "grpo_random" as many random tokens. All play as many episodes.

Primary endpoints, of D1 of actions chosen among the admissible ones, 64 in-domain games, from the
start of each arm, three seeds: where the gain of "grpo" and of "grpo_plus" lands, and whether the
gap of each stayed within 10 points; one family of four (Holm, 5 %). Secondary, described: D3
in-domain and in longer rooms (60 games), and the difference of "grpo_plus" from "grpo" beside that
of "grpo_random": the paper has +.08 out of domain (Qwen3-4B on ALFWorld, .44 to .52) without one.

Command   cotjax study --config configs/study_rl.py
          or in parts: --arms short/seed-0, then --arms grpo/seed-0 and the others at once
Budget    computed: 9 arms and seeds that play 40 steps of 64 episodes: 23,040 sampled episodes, at
          110 CPU seconds a step 11 CPU hours; minutes each on a GPU. The same command resumes
Result    not run
"""

import study_objectives

SHORT = study_objectives.SHORT


def get_config():
    config = study_objectives.get_config()
    config.title = "Where the gains of GRPO land on made games"
    config.out = "runs/study_rl"
    config.seeds = (0, 1, 2)
    config.games.ood = 60
    config.primary.arms = ("grpo", "grpo_plus")
    names = ("short", "sft", "grpo", "grpo_plus")
    config.arms = {name: study_objectives.ARMS[name] for name in names} | {
        "grpo_random": {
            **{"label": "GRPO, random tokens", "objective": "grpo", "fraction": 0.3},
            **{"control": "random tokens", **SHORT},
        }
    }
    return config
