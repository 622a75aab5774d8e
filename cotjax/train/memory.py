"""The memory that a run needs, told before its first update."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cotjax.model.platform import platform_of
from cotjax.objectives.objective import Objective
from cotjax.runtime.progress import Listener
from cotjax.train.step import TrainState, abstract_batch

# Where Linux keeps the limit of a container; a machine without one has its physical memory.
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def bytes_a_device(tree: Any) -> int:
    """Return the bytes that each device holds of these arrays, or of their shapes."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def peak_bytes(program: Any, platform: str) -> int:
    """Return the most bytes of a device in use at a time, arguments and code included."""
    memory: Any = program.memory_analysis()
    # The sum of all allocations, for a compiler that reports no peak: that for CPU reports one
    # without the temporaries.
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    peak = 0 if platform == "cpu" else memory.peak_memory_in_bytes
    return (peak or total) + memory.generated_code_size_in_bytes


def kept_bytes(objective: Objective, params: Any, length: int, kind: str = "supervised") -> float:
    """Return the bytes a row that the forward pass keeps for the backward pass.

    The difference between three rows and two. `params`: arrays or shapes; `kind`: of the batches,
    a key of step.FIELDS.
    """

    def kept(rows: int) -> int:
        def pull_of(params: Any, batch: dict) -> Any:
            return jax.vjp(lambda p: objective(p, batch)["loss"][0], params)[1]

        pull = jax.eval_shape(pull_of, params, abstract_batch(rows, length, kind=kind))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))

    return kept(3) - kept(2)


def memory_here(mesh: Mesh) -> int | None:
    """Return the bytes that a device of this process may use; None where that is not known.

    The devices that a CPU is divided into share its memory.
    """
    devices = mesh.local_devices
    if platform_of(mesh) == "cpu":
        return _host_memory() // len(devices)
    stats = devices[0].memory_stats() or {}
    return stats.get("bytes_limit")


def devices_summed(mesh: Mesh) -> int:
    """Return the number of devices that are told as one memory: those of a CPU, else 1."""
    return len(mesh.local_devices) if platform_of(mesh) == "cpu" else 1


def _host_memory() -> int:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = (path.read_text().strip() for path in _LIMITS if path.is_file())
    return min([physical, *(int(limit) for limit in limits if limit.isdigit())])


def say_memory(program: Any, state: TrainState, mesh: Mesh, listener: Listener) -> None:
    """Tell what a compiled train step needs, and warn where that is more than there is."""
    line, warning = memory_lines(
        peak_bytes(program, platform_of(mesh)),
        state.params,
        state.opt_state,
        memory_here(mesh),
        devices_summed(mesh),
    )
    listener.say(line)
    if warning:
        listener.warn(warning)


def memory_lines(
    peak: int, params: Any, opt_state: Any, available: int | None, devices: int
) -> tuple[str, str | None]:
    """Return a line on what a train step needs, and a warning where that is more than there is.

    Args:
      peak: of the compiled step, bytes a device.
      params, opt_state: arrays or shapes.
      available: bytes a device; None: not known.
      devices: number of devices that are summed (`devices_summed`).
    """
    parameters, optimizer = bytes_a_device(params), bytes_a_device(opt_state)
    rest = max(0, peak - parameters - optimizer)
    needed = gigabytes(peak * devices)
    there = "" if available is None else f" of {gigabytes(available * devices)}"
    parts = (gigabytes(part * devices) for part in (parameters, optimizer, rest))
    line = (
        "memory: a step needs {}{}: parameters {}, optimizer {}, gradients and activations {}"
    ).format(needed, there, *parts)
    if available is None or peak <= available:
        return line, None
    return line, (
        f"a step needs {needed} of memory, and there are {gigabytes(available * devices)}: raise "
        "train.accumulate, set train.remat to 'block', or train adapters (model.lora_rank)"
    )


def gigabytes(count: float) -> str:
    """Return a number of bytes in GB, or below one in MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
