"""Checkpoints by Orbax: parameters, optimizer, data position and what the run was.

Each step's folder holds the items `params`, `opt_state` and `run` (JSON: step, data iterator state, seed, settings), so that an
evaluation restores the parameters alone. Restoring goes onto any mesh. With LoRA too `params` are all of them, the frozen base among
them: each checkpoint stands alone, for the price of the base's size.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from cotjax.errors import DataError
from cotjax.model import decoder
from cotjax.model.config import ModelConfig
from cotjax.train.step import TrainState


class Checkpoints:
    """The checkpoints of one arm, under `folder`."""

    def __init__(self, folder: str | Path, alone: bool = False):
        """`alone`: for one process of several, which reads onto its own devices when it likes; else all of them do everything together."""
        self.folder = Path(folder).resolve()
        self._manager = ocp.CheckpointManager(self.folder, options=_alone() if alone else ocp.CheckpointManagerOptions(max_to_keep=None))

    def steps(self) -> list[int]:
        """Finished checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, run: dict) -> None:
        """Begin to save; the loop goes on. `run` must be JSON."""
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave(state.opt_state),
            run=ocp.args.JsonSave(run),
        )
        self._manager.save(int(state.step), args=items)

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
        """The whole state, sharded as `like` is, and the `run` saved beside it."""
        self._check_shapes(step, like.params)
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(_abstract(like.params)),
            opt_state=ocp.args.StandardRestore(_abstract(like.opt_state)),
            run=ocp.args.JsonRestore(),
        )
        restored = self._restore(step, items)
        count = jax.device_put(np.int32(step), like.step.sharding)
        return TrainState(count, restored["params"], restored["opt_state"]), restored["run"]

    def restore_params(self, step: int, config: ModelConfig, mesh: Mesh) -> dict:
        """The parameters alone, sharded over `mesh`."""
        like = decoder.abstract_params(config, mesh)
        self._check_shapes(step, like)
        return self._restore(step, ocp.args.Composite(params=ocp.args.StandardRestore(like)))["params"]

    def close(self) -> None:
        """Return when every begun save is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _check_shapes(self, step: int, params: dict) -> None:
        """Compare names and shapes before anything is read: a restore that fails half-way leaves reads behind."""
        if step not in self._manager.all_steps():
            raise DataError(f"{self.folder}: no checkpoint at step {step}; there are {self.steps() or 'none'}")
        check_shapes(self.folder / str(step) / "params", params)

    def _restore(self, step: int, items: ocp.args.Composite):
        try:
            return self._manager.restore(step, args=items)
        except (ValueError, KeyError, FileNotFoundError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{self.folder}/{step}: cannot be restored into this model ({reason}); is it a checkpoint of another model?"
            ) from error


def _alone() -> ocp.CheckpointManagerOptions:
    process = jax.process_index()
    together = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process {process}"
    )
    return ocp.CheckpointManagerOptions(read_only=True, create=False, multiprocessing_options=together)


def check_shapes(folder: Path, params: dict) -> None:
    """Raise DataError unless the tree saved in `folder` has the names and shapes of `params`."""
    saved, wanted = _shapes(ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder)).tree), _shapes(params)
    for name in sorted({*saved, *wanted}):
        if saved.get(name) != wanted.get(name):
            raise DataError(
                f"{folder}: a checkpoint of another model: {name} is {saved.get(name, 'missing')} there, "
                f"{wanted.get(name, 'missing')} in this model"
            )


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    """Dotted name -> shape."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves}


def _abstract(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)
