"""BFCL v3 multi-turn on a CPU: a model of 3.3 million parameters, most of them its 49,152 tokens.

It is trained on answers to base, and played on base and long_context. An arm reads 20 training
examples: it shows that the pipeline runs from entries to report, and no more.
configs/bfcl_smollm2.py trains a pretrained model on a GPU.

Command   launch/worlds.sh bfcl
          cotjax base smollm2 --out models/smollm2      (for its tokenizer)
          cotjax study --config configs/bfcl.py
Hardware  2 CPU cores: 7.6 minutes beside other work on both cores, 4.4 of CPU time
Result    of 2026-11-28: the expert fulfils all 30 training entries and all 9 that are played, in 9
          actions on average. The model learns next to nothing from 20 examples: the loss goes from
          10.2 to 7.8, at most 2 % [0, 16] of its responses are valid, no entry is won and no action
          agrees with the expert's (D1 0 % [0, 12]), so where a gain landed is "not measurable (D1)"
"""

from cotjax.config import default_config


def get_config():
    config = default_config("bfcl")
    config.title = "Where the gains of CoT training land: BFCL v3 multi-turn"
    config.out = "runs/bfcl"
    config.games.train = 30
    config.games.in_domain = 6  # of 67 base entries whose numbers are not trained on
    config.games.ood = 3  # of long_context, as in arXiv 2606.26935
    config.task_types.collect = config.task_types.in_domain  # the OOD task types are never shown
    config.collect.max_steps = 40
    config.data.max_length = 4608  # the longest of base has 4,400 tokens
    config.model.base = "random"
    config.model.tokenizer = "models/smollm2"  # calls are spelled in subwords
    config.model.induction = True  # arguments are copied from what was read
    # 0.2 million parameters beside the 3.1 million of 49,152 tokens.
    config.model.width = 64
    config.model.layers = 4
    config.model.heads = 2
    config.model.kv_heads = 1
    config.model.feed_forward = 192
    config.train.row_length = 4608
    config.train.batch = 1
    config.train.steps = 20  # of an arm
    config.train.save_every = 10
    config.train.warmup = 4
    config.train.learning_rate = 3e-3
    config.train.vector_rate = 10.0
    config.train.remat = "none"
    config.train.information_examples = 0
    config.evaluate.slots = 9
    config.evaluate.max_length = 6144
    config.evaluate.max_steps = 8  # the expert needs up to 17
    config.evaluate.max_new_tokens = 96
    config.evaluate.max_action_tokens = 48
    config.evaluate.episodes_at = (0, -1)
    config.primary.measure = "d1"  # no entry is won after so little training
    return config
