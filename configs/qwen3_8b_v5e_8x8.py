r"""Qwen3-8B on 64 TPU v5e chips: rows of 4,096 tokens, float32 state sharded by fsdp.

Plan      cotjax plan --config configs/qwen3_8b_v5e_8x8.py --topology v5e:8x8
Result    of the plan: train step 7.6 GiB of 16 a chip; the sampler fits too
Command   cotjax train --config configs/qwen3_8b_v5e_8x8.py --config.model.base=/data/Qwen3-8B \
              --config.data.trajectories=/data/train.jsonl
Hardware  v5litepod-64: 16 hosts of 4 chips, 16 GiB a chip
"""

import pod


def get_config():
    config = pod.get_config()
    config.title = "Where the gains of CoT training land: Qwen3-8B"
    config.out = "runs/qwen3_8b_v5e_8x8"
    config.model.base = "qwen3-8b"
    config.mesh.data = 1
    config.mesh.fsdp = 64
    config.train.batch = 64
    return config
