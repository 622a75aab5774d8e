"""Training, top to bottom: restore or start, then step, log and save until done."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from cotjax.data.held_out import split
from cotjax.data.pipeline import Masking, batches, check_supervised, dropped_weights
from cotjax.errors import DataError, UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.kernels import KERNELS
from cotjax.model.layers import REMAT
from cotjax.model.sharding import batch_parts, batch_sharding, make_mesh
from cotjax.objectives.supervised import make_objective
from cotjax.runtime import distributed
from cotjax.runtime.arrays import global_batch, local_rows
from cotjax.runtime.claim import check_arm, claim_arm
from cotjax.runtime.provenance import git_revision, package_versions
from cotjax.runtime.ranges import check_ranges
from cotjax.train.checkpoint import Checkpoints, Keep
from cotjax.train.failed import keep_failed
from cotjax.train.metrics import Clock, MetricsFile, all_peak, as_row, step_flops
from cotjax.train.optim import configured, needs_master
from cotjax.train.profiling import Profiler
from cotjax.train.soundness import HeldOut, is_sound, make_forward
from cotjax.train.step import abstract_batch, compiled, init_state, make_probe, make_train_step
from cotjax.train.stop import StopRequest
from cotjax.train.trackers import Trackers, check_trackers


def keep_of(settings: Any, saves: Collection[int] = ()) -> Keep:
    """Return which checkpoints stay of those that the run saves by plan. Raises UsageError for counts that cannot be."""
    if settings.keep_best and not settings.eval_every:
        raise UsageError(
            f"train.keep_best is {settings.keep_best}, but train.eval_every is 0: checkpoints are ranked by their held-out loss, for that "
            "of a training batch says little; set train.eval_every and train.eval_share, or train.keep_best to 0"
        )
    return Keep(set(saves), settings.keep_last, settings.keep_every, settings.keep_best)


def held_out_steps(settings: Any, saves: Collection[int]) -> set[int]:
    """Return the steps that a held-out loss is measured behind: every `eval_every`, and those at which the run saves by plan."""
    return (
        {*range(0, settings.steps + 1, settings.eval_every), *saves}
        if settings.eval_every
        else set()
    )


def check_counts(settings: Any) -> None:
    """Raise UsageError when a number of the config's `train` section is out of its range, or a name unknown."""
    check_ranges("train", settings)
    configured(settings)  # the schedule's name, and a warm-up that is longer than the run
    if settings.profile_steps and not 1 <= settings.profile_start <= settings.steps:
        raise UsageError(
            f"train.profile_start is {settings.profile_start}; it must be a step, from 1 to train.steps ({settings.steps})"
        )
    if settings.remat not in REMAT:
        raise UsageError(f"train.remat is {settings.remat!r}; there are {', '.join(REMAT)}")
    if settings.attention not in ("auto", *KERNELS):
        raise UsageError(
            f"train.attention is {settings.attention!r}; there are auto, {', '.join(KERNELS)}"
        )
    if settings.eval_every and not settings.eval_share:
        raise UsageError(
            f"train.eval_every is {settings.eval_every}, but train.eval_share is 0, which holds nothing out; set it above 0"
        )
    if settings.eval_share and not settings.eval_every:
        raise UsageError(
            f"train.eval_share is {settings.eval_share}, but train.eval_every is 0, which measures nothing; set it above 0"
        )
    keep_of(settings)


def check_batch(settings: Any, mesh: jax.sharding.Mesh) -> None:
    """Raise UsageError when the config's batch does not divide over the mesh and its parts."""
    if settings.batch % (batch_parts(mesh) * settings.accumulate):
        shared = f"{batch_parts(mesh)} devices that share it" + (
            f" x {settings.accumulate} parts" if settings.accumulate > 1 else ""
        )
        raise UsageError(f"train.batch ({settings.batch}) must be a multiple of the {shared}")


