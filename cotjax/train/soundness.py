"""Whether a state is worth keeping: what its parameters give, measured after an update and before a checkpoint is made of it.

A train step's loss is that of the parameters before its update. An update that blows them up shows in the step after it, when they
would already be the checkpoint that every restart goes on from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cotjax.data.held_out import held_out_batches
from cotjax.data.pipeline import Masking
from cotjax.errors import DataError
from cotjax.masking import Role
from cotjax.model.config import ModelConfig
from cotjax.model.params import param_shardings
from cotjax.model.sharding import batch_sharding
from cotjax.objectives.supervised import make_objective
from cotjax.runtime.arrays import global_batch
from cotjax.train.step import BATCH_FIELDS, TrainState

# Where every array of parameters has a root mean square up to this, a step neither forward nor backward can overflow: a normed activation
# times its scale is some 1e2, a projection of it over a width of 1e4 1e6, gate times up 1e12 and its projection over 4e4 2e16, whose
# square is the largest number there is, 4e32; numbers end at 3e38, in bfloat16 as in float32. Trained models stay well below 1e2.
LARGE = 1e2


@jax.jit
def _extremes(state: TrainState) -> tuple[jax.Array, jax.Array]:
    """(the largest root mean square of an array of parameters, whether all numbers of the state are finite)."""
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    sizes = [
        jnp.sqrt(jnp.square(leaf.astype(jnp.float32)).mean())
        for leaf in jax.tree.leaves(state.params)
    ]
    return jnp.stack(sizes).max(), jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


def is_sound(
    state: TrainState, probe: Callable[[dict], tuple[jax.Array, jax.Array]] | None = None
) -> bool:
    """Return whether a state is finite, and the loss and gradient of its parameters too.

    `probe(params)` returns the loss and the gradient's norm. It costs a step, and a compilation the
    first time, so it is called only when parameters are LARGE.
    """
    largest, finite = jax.device_get(_extremes(state))
    if not finite:
        return False
    if probe is None or largest <= LARGE:
        return True
    return bool(np.isfinite(jax.device_get(probe(state.params))).all())


def make_forward(
    config: ModelConfig, mesh: Mesh, *, scan: bool = False, kernel: str = "auto"
) -> Callable[[dict, dict], tuple[jax.Array, jax.Array]]:
    """(params, batch) -> the (sum, weight) totals of its losses by role; compiled once, when it is first called."""
    objective = make_objective(config, mesh, scan=scan, kernel=kernel)
    places = (param_shardings(config, mesh), dict.fromkeys(BATCH_FIELDS, batch_sharding(mesh)))

    def forward(params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        return objective(params, batch)["by_role"]

    return jax.jit(forward, in_shardings=places)


class HeldOut:
    """The loss over held-out examples, in nats a supervised token: a mean over all of them, none of whose action losses is dropped."""

    def __init__(
        self,
        source: Sequence[dict],
        forward: Callable[[dict, dict], tuple[jax.Array, jax.Array]],
        mesh: Mesh,
        settings: Any,
        masking: Masking,
        rows: Sequence[int],
    ):
        self._source, self._forward, self._mesh, self._rows = source, forward, mesh, rows
        self._sizes = {
            "row_length": settings.row_length,
            "batch": settings.batch,
            "masking": masking,
        }

    def row(self, step: int, params: dict) -> dict:
        """A row for metrics.jsonl, of the parameters after so many updates.

        Raises:
          DataError: no held-out token is supervised.
        """
        begun = time.perf_counter()
        found = []
        for own in held_out_batches(self._source, rows=self._rows, **self._sizes):
            batch = global_batch(own, batch_sharding(self._mesh), self._sizes["batch"])
            with jax.set_mesh(self._mesh):
                found.append(jax.device_get(self._forward(params, batch)))
        # Added up in float64, so that many batches round no more than few.
        losses, weights = (
            np.sum(each, axis=0, dtype=np.float64) for each in zip(*found, strict=True)
        )
        if not weights.sum():
            raise DataError(
                "no token of the held-out examples is supervised; check masking.supervised and train.eval_share"
            )
        of_roles = {
            "supervised": {role.name: int(weights[role]) for role in Role if weights[role]},
            "loss_by_role": {
                role.name: float(losses[role] / weights[role]) for role in Role if weights[role]
            },
        }
        held_out = {
            "loss": float(losses.sum() / weights.sum()),
            "examples": len(self._source),
            **of_roles,
        }
        return {
            "step": step,
            "held_out": held_out,
            "time": {"held_out_s": time.perf_counter() - begun},
        }
