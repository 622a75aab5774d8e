r"""Qwen3-4B on 16 TPU v5e chips: rows of 4,096 tokens, float32 state sharded by fsdp.

Plan      cotjax plan --config configs/qwen3_4b_v5e_4x4.py --topology v5e:4x4
Result    of the plan: train step 9.0 GiB of 16 a chip, sampler 7.2
Command   cotjax train --config configs/qwen3_4b_v5e_4x4.py --config.model.base=/data/Qwen3-4B \
              --config.data.trajectories=/data/train.jsonl
Hardware  v5litepod-16: 4 hosts of 4 chips, 16 GiB a chip
"""

import pod


def get_config():
    config = pod.get_config()
    config.title = "Where the gains of CoT training land: Qwen3-4B"
    config.out = "runs/qwen3_4b_v5e_4x4"
    config.model.base = "qwen3-4b"
    config.mesh.data = 1
    config.mesh.fsdp = 16
    config.train.batch = 32
    config.train.accumulate = 2
    return config