def _warn(text: str) -> None:
    print(f"cotjax: {text}", file=sys.stderr)


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
    made_from: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    report: Callable[[int, int, dict], None] = lambda step, steps, row: None,
    say: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = _warn,
) -> Path:
    """Train one arm and return its checkpoint folder. Run again, it goes on from the last checkpoint that is whole.

    Args:
      settings: the config's `train` section.
      folder: holds `checkpoints/` and `metrics.jsonl` afterwards.
      source: the dataset's random-access source.
      masking: which targets are trained on.
      model, make_params: the decoder, and how its first parameters come onto a mesh.
      mesh_shape: sizes of the axes data, fsdp and tensor; one may be -1.
      made_from: fingerprints of the data, the tokenizer and the base, kept in every checkpoint (see `cotjax.train.fingerprints`).
      config: the whole config, to be kept in every checkpoint.
      report: called with (step, steps, metrics row) after each logged step.
      say, warn: called with a line for people: what the loop waited for; and what was found damaged.

    Raises:
      UsageError: a count of zero, a batch that the mesh does not divide, a folder that holds another run.
      DataError: no example holds a supervised token, none or all are held out, a loss or a parameter that is not finite, a checkpoint
        of another model, a disk that is full.
      Stopped: SIGTERM came; the step it came in is saved.
      KeyboardInterrupt: Ctrl-C came; likewise. A second one does not wait for the step.
    """
    # ---- fail before anything is spent
    check_counts(settings)
    check_trackers(settings)
    folder = Path(folder)
    mesh = make_mesh(**mesh_shape)
    check_batch(settings, mesh)
    run = {
        "train": dict(settings),
        "masking": asdict(masking),
        "model": asdict(model),
        "seed": seed,
    }
    run |= {"made_from": made_from} if made_from else {}
    for line in distributed.from_first("run", lambda: check_arm(folder, run)):
        warn(line)

    # ---- model, optimizer, step
    schedule, optimizer = configured(settings, model)
    if needs_master(model):
        say(
            f"parameters in {model.param_dtype}: the optimizer keeps a float32 copy of them, so that small updates add up"
        )
    with jax.set_mesh(mesh):
        state = init_state(model, optimizer, make_params(mesh), mesh)
        layers = {"scan": settings.scan_layers, "kernel": settings.attention}
        objective = make_objective(
            model, mesh, normalizer=masking.normalizer, remat=settings.remat, **layers
        )
        train_step = make_train_step(
            model, optimizer, state.params, mesh, objective, settings.accumulate
        )
        probe = make_probe(model, mesh, objective, settings.accumulate)

    # ---- data: each process reads the rows that its devices hold
    dropping = masking.dropping()
    own = local_rows(batch_sharding(mesh), settings.batch)
    held_out = None
    if settings.eval_every:
        examples = len(source)
        source, kept_back = split(source, settings.eval_share, seed)
        held_out = HeldOut(
            kept_back, make_forward(model, mesh, **layers), mesh, settings, masking, own
        )
        say(f"held out: {len(kept_back)} of {examples} examples; the others are trained on")
    check_supervised(source, masking)
    iterator = iter(
        batches(
            source,
            row_length=settings.row_length,
            batch=settings.batch,
            masking=masking,
            seed=seed,
            rows=own,
        )
    )

    # ---- resume; the folder is taken now that nothing that could be wrong with the start was
    keep = keep_of(settings, distributed.from_first("saves", lambda: claim_arm(folder, run)))
    checkpoints = Checkpoints(folder / "checkpoints", keep)
    about = run | {"config": config, "git": git_revision(), "versions": package_versions()}
    found = checkpoints.resume(state, warn)
    start = 0
    if found is not None:
        state, before = found
        check_arm(folder, run, theirs=before)
        start = before["step"]
        iterator.set_state(before["iterator"])
    held_out_at = held_out_steps(settings, keep.steps)
    metrics_file = MetricsFile(
        folder / "metrics.jsonl", -1 if found is None else start, held_out_at
    )
    keep.losses.update(metrics_file.held_out)
    trackers = Trackers(settings, folder, about, resume_step=start)
    profiler = Profiler(settings, folder / "profile")

    def failed(step: int, batch: dict, error: str) -> DataError:
        """Keep a batch, and return the error that ends the run."""
        where = keep_failed(
            folder / "failed", step, batch, run | {"checkpoint": saved, "error": error}
        )
        return DataError(f"{error}; its batch is kept: cotjax replay {where}")

    def log(step: int, metrics: dict, batch: dict) -> None:
        """Wait for a step and write its row; keep its batch where the loss is not finite."""
        metrics = jax.device_get(metrics)
        try:
            row = as_row(
                step,
                metrics,
                learning_rate=float(schedule(step - 1)),
                positions=settings.batch * settings.row_length,
            )
        except DataError as error:
            raise failed(step, batch, str(error)) from None
        row["time"] = clock.lap(row["tokens"], step_flops(model, metrics), peak)
        metrics_file.write(row)
        trackers.write(row)
        report(step, settings.steps, row)

    def measure(step: int, batch: dict | None) -> float:
        """Write the row of the held-out loss behind a step, made with this batch, and return that loss; it is finite."""
        row = held_out.row(step, state.params)
        loss = row["held_out"]["loss"]
        if not math.isfinite(loss):
            error = f"step {step}: the held-out loss behind it is {loss}; lower train.learning_rate or look at the held-out data"
            raise DataError(error) if batch is None else failed(step, batch, error)
        metrics_file.write(row)
        trackers.write(row)
        by_role = ", ".join(
            f"{role} {loss:.3f}" for role, loss in row["held_out"]["loss_by_role"].items()
        )
        say(f"step {step}: held-out loss {loss:.4f} ({by_role})")
        return loss

    def examined(params: dict) -> tuple[jax.Array, jax.Array]:
        """What the batch just trained on gives now."""
        with jax.set_mesh(mesh):
            return probe(params, batch)

    # ---- loop: dispatch step n, then read what step n - 1 measured, so that the host never makes the device wait
    saved, peak = start, all_peak()
    pending = None
    clock = Clock()
    with StopRequest() as stop:
        # Done, or stopped: what was begun is written whole, the last of these first.
        for begun in (checkpoints, metrics_file, trackers, profiler):
            stop.callback(begun.close)
        if found is None:
            with clock.apart():
                if not is_sound(state, lambda params: (0.0, 0.0)):
                    raise DataError(
                        "the parameters that training starts from are not all finite; look at the model's weights"
                    )
                loss = measure(0, None) if held_out else None
                metrics_file.sync()
                checkpoints.save(state, about | {"step": 0, "iterator": iterator.get_state()}, loss)
        if start < settings.steps:
            train_step = compiled(
                train_step, state, abstract_batch(settings.batch, settings.row_length, mesh), mesh
            )
        stop.stepping = True
        for step in range(start + 1, settings.steps + 1):
            profiler.before(step)
            with clock.waiting("input_wait"):
                rows = next(iterator)
            rows = dropped_weights(rows, dropping.fraction_at(step - 1))
            batch = global_batch(rows, batch_sharding(mesh), settings.batch)
            state, metrics = train_step(state, batch)
            profiler.after(step, metrics)
            if pending is not None:
                log(*pending)
            pending = (step, metrics, rows)
            stopping = stop.at(step)
            saving = step in keep.steps or stopping
            if saving or step in held_out_at:
                log(*pending)
                pending = None
            loss = None
            if step in held_out_at:
                with clock.apart():
                    loss = measure(step, rows)
            if saving:
                # What these parameters give is looked at before they are kept, and the rows are on the disk before them.
                if not is_sound(state, examined):
                    what = "the parameters after this update, or the loss or gradient that they give, are not finite"
                    raise failed(
                        step,
                        rows,
                        f"step {step}: {what}; lower train.learning_rate, or look at the data of this step",
                    )
                metrics_file.sync()
                with clock.waiting("save_blocked"):
                    checkpoints.save(
                        state, about | {"step": step, "iterator": iterator.get_state()}, loss
                    )
                saved = step
            if stopping:
                break
        if start < settings.steps:
            say(clock.summary())
        if empty := sum(loss is None for loss in metrics_file.losses.values()):
            say(f"{empty} updates had no supervised token left, and gradient 0")
        stop.check(saved, settings.steps)
    return folder / "checkpoints"
