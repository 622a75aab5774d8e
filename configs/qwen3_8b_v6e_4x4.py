r"""Qwen3-8B on 16 TPU v6e chips: rows of 4,096 tokens, float32 state sharded by fsdp.

Plan      cotjax plan --config configs/qwen3_8b_v6e_4x4.py --topology v6e:4x4
Result    of the plan: train step 12.9 GiB of 32 a chip
Command   cotjax train --config configs/qwen3_8b_v6e_4x4.py --config.model.base=/data/Qwen3-8B \
              --config.data.trajectories=/data/train.jsonl
Hardware  v6e-16: 4 hosts of 4 chips, 32 GiB a chip
"""

import pod


def get_config():
    config = pod.get_config()
    config.title = "Where the gains of CoT training land: Qwen3-8B"
    config.out = "runs/qwen3_8b_v6e_4x4"
    config.model.base = "qwen3-8b"
    config.mesh.data = 1
    config.mesh.fsdp = 16
    config.train.batch = 16
    return config
