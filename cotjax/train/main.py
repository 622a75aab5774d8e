"""Training, top to bottom: restore or start, then step, log and save until done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from cotjax import distributed
from cotjax.data.pipeline import Masking, batches, dropped_weights
from cotjax.errors import UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.decoder import REMAT
from cotjax.model.kernels import KERNELS
from cotjax.model.sharding import batch_parts, batch_sharding, make_mesh
from cotjax.train.checkpoint import Checkpoints
from cotjax.train.metrics import MetricsFile, as_row
from cotjax.train.optim import configured
from cotjax.train.step import init_state, make_train_step


def checkpoint_steps(steps: int, save_every: int) -> list[int]:
    """The steps at which a run saves: 0 (what it starts from), every `save_every`, and the last."""
    return sorted({*range(0, steps + 1, save_every), steps})


def check_counts(settings: Any) -> None:
    """Raise UsageError when a count of the config's `train` section is not positive."""
    for name in ("steps", "save_every", "batch", "row_length", "accumulate"):
        if settings[name] < 1:
            raise UsageError(f"train.{name} is {settings[name]}; it must be at least 1")
    if settings.remat not in REMAT:
        raise UsageError(f"train.remat is {settings.remat!r}; there are {', '.join(REMAT)}")
    if settings.attention not in ("auto", *KERNELS):
        raise UsageError(f"train.attention is {settings.attention!r}; there are auto, {', '.join(KERNELS)}")


def check_batch(settings: Any, mesh: jax.sharding.Mesh) -> None:
    """Raise UsageError when the config's batch does not divide over the mesh and its parts."""
    if settings.batch % (batch_parts(mesh) * settings.accumulate):
        shared = f"{batch_parts(mesh)} devices that share it" + (f" x {settings.accumulate} parts" if settings.accumulate > 1 else "")
        raise UsageError(f"train.batch ({settings.batch}) must be a multiple of the {shared}")


def train(
    settings: Any,
    *,
    folder: str | Path,
    source: Sequence[dict],
    masking: Masking,
    model: ModelConfig,
    make_params: Callable[[jax.sharding.Mesh], dict],
    mesh_shape: dict[str, int],
    seed: int,
    report: Callable[[int, int, dict], None] = lambda step, steps, row: None,
) -> Path:
    """Train one arm and return its checkpoint folder. Run again, it goes on from the last checkpoint.

    Args:
      settings: the config's `train` section.
      folder: holds `checkpoints/` and `metrics.jsonl` afterwards.
      source: the dataset's random-access source.
      masking: which targets are trained on.
      model, make_params: the decoder, and how its first parameters come onto a mesh.
      mesh_shape: sizes of the axes data, fsdp and tensor; one may be -1.
      report: called with (step, steps, metrics row) after each logged step.

    Raises:
      UsageError: a count of zero, a batch that the mesh does not divide, a folder that holds another run.
      DataError: nothing to supervise, a loss that is not finite, a checkpoint of another model.
    """
    # ---- fail before anything is spent
    check_counts(settings)
    folder = Path(folder)
    mesh = make_mesh(**mesh_shape)
    check_batch(settings, mesh)
    run = {"train": dict(settings), "masking": asdict(masking), "model": asdict(model), "seed": seed}
    if distributed.first():
        _claim(folder, run)
    distributed.barrier("claimed")

    # ---- model, optimizer, step
    schedule, optimizer = configured(settings)
    with jax.set_mesh(mesh):
        state = init_state(model, optimizer, make_params(mesh), mesh)
        train_step = make_train_step(
            model,
            optimizer,
            state.params,
            mesh,
            remat=settings.remat,
            normalizer=masking.normalizer,
            accumulate=settings.accumulate,
            scan=settings.scan_layers,
            kernel=settings.attention,
        )

    # ---- data
    dropping = masking.dropping()
    rows = distributed.local_rows(batch_sharding(mesh), settings.batch)
    iterator = iter(batches(source, row_length=settings.row_length, batch=settings.batch, masking=masking, seed=seed))

    # ---- resume
    checkpoints = Checkpoints(folder / "checkpoints")
    saved = checkpoints.steps()
    start = saved[-1] if saved else 0
    if saved:
        state, before = checkpoints.restore(start, like=state)
        iterator.set_state(before["iterator"])
    else:
        checkpoints.save(state, run | {"step": 0, "iterator": iterator.get_state()})
    metrics_file = MetricsFile(folder / "metrics.jsonl", resume_step=start) if distributed.first() else None

    # ---- loop: dispatch step n, then read what step n - 1 measured, so that the host never makes the device wait
    pending = None
    clock = time.perf_counter()
    to_save = set(checkpoint_steps(settings.steps, settings.save_every))
    try:
        for step in range(start + 1, settings.steps + 1):
            batch = dropped_weights(next(iterator), dropping.fraction_at(step - 1))
            batch = distributed.global_batch({name: x[rows] for name, x in batch.items()}, batch_sharding(mesh), settings.batch)
            with jax.set_mesh(mesh):
                state, metrics = train_step(state, batch)
            if pending is not None:
                clock = _log(*pending, schedule, clock, metrics_file, settings, report)
            pending = (step, metrics)
            if step in to_save:
                # The loss is looked at before the parameters behind it are kept.
                clock = _log(*pending, schedule, clock, metrics_file, settings, report)
                pending = None
                checkpoints.save(state, run | {"step": step, "iterator": iterator.get_state()})
    finally:
        # ---- done, or stopped: what was begun is written whole
        checkpoints.close()
        if metrics_file is not None:
            metrics_file.close()
    return folder / "checkpoints"


def _log(step, metrics, schedule, clock, metrics_file, settings, report) -> float:
    metrics = jax.device_get(metrics)
    now = time.perf_counter()
    row = as_row(step, metrics, float(schedule(step - 1)), now - clock)
    if metrics_file is not None:
        metrics_file.write(row)
        report(step, settings.steps, row)
    return now


def _claim(folder: Path, run: dict) -> None:
    """Take `folder` for this run, or find that it is this run's already.

    Raises UsageError, naming the first setting that differs, when it holds another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    mine = json.loads(json.dumps(run))
    if file.exists():
        theirs = json.loads(file.read_text())
        for section, values in mine.items():
            other = theirs.get(section)
            if other == values:
                continue
            name, was, now = section, other, values
            if isinstance(values, dict) and isinstance(other, dict):
                key = next(key for key in {**other, **values} if other.get(key) != values.get(key))
                name, was, now = f"{section}.{key}", other.get(key), values.get(key)
            raise UsageError(f"{folder} holds another run ({name} is {was!r} there, {now!r} here); choose another folder with --out")
    else:
        file.write_text(json.dumps(mine, indent=2) + "\n")
