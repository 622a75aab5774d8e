"""Run by test_weights_memory.py in processes of its own: what reading and writing a checkpoint
takes beside the parameters.

On CPU the parameters are host memory too: the peak above what the process held before, less the
parameters, is what loading took on top.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

from cotjax.model.config import ModelConfig
from cotjax.model.params import declared, param_shardings
from cotjax.model.sharding import make_mesh
from cotjax.weights.huggingface import load_hf, save_hf

# 218 MB: matrices of 1.0 and 4.2 MB, and the two largest of 8.4 MB, one read first and one last.
CONFIG = ModelConfig(
    vocab_size=4096,
    width=512,
    layers=12,
    heads=8,
    kv_heads=8,
    head_size=64,
    feed_forward=2048,
    tied_embeddings=False,
    max_length=512,
)
PART = 40_000_000
# What moves without any loading: stacks, compiled programs, the allocator's and the page tables'
# own.
SLACK = 4_000_000


def main(folder: Path, dtype: str) -> None:
    assert safetensors.numpy, "what the two functions import is there before anything is measured"
    sizes = [np.prod(weight.shape) for weight in declared(CONFIG).values()]
    largest, own = 4 * max(sizes), jax.numpy.dtype(dtype).itemsize * sum(sizes)
    mesh = make_mesh(data=1, fsdp=-1)
    jax.block_until_ready(jax.device_put(np.zeros((8, 8), np.float32), mesh.devices.flat[0]))

    before = forget_peak()
    config, params = load_hf(folder, mesh, param_dtype=dtype)
    above = status("VmHWM") - before - own
    print(
        f"load {dtype} on {jax.device_count()}: {above / 1e6:.1f} MB above the parameters' "
        f"{own / 1e6:.0f} MB"
    )
    assert above <= 2 * largest + SLACK
    for x, where in zip(
        jax.tree.leaves(params), jax.tree.leaves(param_shardings(config, mesh)), strict=True
    ):
        assert x.sharding.is_equivalent_to(where, x.ndim)

    before = forget_peak()
    save_hf(folder.with_name(f"{dtype}-{jax.device_count()}"), config, params, max_shard_bytes=PART)
    above = status("VmHWM") - before
    print(
        f"save {dtype} on {jax.device_count()}: {above / 1e6:.1f} MB for parts of "
        f"{PART / 1e6:.0f} MB"
    )
    assert above <= PART + 2 * largest + SLACK


def status(field: str) -> int:
    """Bytes in a field of /proc/self/status."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )
    return int(line.split()[1]) * 1024


def forget_peak() -> int:
    """Starts the peak anew; returns the bytes now resident."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
