r"""Llama-3.1-8B on 16 TPU v5p chips: rows of 4,096 tokens, float32 state sharded by fsdp.

Plan      cotjax plan --config configs/llama3_8b_v5p_2x2x4.py --topology v5p:2x2x4
Result    of the plan: train step 33.7 GiB of 95 a chip; the sampler fits too
Command   cotjax train --config configs/llama3_8b_v5p_2x2x4.py \
              --config.model.base=/data/Llama-3.1-8B \
              --config.data.trajectories=/data/train.jsonl
Hardware  v5p-32: 4 hosts of 4 chips, 95 GiB a chip
"""

import pod


def get_config():
    config = pod.get_config()
    config.title = "Where the gains of CoT training land: Llama-3.1-8B"
    config.out = "runs/llama3_8b_v5p_2x2x4"
    config.model.base = "llama-3.1-8b"
    config.data.template = "llama3"
    config.mesh.data = 1
    config.mesh.fsdp = 16
    config.train.batch = 32
    config.train.remat = "dots"
    return config
