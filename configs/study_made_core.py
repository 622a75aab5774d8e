"""The core of configs/study_made.py, of a size that two CPU cores run in an hour and a half.

Fixed before the run; the report has this file's settings and their hash. Games and training seeds
are those of configs/study_made.py, of which none was run before. What is smaller: three arms, not
eleven, and 120 updates (two epochs), not 300. The arms with a known answer are those of
configs/demo_full.py, which finds both.

Primary endpoints, of D1 of actions chosen among the admissible ones, 64 in-domain games, base to
update 120, five seeds: where the gain of "sft" and of "k03" (k = 0.3) lands, against a half, and
whether the gap of each stays within 10 points. The four are one family (Holm, 5 %). The thoughts do
not name the action, so its tokens have a tenth of the loss to carry.

Secondary, described by intervals: success of whole episodes (D3) in-domain and in longer rooms; the
trend of the gap over updates 0, 60 and 120; and the difference from "sft" of k = 0.3 and of the
control that drops as many tokens as k = 0.3 does, at random among all. If reduced supervision acts
by which tokens it drops, k = 0.3 differs from that control.

Command   cotjax study --config configs/study_made_core.py
Power     `cotjax study --power`, 64 games, five seeds that differ by 0.3 logits: four studies of
          five give a verdict of the family to a change of CoT actions from 12 points, of prompt
          actions from 14, of the gap from 18; described, from 9, 11 and 14
Hash      96ab47091764… (the same command prints it, and the report has it)
Hardware  2 CPU cores, beside work of low priority: 74 minutes, with games and trajectories made
Result    28 November 2026. D1, base to update 120: "sft" +14 points [9, 20] by CoT actions, +0
          [-6, 7] by prompt actions, so that 1 % [-43, 54] of the gain is in these; "k03" +13 [8,
          19], +1 [-4, 6] and 6 % [-34, 51]: neither is told from a half (p = 0.22). The gap widens
          by 14 [5, 23] and 13 [5, 20]: it does not stay within 10 (p = 1). Against "sft", "k03"
          moves the gap by -2 [-4, 0] and success by -1 [-6, 3]; "random" by +1 [-1, 3] and +4
          [0, 8]. docs/results.md has the tables, docs/results/made_core.tar.xz the records
"""

import study_made

CORE = ("sft", "k03", "random")


def get_config():
    config = study_made.get_config()
    config.title = (
        "Where SFT's gain lands on made games, and what reduced supervision changes: core"
    )
    config.out = "runs/study_made_core"
    config.train.steps = 120
    config.train.save_every = 60
    config.primary.arms = ("sft", "k03")
    config.arms = {arm: study_made.ARMS[arm] for arm in CORE}
    return config
