"""Checks of a state after an update, before it is saved: finite numbers, and the held-out loss.

A step's loss is that of the parameters before its update. A divergent update would show one step
later, when its parameters were already saved as the checkpoint that every restart resumes from.
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
from cotjax.data.pipeline import Example
from cotjax.errors import DataError
from cotjax.masking import Dropping, Role
from cotjax.model.params import param_shardings
from cotjax.model.sharding import batch_sharding
from cotjax.objectives.objective import Pairs
from cotjax.runtime.arrays import global_batch
from cotjax.train.run import Run
from cotjax.train.step import FIELDS, TrainState

# When every array of parameters has at most this root mean square, no step can overflow, forward or
# backward: a normed activation times its scale is about 1e2, its projection from a width of 1e4
# about 1e6, gate times up 1e12, and their projection from 4e4 about 2e16. Its square, 4e32, is the
# largest number of a step; float32 and bfloat16 reach 3e38. Trained models stay well below 1e2.
LARGE = 1e2


@jax.jit
def _extremes(state: TrainState) -> tuple[jax.Array, jax.Array]:
    """Return (largest root mean square of a parameter array, whether the state is finite)."""
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
    run: Run, mesh: Mesh, *, scan: bool = False, kernel: str = "auto"
) -> Callable[[dict, dict], Pairs]:
    """Return (params, batch) -> the pairs of a run's held-out loss, compiled when called.

    They are "by_role", of the negative log-probabilities of targets, and of another objective than
    the supervised one its "loss".
    """
    objective = run.make_objective(mesh, scan=scan, kernel=kernel)
    names = ("by_role",) if run.objective is None else ("by_role", "loss")
    fields = dict.fromkeys(FIELDS[run.kind], batch_sharding(mesh))

    def forward(params: dict, batch: dict) -> Pairs:
        pairs = objective(params, batch)
        return {name: pairs[name] for name in names}

    return jax.jit(forward, in_shardings=(param_shardings(run.model, mesh), fields))


class HeldOut:
    """The mean loss over held-out examples: nats per supervised token, or the objective's own loss.

    Nothing is dropped.
    """

    def __init__(
        self,
        source: Sequence[Example],
        forward: Callable[[dict, dict], Pairs],
        mesh: Mesh,
        settings: Any,
        dropping: Dropping,
        rows: Sequence[int],
    ):
        self._source, self._forward, self._mesh, self._rows = source, forward, mesh, rows
        self._sizes = {
            "row_length": settings.row_length,
            "batch": settings.batch,
            "dropping": dropping,
        }

    def row(self, step: int, params: dict) -> dict:
        """Return the row for metrics.jsonl of the parameters after `step` updates.

        Raises:
          DataError: no held-out token is supervised.
        """
        begun = time.perf_counter()
        totals = []
        for own in held_out_batches(self._source, rows=self._rows, **self._sizes):
            batch = global_batch(own, batch_sharding(self._mesh), self._sizes["batch"])
            with jax.set_mesh(self._mesh):
                totals.append(jax.device_get(self._forward(params, batch)))
        # Summed in float64, so that the rounding does not grow with the number of batches.
        losses, weights = _total(totals, "by_role")
        # The supervised loss is the mean over tokens, whatever the run's normalizer.
        loss, count = losses.sum(), weights.sum()
        if "loss" in totals[0]:
            loss, count = _total(totals, "loss")
        if not weights.sum():
            raise DataError(
                "no token of the held-out examples is supervised; check masking.supervised and "
                "train.eval_share"
            )
        roles = [role for role in Role if weights[role]]
        of_roles = {
            "supervised": {role.name: int(weights[role]) for role in roles},
            "loss_by_role": {role.name: float(losses[role] / weights[role]) for role in roles},
        }
        held_out = {
            "loss": float(loss / count),
            "examples": len(self._source),
            **of_roles,
        }
        return {
            "step": step,
            "held_out": held_out,
            "time": {"held_out_s": time.perf_counter() - begun},
        }


def _total(totals: Sequence[Pairs], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of one of the pairs over batches, float64."""
    sums, weights = np.sum([np.asarray(each[name], np.float64) for each in totals], axis=0)
    return sums, weights
