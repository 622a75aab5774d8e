"""The published study on search questions: SFT and reduced supervision in an invented world.

Fixed before a run; the report has its hash. Actions are searches and answers, and no list of
admissible ones exists, so D1 and D2 are of free actions, and the primary measure is D3: a question
answered with at most ten searches. In-domain are four kinds of questions; out of domain unseen
chains, unseen lengths and unseen entities.

Primary endpoints, 120 in-domain questions, base to update 400, three seeds: where the gain of "sft"
and of "k03" lands, and whether the gap of each stayed within 10 points; one family of four (Holm,
5 %). Secondary, described: D1 and D2, out of domain, and the control of as many random tokens. The
base is a model from random weights, which answers nothing: a prompt action that stays below 5 %
gives "not measurable", and that is an answer.

Whether a fact is known or not is asked by `cotjax autocoa` (configs/autocoa_demo.py), whose base is
taught half of them; this study's base knows none.

Command   cotjax study --config configs/study_search_qa.py
Hardware  2 CPU cores: some hours; in parts (--arms) on more
Result    not run
"""

import search_qa


def get_config():
    config = search_qa.get_config()
    config.title = "Where the gains of CoT training land: search questions"
    config.out = "runs/study_search_qa"
    config.seeds = (0, 1, 2)
    config.games.train = 250  # of each in-domain task type: 1,000
    config.games.in_domain = 120
    config.games.ood = 60
    config.task_types.in_domain = ("one_hop", "two_hops", "comparison", "intersection")
    config.task_types.collect = config.task_types.in_domain
    config.collect.slips = 0.1
    config.data.max_length = 1024
    config.train.row_length = 1024
    config.train.steps = 400
    config.train.save_every = 200
    config.evaluate.max_steps = 12  # ten searches, the answer, and one invalid action
    config.evaluate.max_length = 2560  # ten searches with their results
    config.evaluate.episodes_at = (0, -1)
    config.primary.measure = "d3"
    config.primary.arms = ("sft", "k03")
    config.primary.domains = ("in_domain",)
    config.primary.assumed_base, config.primary.assumed_last = (0.02, 0.02), (0.60, 0.10)
    config.arms = {
        "sft": {"label": "SFT", "fraction": 0.0},
        "k03": {"label": "k = 0.3", "fraction": 0.3},
        "random": {"label": "random tokens", "fraction": 0.3, "control": "random tokens"},
    }
    return config
