r"""Qwen3-32B on two slices of 256 TPU v5e chips: rows of 4,096 tokens, float32 state by fsdp.

Plan      cotjax plan --config configs/qwen3_32b_two_v5e_16x16.py --topology v5e:16x16 --slices 2
Result    of the plan: train step 9.4 GiB of 16 a chip; the sampler fits too
Command   cotjax train --config configs/qwen3_32b_two_v5e_16x16.py \
              --config.model.base=/data/Qwen3-32B \
              --config.data.trajectories=/data/train.jsonl
Hardware  two v5litepod-256: 128 hosts of 4 chips, 16 GiB a chip
"""

import pod


def get_config():
    config = pod.get_config()
    config.title = "Where the gains of CoT training land: Qwen3-32B"
    config.out = "runs/qwen3_32b_two_v5e_16x16"
    config.model.base = "qwen3-32b"
    config.mesh.data = 2
    config.mesh.fsdp = 128
    config.mesh.tensor = 2
    config.train.batch = 256
    # The weights are too large for the four chips of a host: play the checkpoints elsewhere.
    config.games.in_domain = 0
    config.games.ood = 0
    config.evaluate.tensor = 8
    return config
