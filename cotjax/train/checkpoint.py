"""Checkpoints by Orbax: parameters, optimizer, data position and what the run was.

Each step's folder holds the items `params`, `opt_state` and `run` (JSON: step, data iterator state, seed, settings), so that an
evaluation restores the parameters alone. Restoring goes onto any mesh. With LoRA too `params` are all of them, the frozen base among
them: each checkpoint stands alone, for the price of the base's size.

Beside the items stands `sums.json`: the size and the checksum of every file, written before the folder gets its name. A checkpoint
whose files are not those is damaged, and is never loaded.
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
_PART_BYTES = 1 << 22  # read at once while a checksum is made


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
    """The checkpoints of one arm, under `folder`. Without `keep`, they are only read."""

    def __init__(self, folder: str | Path, keep: Keep | None = None, alone: bool = False):
        """`alone`: for one process of several, which reads onto its own devices when it likes; else all of them do everything together."""
        self.folder = Path(folder).resolve()
        self._keep, self._alone = keep, alone
        self._saving: int | None = None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            # A save that was cut off is no checkpoint; another process may be in the midst of one, while this one only reads.
            cleanup_tmp_directories=keep is not None,
            # The metadata of a damaged checkpoint must not stand in the way of the others.
            lightweight_initialize=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_sums),
        )
        self._manager = ocp.CheckpointManager(
            self.folder, options=_apart(options) if alone else options
        )

    def steps(self) -> list[int]:
        """Finished checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, run: dict, loss: float | None = None) -> None:
        """Begin to save; the loop goes on. `run` must be JSON; `loss`, the held-out one in nats, is what `Keep` ranks by.

        Raises:
          DataError: it cannot be written, or the save before it could not.
        """
        step = run["step"]
        if loss is not None:
            self._keep.losses[step] = loss
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave(state.opt_state),
            run=ocp.args.JsonSave(run),
        )
        self._written(self._manager.wait_until_finished)
        self._saving = step
        self._written(lambda: self._manager.save(step, args=items, force=True))

    def resume(
        self, like: TrainState, warn: Callable[[str], None]
    ) -> tuple[TrainState, dict] | None:
        """The newest checkpoint that is whole, as `restore` gives it; None where there is none.

        Newer ones that are damaged are named to `warn` and put aside, as `30.damaged-1`, so that the step can be saved again.

        Raises:
          DataError: a checkpoint of another model, or one that is whole and cannot be restored.
        """
        for step in reversed(self.steps()):
            reason = self._damage(step)
            if reason is None:
                return self.restore(step, like)
            aside = self._put_aside(step)
            warn(
                f"{self.folder / str(step)}: {reason}; this checkpoint is damaged and not used, it is now {aside.name}"
            )
        return None

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
        """The parameters alone, sharded over `mesh`.

        Raises:
          DataError: there is no such checkpoint, it is damaged, or of another model.
        """
        like = abstract_params(config, mesh)
        if step in self.steps() and (reason := self._damage(step, "params")) is not None:
            raise DataError(
                f"{self.folder / str(step)}: {reason}; this checkpoint is damaged, and cannot be used"
            )
        self._check_shapes(step, like)
        return self._restore(step, ocp.args.Composite(params=ocp.args.StandardRestore(like)))[
            "params"
        ]

    def digest(self, step: int) -> str:
        """A hash of the sums of a finished checkpoint: which files it was, 32 hexadecimal digits."""
        return hashlib.blake2b(
            (self.folder / str(step) / _SUMS).read_bytes(), digest_size=16
        ).hexdigest()

    def close(self) -> None:
        """Return when every begun save is on disk.

        Raises:
          DataError: the last save could not be written.
        """
        self._written(self._manager.close)

    def _written(self, write: Callable[[], Any]) -> None:
        """Run what may find that a save went wrong, this one or the one before it, and say so in one line."""
        try:
            write()
        except (OSError, ValueError, RuntimeError, TimeoutError) as error:
            text = " ".join(str(error).split())
            full = "No space left on device" in text or "Disk quota exceeded" in text
            reason = "the disk is full" if full else text[:300]
            kept = [step for step in saved_steps(self.folder) if step != self._saving]
            raise DataError(
                f"{self.folder / str(self._saving)}: the checkpoint could not be saved ({reason}); those of steps {kept} are as they were; "
                "make room, and the same command goes on from the last of them"
            ) from error

    def _write_sums(self) -> None:
        """Called by Orbax, on one process and beside the loop, when all files of a save are there and its folder has no name yet."""
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
        """What is wrong with a checkpoint's files (or with one item's); None where nothing is. Each process looks at its share."""
        if self._alone:
            return damage(self.folder / str(step), item)
        reason = damage(self.folder / str(step), item, jax.process_index(), jax.process_count())
        if jax.process_count() > 1:
            found = multihost_utils.process_allgather(np.array(reason is not None))
            reason = reason or ("another process found it so" if found.any() else None)
        return reason

    def _put_aside(self, step: int) -> Path:
        folder = self.folder / str(step)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("every process has seen the damage")
        name = distributed.from_first("put aside", lambda: put_aside(folder).name)
        self._manager.reload()
        return folder.with_name(name)

    def _check_shapes(self, step: int, params: dict) -> None:
        """Compare names and shapes before anything is read: a restore that fails half-way leaves reads behind."""
        if step not in self._manager.all_steps():
            raise DataError(
                f"{self.folder}: no checkpoint at step {step}; there are {self.steps() or 'none'}"
            )
        check_shapes(self.folder / str(step) / "params", params)

    def _restore(self, step: int, items: ocp.args.Composite):
        try:
            return self._manager.restore(step, args=items)
        except (ValueError, KeyError, FileNotFoundError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{self.folder}/{step}: cannot be restored into this model ({reason}); is it a checkpoint of another model?"
            ) from error


def _apart(options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManagerOptions:
    """The same for one process that reads, whatever the others do."""
    process = jax.process_index()
    itself = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"process {process}",
    )
    return replace(options, read_only=True, create=False, multiprocessing_options=itself)


def damage(folder: Path, item: str = "", share: int = 0, shares: int = 1) -> str | None:
    """What is wrong with the files of a checkpoint, by its sums; None where nothing is.

    Only those of `item`, such as "params", where one is named; and of these only every `shares`-th, from the `share`-th on.
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
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes, and had {size}"
            if _checksum(folder / name) != checksum:
                return f"{name} is not what was written (its checksum differs)"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def _checksum(path: Path) -> int:
    """CRC-32 of a file."""
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(_PART_BYTES):
            checksum = zlib.crc32(part, checksum)
    return checksum


def _abstract(tree):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )
