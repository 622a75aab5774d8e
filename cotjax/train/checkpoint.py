"""Checkpoints by Orbax: parameters, optimizer state, data position and the run's settings.

The folder of a step holds the items `params`, `opt_state` and `run` (JSON: step, data iterator
state, seed, settings), so that an evaluation restores the parameters alone, onto any mesh. With
LoRA `params` includes the frozen base: each checkpoint is complete, at the cost of the base's size.

`sums.json` holds the size and checksum of every file. It is written before the folder gets its
name. A checkpoint whose files differ from it is damaged, and is never loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    EveryNSteps,
    LatestN,
    PolicyCheckpointInfo,
    PreservationContext,
)

from cotjax.errors import DataError, UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.params import abstract_params
from cotjax.runtime import distributed
from cotjax.runtime.claim import saved_steps
from cotjax.runtime.files import put_aside, write_atomic
from cotjax.train.step import TrainState
from cotjax.weights.orbax import check_shapes

_SUMS = "sums.json"
_PART_BYTES = 1 << 22  # read at once for a checksum


class Ranked(NamedTuple):
    """A checkpoint as Orbax's policies see it, ranked by (held-out loss, step)."""

    step: int
    time: datetime
    metrics: tuple[float, int]


@dataclass
class Keep:
    """Orbax's preservation policy: which checkpoints stay after each save.

    Of the steps that the run saves by plan, those of any rule below stay. A checkpoint of another
    step, saved because the run was asked to stop, is deleted once there is a later one.

    steps: the steps that the run saves by plan.
    last: number of newest checkpoints to keep (0: all).
    every: also keep every N-th step's checkpoint (0: off).
    best: also keep the N with the lowest held-out loss (0: off).
    losses: step -> held-out loss of its parameters, in nats.
    """

    steps: Collection[int]
    last: int = 0
    every: int = 0
    best: int = 0
    losses: dict[int, float] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("last", "every", "best"):
            if getattr(self, name) < 0:
                raise UsageError(
                    f"train.keep_{name} is {getattr(self, name)}; it must be at least 0"
                )
        for name in ("every", "best"):
            if getattr(self, name) and not self.last:
                raise UsageError(
                    f"train.keep_{name} is set, but train.keep_last is 0, which keeps all; "
                    "set that to 1 or more"
                )

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> list[bool]:
        """Return for each checkpoint, in order of step, whether it stays."""
        rules = [LatestN(self.last or None)]
        rules += [EveryNSteps(self.every)] if self.every else []
        # BestN keeps the end of its order: the lowest loss, and of equal ones the earliest step.
        rules += [BestN(get_metric_fn=tuple, reverse=True, n=self.best)] if self.best else []
        planned = [
            Ranked(info.step, info.time, (self.losses.get(info.step, math.inf), info.step))
            for info in checkpoints
            if info.step in self.steps
        ]
        stay = AnyPreservationPolicy(rules).should_preserve(planned, context=context)
        kept = {info.step for info, stays in zip(planned, stay, strict=True) if stays}
        return [info.step in kept or info is checkpoints[-1] for info in checkpoints]


class Checkpoints:
    """The checkpoints of one arm, under `folder`. Without `keep`, they are read only."""

    def __init__(self, folder: str | Path, keep: Keep | None = None, alone: bool = False):
        """Open the checkpoints.

        `alone`: one process of several reads onto its own devices at any time; otherwise all
        processes make every call together.
        """
        self.folder = Path(folder).resolve()
        self._keep, self._alone = keep, alone
        self._saving: int | None = None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            # Temporary folders are interrupted saves; but while this process only reads, another
            # one may be saving.
            cleanup_tmp_directories=keep is not None,
            # Do not read the metadata of all checkpoints: one may be damaged.
            lightweight_initialize=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_sums),
        )
        self._manager = ocp.CheckpointManager(
            self.folder, options=_single_process(options) if alone else options
        )

    def steps(self) -> list[int]:
        """Return the steps of the finished checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, run: dict, loss: float | None = None) -> None:
        """Begin to save, in the background.

        Args:
          state: what is saved; it may be donated afterwards.
          run: JSON, with the `step`.
          loss: the held-out loss in nats, by which `Keep` ranks.

        Raises:
          DataError: this checkpoint, or the one before it, cannot be written.
        """
        step = run["step"]
        if self._keep is not None and loss is not None:
            self._keep.losses[step] = loss
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave(state.opt_state),
            run=ocp.args.JsonSave(run),
        )
        self.finish()
        self._saving = step
        self._written(lambda: self._manager.save(step, args=items, force=True))

    def resume(
        self, like: TrainState, warn: Callable[[str], None]
    ) -> tuple[TrainState, dict] | None:
        """Restore the newest undamaged checkpoint, as `restore` does; None when there is none.

        Newer, damaged ones are reported to `warn` and renamed, to `30.damaged-1`, so that the step
        can be saved again.

        Raises:
          DataError: a checkpoint is of another model, or cannot be restored though undamaged.
        """
        for step in reversed(self.steps()):
            reason = self._damage(step)
            if reason is None:
                return self.restore(step, like)
            aside = self._put_aside(step)
            warn(
                f"{self.folder / str(step)}: {reason}; this checkpoint is damaged and not used; "
                f"it is renamed to {aside.name}"
            )
        return None

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
        """Return the state, sharded as `like` is, and the `run` saved with it."""
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
        """Return the parameters alone, sharded over `mesh`.

        Raises:
          DataError: there is no such checkpoint, it is damaged, or it is of another model.
        """
        like = abstract_params(config, mesh)
        if step in self.steps() and (reason := self._damage(step, "params")) is not None:
            raise DataError(
                f"{self.folder / str(step)}: {reason}; this checkpoint is damaged, and cannot be "
                "used"
            )
        self._check_shapes(step, like)
        return self._restore(step, ocp.args.Composite(params=ocp.args.StandardRestore(like)))[
            "params"
        ]

    def digest(self, step: int) -> str:
        """Return a hash of a finished checkpoint's sums, so of its files: 32 hexadecimal digits."""
        return hashlib.blake2b(
            (self.folder / str(step) / _SUMS).read_bytes(), digest_size=16
        ).hexdigest()

    def finish(self) -> None:
        """Wait until the last save is on the disk. Raises DataError as `close` does."""
        self._written(self._manager.wait_until_finished)

    def close(self) -> None:
        """Wait until every save is on the disk.

        Raises:
          DataError: the last save could not be written.
        """
        self._written(self._manager.close)

    def _written(self, write: Callable[[], Any]) -> None:
        """Call Orbax; turn the failure of this save, or the one before, into a DataError."""
        try:
            write()
        except (OSError, ValueError, RuntimeError, TimeoutError) as error:
            text = " ".join(str(error).split())
            full = "No space left on device" in text or "Disk quota exceeded" in text
            reason = "the disk is full" if full else text[:300]
            kept = [step for step in saved_steps(self.folder) if step != self._saving]
            raise DataError(
                f"{self.folder / str(self._saving)}: the checkpoint could not be saved ({reason}); "
                f"those of steps {kept} are unchanged; free some space, and the same command "
                "resumes from the last of them"
            ) from error

    def _write_sums(self) -> None:
        """Write sums.json. Orbax calls this on one process, from a thread of its own.

        By then all files of the save are there, but the folder still has its temporary name.
        """
        unnamed = next(
            self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"),
            self.folder / str(self._saving),
        )
        files = sorted(
            path for path in unnamed.rglob("*") if path.is_file() and path.parent != unnamed
        )
        sums = {
            path.relative_to(unnamed).as_posix(): [path.stat().st_size, _checksum(path)]
            for path in files
        }
        write_atomic(unnamed / _SUMS, json.dumps(sums, indent=0) + "\n")

    def _damage(self, step: int, item: str = "") -> str | None:
        """Say what is wrong with a checkpoint's files (or one item's); None when nothing is.

        Each process checks its share of the files.
        """
        if self._alone:
            return damage(self.folder / str(step), item)
        reason = damage(self.folder / str(step), item, jax.process_index(), jax.process_count())
        if jax.process_count() > 1:
            damaged = multihost_utils.process_allgather(np.array(reason is not None))
            reason = reason or ("another process found damage" if damaged.any() else None)
        return reason

    def _put_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint's folder; return its new path."""
        folder = self.folder / str(step)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("every process has seen the damage")
        name = distributed.from_first("put aside", lambda: put_aside(folder).name)
        self._manager.reload()
        return folder.with_name(name)

    def _check_shapes(self, step: int, params: dict) -> None:
        """Raise DataError unless a checkpoint has the names and shapes of `params`.

        This comes before the restore, because one that fails midway leaves reads running.
        """
        if step not in self._manager.all_steps():
            raise DataError(
                f"{self.folder}: no checkpoint at step {step}; there are {self.steps() or 'none'}"
            )
        check_shapes(self.folder / str(step) / "params", params)

    def _restore(self, step: int, items: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=items)
        except (ValueError, KeyError, FileNotFoundError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{self.folder}/{step}: cannot be restored into this model ({reason}); is it a "
                "checkpoint of another model?"
            ) from error


def _single_process(options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManagerOptions:
    """Return the options for one process that reads independently of the others."""
    process = jax.process_index()
    itself = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"process {process}",
    )
    return replace(options, read_only=True, create=False, multiprocessing_options=itself)


def damage(folder: Path, item: str = "", share: int = 0, shares: int = 1) -> str | None:
    """Say what is wrong with the files of a checkpoint, by its sums; None when nothing is.

    Checks only the files of `item`, such as "params", if one is named; and of these only every
    `shares`-th, from number `share` on.
    """
    try:
        sums: Mapping[str, list[int]] = json.loads((folder / _SUMS).read_text())
    except FileNotFoundError:
        return f"{_SUMS} is missing"
    except (ValueError, OSError) as error:
        return f"{_SUMS} cannot be read ({error})"
    for name in sorted(name for name in sums if name.startswith(item))[share::shares]:
        size, checksum = sums[name]
        try:
            size_now = (folder / name).stat().st_size
            if size_now != size:
                return f"{name} has {size_now} bytes, and had {size}"
            if _checksum(folder / name) != checksum:
                return f"{name} changed after it was written (its checksum differs)"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def _checksum(path: Path) -> int:
    """Return the CRC-32 of a file."""
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(_PART_BYTES):
            checksum = zlib.crc32(part, checksum)
    return checksum


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )
