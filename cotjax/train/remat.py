"""`train.remat = "auto"`: the least recomputation for which a train step's memory is enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from cotjax.model.config import ModelConfig
from cotjax.model.layers import REMAT
from cotjax.model.params import split_params
from cotjax.model.platform import forms_of, platform_of
from cotjax.model.sharding import batch_parts
from cotjax.objectives.objective import Objective
from cotjax.runtime.progress import Listener
from cotjax.train.memory import bytes_a_device, gigabytes, kept_bytes, memory_here
from cotjax.train.run import Run
from cotjax.train.step import TrainState

AUTO = "auto"
# Share of a device's memory that the estimate may take: the compiler's own choices, and what the
# allocator cannot place.
_SHARE = 0.95


def remat_of(run: Run, state: TrainState, mesh: Mesh, listener: Listener, **layers: Any) -> str:
    """Return the run's remat, one of layers.REMAT; says which one "auto" is.

    `layers`: `scan` and `kernel`, as `Run.make_objective` takes them.
    """
    if run.settings.remat != AUTO:
        return run.settings.remat

    def make(remat: str) -> Objective:
        return run.make_objective(mesh, remat=remat, **layers)

    chosen, line = least_remat(
        run.model,
        state,
        make,
        batch=run.settings.batch // run.settings.accumulate,
        length=run.settings.row_length,
        sums=run.settings.accumulate > 1,
        scan=run.settings.scan_layers,
        mesh=mesh,
        kind=run.kind,
        available=memory_here(mesh),
    )
    listener.say(line)
    return chosen


def least_remat(
    model: ModelConfig,
    state: TrainState,
    make: Callable[[str], Objective],
    *,
    batch: int,
    length: int,
    sums: bool,
    scan: bool,
    mesh: Mesh,
    available: float | None,
    kind: str = "supervised",
) -> tuple[str, str]:
    """Return the first of layers.REMAT that fits, or the last, and a line that says so.

    Nothing is compiled: the forward pass is traced, and what it keeps for the backward pass is
    counted. On a CPU "none" is not taken, for what it keeps is more memory to move. Call it with no
    mesh set: the rows that it traces do not divide over one.

    Args:
      state: arrays or shapes, with shardings.
      make: returns the objective with one of layers.REMAT.
      batch, length: rows of a micro-batch, tokens of a row.
      sums: whether gradients are summed over micro-batches.
      scan: whether layers are scanned, which stacks a copy of their weights; joined projections are
        a copy too.
      available: bytes of a device; None: not known, and the last is taken.
      kind: of the batches, a key of step.FIELDS.
    """
    forms = forms_of(platform_of(mesh))
    names = list(REMAT)[list(REMAT).index(forms.least_remat) :]
    if available is None:
        return names[-1], f"remat: {names[-1]} (auto): the device's memory is not known"
    rows = batch / batch_parts(mesh)
    gradients = bytes_a_device(split_params(model, state.params)[0]) * (2 if sums else 1)
    params = bytes_a_device(state.params)
    held = params + bytes_a_device(state.opt_state) + gradients
    if scan or (forms.joined_in_training and model.lora is None):
        held += params * model.compute_as.itemsize // model.params_as.itemsize
    fixed = held + _loss_bytes(model, rows * min(length, forms.loss_chunk))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params)

    def kept(name: str) -> float:
        return kept_bytes(make(name), shapes, length, kind) * rows

    # A layer that is computed again holds all that it would have kept, and its gradients.
    layer = 2 * kept("none") / model.layers
    needs: dict[str, float] = {}
    for name in names:
        needs[name] = fixed + layer + kept(name)
        if needs[name] <= _SHARE * available:
            break
    chosen = list(needs)[-1]
    line = (
        f"remat: {chosen} (auto), about {gigabytes(needs[chosen])} of {gigabytes(available)} a "
        "device"
    )
    others = [f"{name} would take {gigabytes(needs[name])}" for name in list(needs)[:-1]]
    return chosen, "; ".join([line, *others])


def _loss_bytes(model: ModelConfig, positions: float) -> float:
    """Return the bytes of a chunk's logits and their gradient, and of the projection's gradient."""
    logits = positions * model.vocab_size * (4 + model.compute_as.itemsize)
    return logits + 4 * model.vocab_size * model.width
