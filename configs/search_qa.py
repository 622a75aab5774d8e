"""Search QA: a model from random weights learns to search for what it needs.

Standard SFT against reduced action supervision, on the solver's episodes of questions of one and
two hops. Played: new questions of these types; and out of domain, compositions, lengths and
entities of which training shows none, each a domain.

Command   cotjax study --config configs/search_qa.py
Hardware  2 CPU cores: 6 minutes of CPU time (42 minutes behind other work on both cores)
Result    of 2026-11-28: the solver won all 44 games that are played. The loss of standard SFT goes
          from 7.2 to 0.2 in 240 updates of 2,560 tokens. In domain the D1 of CoT actions goes from
          0 % [0, 5] to 20 [13, 30] with standard SFT and 15 [9, 25] with k = 0.3; it is 1 after
          120 updates. What is learned is to search: queries name the entity and the relation
          as the solver's do. What the results say is not read rightly yet, so no game is won, and
          out of domain D1 is 0 but for 8 [1, 47] in new chains. Prompt actions stay at a D1 of 0
          [0, 5]: without a thought that names it, no query is right. D1 was counted from records in
          which the solver's actions were spelled afterwards as the tokenizer writes them, which the
          command now does while it plays
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
