"""Search QA: a model from random weights learns to search for what it needs and to answer.

Standard SFT against reduced action supervision, on the solver's episodes of the four in-domain
types of questions. Played: new questions of these types; and out of domain, compositions, lengths
and entities of which training shows none, each a domain.

Command   cotjax study --config configs/search_qa.py
Hardware  2 CPU cores: 9.4 minutes beside other work on both cores, 5.3 of CPU time
Result    of 2026-11-28: the solver won 997 of 1,000 training games and all 28 that are played. 80
          updates of 4,096 tokens, under one pass over the data, are too few: no game is won and no
          action agrees with the solver's, by either kind of action, so where a gain landed is "not
          measurable (D1)". The loss goes from 7.7 to 0.95. None of the base's responses is valid;
          at the end, in domain, 11 % [3, 32] by CoT actions and 15 [6, 32] by prompt actions with
          standard SFT, 36 [24, 50] and 19 [10, 33] with k = 0.3. Responses copy names of the
          question ("I need the source of Wor Len Rend, so I search for it.") and then repeat
          themselves. More training is --config.train.steps=400; it has not been run
"""

from cotjax.config import default_config


def get_config():
    config = default_config("search_qa")
    config.title = "Where the gains of CoT training land: search QA"
    config.out = "runs/search_qa"
    config.games.train = 500  # of each in-domain task type: 1,000
    config.games.in_domain = 32
    config.games.ood = 4  # of each
    config.games.ood_domains = ("ood_chains", "ood_hops", "ood_entities")
    config.task_types.in_domain = ("one_hop", "two_hops")  # the shortest: 300 and 530 tokens
    config.task_types.collect = config.task_types.in_domain  # the OOD task types are never shown
    config.collect.max_steps = 14
    config.data.max_length = 640  # a search adds some 200 tokens
    config.model.base = "random"  # the shipped base knows ALFWorld's words alone
    config.model.induction = True  # questions are answered by looking up what was read
    config.train.steps = 240  # of an arm
    config.train.save_every = 120
    config.train.warmup = 10
    config.train.batch = 4
    config.train.row_length = 640
    config.train.learning_rate = 2e-3
    config.train.vector_rate = 10.0
    config.train.remat = "none"  # a million parameters leave memory enough
    config.train.information_examples = 0
    config.evaluate.max_steps = 6  # four hops need five
    config.evaluate.max_length = 1536
    config.evaluate.max_new_tokens = 64
    config.evaluate.slots = 22  # half of the games
    config.evaluate.episodes_at = (0, -1)
    config.primary.measure = "d1"  # of few games, D3 tells little
    return config
