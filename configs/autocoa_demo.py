"""AutoCoA (arXiv 2503.06580) on an invented world: one model learns when and how to search.

A model from random weights is taught half of the world's facts (base), to search where it does not
know a fact (SFT-1), to search and to read (SFT-2, results masked), and to predict results (SFT-3).
Then it plays: with results that it writes itself (RL-1), and with the retriever's (RL-2). The arms
of the paper's ablation share these stages, and are played on one panel of questions.

Command   cotjax autocoa --config configs/autocoa_demo.py
Hardware  2 CPU cores that also did work of low priority: 20 minutes (28 of CPU time)
Result    of 2026-11-28: the base knows 99.4 % of the known facts and 0.3 % of the others, where a
          guess is right for 2.1 %. It never searches, and none of the paper's stages answers more
          of the 132 questions: exact match 20 % [14, 28], SFT-1 7 [4, 12], SFT-2 13 [8, 20],
          SFT-1+2 12, SFT-1+2+3 11, with RL-1 12, with RL-2 12 [8, 19], SFT-1+2+RL-2 16 [11, 23].
          The stages teach to search: SFT-2 has 47 % [38, 56] of the searches that are needed, and
          half of its own are needed. They forget facts for it, and answer 3 % [1, 10] of the
          questions over two facts at most. Where the texts of the base are replayed, its one-hop
          answers stay: SFT-2 has 21 % [15, 29], 8 points [3, 14] more than without, and 30 % [22,
          40] of the needed searches. SFT-1 in front of SFT-2 changes nothing that this panel can
          see. RL-1 searches less often, by 0.41 [0.27, 0.53] an episode, and exact match moves by
          1.5 points [-2.9, 5.9]
"""

from cotjax.config import default_config


def get_config():
    config = default_config("search_qa")
    config.title = "AutoCoA: when and how to search"
    config.out = "runs/autocoa_demo"
    config.world = "cotjax.envs.search_qa:SMALL"
    config.cpu_devices = 2
    config.games.train = 240  # of each in-domain task type: nearly all that there are
    config.games.in_domain = 60
    config.games.ood = 24  # of each
    config.games.ood_domains = ("ood_chains", "ood_hops", "ood_entities")
    config.task_types.in_domain = ("one_hop", "two_hops")
    config.task_types.collect = config.task_types.in_domain
    config.data.layout = "growing"
    config.data.max_length = 1024  # a search adds some 200 tokens
    config.model.base = "random"  # the shipped base knows ALFWorld's words alone
    config.model.induction = True  # results are read by looking up what was searched for
    config.train.row_length = 1024
    config.train.steps = 100  # of a stage that does not say
    config.train.save_every = 100
    config.train.learning_rate = 1e-3  # at 2e-3 SFT-2 forgets the facts
    config.train.vector_rate = 10.0
    config.train.remat = "none"
    config.autocoa.choices = 240
    config.autocoa.episodes = 240
    config.autocoa.thinking = 48
    config.autocoa.other_episodes = 60
    config.autocoa.states = 48
    config.autocoa.stages.base.steps = 500
    config.autocoa.stages.base.learning_rate = 5e-3
    config.autocoa.stages.base.row_length = 256  # a text about a fact has 30 tokens
    config.autocoa.stages.base.batch = 8
    config.autocoa.stages.sft1.steps = 30
    config.autocoa.stages.sft1.learning_rate = 3e-4
    config.autocoa.stages.sft1.batch = 2  # rows, of some 17 pairs each: 4 epochs
    # ---- one more arm: SFT-2 with the texts of the base told again
    supervised = config.autocoa.stages.sft2_alone.supervised
    again = {"label": "SFT-2, replayed", "start": "base", "supervised": supervised, "replay": 0.5}
    again |= {"steps": 110, "row_length": 640, "batch": 12}
    with config.unlocked():
        config.autocoa.stages.sft2_replay = again
        config.autocoa.arms.sft2_replay = {
            "label": "SFT-2, replayed",
            "at": "sft2_replay",
            "minus": "sft2",
        }
    # ---- what is played, in training and at the end
    config.workers = 0  # a search takes a tenth of a millisecond: environments need no processes
    config.rl.tasks, config.rl.group, config.rl.slots = 6, 6, 36
    config.rl.flat = "skip"
    config.rl.kl, config.rl.kl_estimator, config.rl.entropy = 0.001, "k3", 0.001
    config.rl.information = 0
    config.rl.live_prompt = False
    config.autocoa.stages.rl.steps, config.autocoa.stages.rl.simulated_steps = 18, 15
    stages = config.autocoa.stages
    stages.rl2.steps = stages.rl2_alone.steps = 18
    for stage in (stages.rl, stages.rl2, stages.rl2_alone):
        stage.learning_rate = 3e-4
    config.evaluate.max_length = 1024
    config.evaluate.max_steps = 12  # 10 searches, one too many, and the answer
    return config
