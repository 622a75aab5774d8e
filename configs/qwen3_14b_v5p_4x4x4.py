r"""Qwen3-14B on 64 TPU v5p chips: rows of 4,096 tokens, float32 state sharded by fsdp.

Plan      cotjax plan --config configs/qwen3_14b_v5p_4x4x4.py --topology v5p:4x4x4
Result    of the plan: train step 35.0 GiB of 95 a chip; the sampler fits too
Command   cotjax train --config configs/qwen3_14b_v5p_4x4x4.py --config.model.base=/data/Qwen3-14B \
              --config.data.trajectories=/data/train.jsonl
Hardware  v5p-128: 16 hosts of 4 chips, 95 GiB a chip
"""

import pod


def get_config():
    config = pod.get_config()
    config.title = "Where the gains of CoT training land: Qwen3-14B"
    config.out = "runs/qwen3_14b_v5p_4x4x4"
    config.model.base = "qwen3-14b"
    # Not fsdp 64: a shard of 80 rows is no multiple of a tile, and the plan then shows that the
    # compiler sums zero-padded shards instead of gathering them.
    config.mesh.data = 4
    config.mesh.fsdp = 16
    config.train.batch = 64
    config.train.remat = "dots"
    return config
