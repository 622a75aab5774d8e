r"""Shared by the configs for TPU slices, which set the model and the mesh.

Rows of 4,096 tokens, parameters and Adam's moments in float32, matmuls in bfloat16, and each layer
recomputed in the backward pass.

Plan      cotjax plan --config configs/pod.py --config.model.base=llama-3.2-3b \
              --config.mesh.data=1 --config.mesh.fsdp=16 --config.train.batch=32 --topology v6e:4x4
"""

from cotjax.config import default_config


def get_config(world="alfworld"):
    config = default_config(world)
    if world == "alfworld":
        config.games.source = "alfworld"
        config.games.eval_split = "valid_unseen"
    config.model.compute_dtype = "bfloat16"
    config.data.max_length = 4096
    config.train.row_length = 4096
    config.train.learning_rate = 1e-5
    config.train.steps = 600
    config.train.warmup = 30
    config.train.save_every = 100
    config.train.b2 = 0.95
    config.train.remat = "block"
    config.train.scan_layers = True
    config.evaluate.slots = 64
    config.evaluate.tensor = 4  # the chips of one host: each host plays by itself
    config.evaluate.max_length = 8192
    config.evaluate.max_new_tokens = 512
    return config
