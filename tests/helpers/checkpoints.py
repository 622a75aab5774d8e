"""Checkpoints of a tiny state whose numbers tell its step."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cotjax.train.checkpoint import Checkpoints, Keep
from cotjax.train.step import TrainState

PLANNED = range(0, 1000, 10)


def state(step: int, size: int = 300) -> TrainState:
    """Return a state whose numbers tell `step`."""
    params = {
        "model": {"weight": jnp.full((size,), step, jnp.float32), "scale": jnp.arange(8.0) + step}
    }
    return TrainState(jnp.int32(step), params, {"mu": jnp.full((size,), -step, jnp.float32)})


def save(folder: Path, *steps: int, keep: Keep | None = None, losses: dict | None = None) -> None:
    """Save a checkpoint of each step."""
    checkpoints = Checkpoints(folder, keep or Keep(PLANNED))
    for step in steps:
        checkpoints.save(
            state(step), {"step": step, "iterator": {"at": step}}, (losses or {}).get(step)
        )
    checkpoints.close()


def resumed(folder: Path) -> tuple[int | None, list[str]]:
    """Return the step that a resume restores, and its warnings; check what it restored."""
    warned: list[str] = []
    checkpoints = Checkpoints(folder, Keep(PLANNED))
    match = checkpoints.resume(state(0), warned.append)
    checkpoints.close()
    if match is None:
        return None, warned
    restored, run = match
    jax.tree.map(np.testing.assert_array_equal, restored, state(run["step"]))
    assert run["iterator"] == {"at": run["step"]}
    return run["step"], warned
