r"""BFCL v3 multi-turn: SmolLM2-135M trained on answers to base, played on base and long_context.

Command   pip install --no-deps bfcl-eval mpmath
          cotjax base smollm2 --out models/smollm2
          cotjax study --config configs/bfcl.py
          cotjax study --config configs/bfcl.py --out runs/bfcl-miss \
              --config.games.ood_domains=miss_func,miss_param
Hardware  one GPU. On 2 CPU cores the train step alone takes hours
Result    not measured. The whole command was run with a tiny model in SmolLM2's tokens, 2 updates
          an arm and 2 games a domain: 2 minutes of CPU time
"""

from cotjax.config import default_config


def get_config():
    config = default_config("bfcl")
    config.title = "Where the gains of CoT training land: BFCL v3 multi-turn"
    config.out = "runs/bfcl"
    config.games.train = 40
    config.games.in_domain = 8  # of 67 base entries whose numbers are not trained on
    config.games.ood = 4  # of long_context, as in arXiv 2606.26935
    config.task_types.collect = config.task_types.in_domain  # the OOD task types are never shown
    config.collect.max_steps = 40
    config.data.max_length = 4608  # the longest of base has 4,400 tokens
    config.model.base = "random"
    config.model.tokenizer = "models/smollm2"  # calls are spelled in subwords
    config.model.induction = True  # arguments are copied from what was read
    # Half a million parameters beside the 3 million of 49,152 tokens.
    config.model.width = 64
    config.model.layers = 4
    config.model.heads = 2
    config.model.kv_heads = 1
    config.model.feed_forward = 192
    config.train.row_length = 4608
    config.train.batch = 1
    config.train.steps = 24  # of an arm
    config.train.save_every = 12
    config.train.warmup = 4
    config.train.learning_rate = 3e-3
    config.train.vector_rate = 10.0
    config.train.remat = "none"
    config.train.information_examples = 0
    config.evaluate.slots = 12
    config.evaluate.max_length = 6144
    config.evaluate.max_steps = 8  # the expert needs up to 17
    config.evaluate.max_new_tokens = 96
    config.evaluate.max_action_tokens = 48
    config.evaluate.episodes_at = (0, -1)
    config.primary.measure = "d1"  # no entry is won after so little training
    return config
