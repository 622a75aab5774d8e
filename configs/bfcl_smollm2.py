r"""BFCL v3 multi-turn: SmolLM2-135M trained on answers to base, played on base and long_context.

Command   launch/worlds.sh bfcl
          cotjax base smollm2 --out models/smollm2
          cotjax study --config configs/bfcl_smollm2.py
          cotjax study --config configs/bfcl_smollm2.py --out runs/bfcl-miss \
              --config.games.ood_domains=miss_func,miss_param
Hardware  one GPU: computed, 41,000 tokens an update, 30 updates an arm, two arms. On 2 CPU cores
          the train step alone takes hours; configs/bfcl.py is for them
Result    not run: no GPU was at hand. The same pipeline runs in configs/bfcl.py
"""

from cotjax.config import default_config


def get_config():
    config = default_config("bfcl")
    config.title = "Where the gains of CoT training land: BFCL v3 multi-turn, SmolLM2"
    config.out = "runs/bfcl_smollm2"
    config.games.in_domain = 30  # of 67 base entries whose numbers are not trained on
    config.games.ood = 20  # of long_context, as in arXiv 2606.26935
    config.task_types.collect = config.task_types.in_domain  # the OOD task types are never shown
    config.collect.max_steps = 40
    config.prompt.instruction = "world"  # an instruct model must be told what an action is
    config.model.base = "models/smollm2"
    config.model.compute_dtype = "bfloat16"
    config.data.max_length = 5120  # the longest of base has 4,400 tokens
    config.train.row_length = 5120
    config.train.batch = 8
    config.train.steps = 30  # of an arm: three epochs
    config.train.save_every = 15
    config.train.warmup = 3
    config.train.learning_rate = 1e-4
    config.train.information_examples = 8
    config.evaluate.slots = 25  # half of the games
    # The positions of SmolLM2. One in four episodes of long_context needs more.
    config.evaluate.max_length = 8192
    config.evaluate.max_steps = 24  # the expert needs up to 17
    config.evaluate.max_new_tokens = 160
    config.evaluate.max_action_tokens = 96
    config.evaluate.episodes_at = (0, -1)
    config.primary.measure = "d1"  # hardly an entry is won
    return config
