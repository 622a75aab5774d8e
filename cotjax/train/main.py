"""Training, top to bottom: restore or start, then step, log and save until done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from cotjax.data.held_out import split
from cotjax.data.packing import are_alone
from cotjax.data.pipeline import Example, batches, check_supervised, dropped_weights
from cotjax.errors import DataError
from cotjax.model.kernels import kernel_for
from cotjax.model.params import Params
from cotjax.model.platform import return_freed_memory
from cotjax.model.sharding import batch_sharding, make_mesh
from cotjax.runtime import distributed
from cotjax.runtime.arrays import global_batch, local_rows
from cotjax.runtime.claim import check_arm, claim_arm
from cotjax.runtime.progress import Listener
from cotjax.runtime.provenance import git_revision, package_versions
from cotjax.train.checkpoint import Checkpoints, Keep
from cotjax.train.checks import check_batch, check_counts
from cotjax.train.log import Log
from cotjax.train.memory import say_memory
from cotjax.train.metrics import MetricsFile
from cotjax.train.optim import configured, needs_master
from cotjax.train.profiling import Profiler
from cotjax.train.reference import require_pairs, with_reference
from cotjax.train.remat import remat_of
from cotjax.train.run import Run
from cotjax.train.soundness import HeldOut, is_sound, make_forward
from cotjax.train.step import abstract_batch, compiled, init_state, make_probe, make_train_step
from cotjax.train.stop import StopRequest
from cotjax.train.trackers import Trackers, check_trackers


def train(
    run: Run,
    *,
    folder: Path,
    source: Sequence[Example],
    mesh_shape: dict[str, int],
    listener: Listener | None = None,
    measure: Callable[[int, Params, Mesh, Sequence[Example]], None] | None = None,
) -> Path:
    """Train one arm and return its checkpoint folder.

    An interrupted run resumes, from the newest undamaged checkpoint, when it is called again.

    Args:
      run: what is trained.
      folder: holds `checkpoints/` and `metrics.jsonl` afterwards.
      source: the dataset's random-access source; of a preference objective the pairs.
      mesh_shape: sizes of the axes data, fsdp and tensor; one may be -1.
      listener: receives the progress, and which checkpoints are damaged.
      measure: called as (step, params, mesh, examples) before each checkpoint of the plan is saved,
        by all processes; the examples are those held out, or without any, all. After a resume it is
        called again for the checkpoints that were not saved.

    Raises:
      UsageError: a setting out of its range, a batch that the mesh does not divide, a folder that
        holds another run.
      DataError: no example has a supervised token, all or none are held out, a loss or parameter is
        not finite, a checkpoint is of another model, or the disk is full.
      Stopped: SIGTERM came; the step in which it came is saved.
      KeyboardInterrupt: Ctrl-C came; likewise. A second one does not wait for the step.
    """
    # ---- fail before any work is done
    settings, model, dropping = run.settings, run.model, run.dropping
    listener = listener or Listener()
    check_counts(settings)
    check_trackers(settings)
    mesh = make_mesh(mesh_shape["data"], mesh_shape["fsdp"], mesh_shape["tensor"])
    check_batch(settings, mesh)
    bound = run.bound()
    for line in distributed.from_first("run", lambda: check_arm(folder, bound)):
        listener.warn(line)

    # ---- model, optimizer, step
    schedule, optimizer = configured(settings, model)
    if needs_master(model):
        listener.say(
            f"parameters in {model.param_dtype}: the optimizer keeps a float32 copy of them, so "
            "that small updates add up"
        )
    # Each row's examples are known to the host; a kernel is chosen before anything is compiled.
    alone = partial(are_alone, source, settings.row_length)
    kernel = settings.attention
    if run.kind == "supervised":
        kernel = kernel_for(model, mesh, settings.attention, alone=alone)
    layers = {"scan": settings.scan_layers, "kernel": kernel}
    with jax.set_mesh(mesh):
        state = init_state(model, optimizer, run.make_params(mesh), mesh)
    remat = remat_of(run, state, mesh, listener, **layers)
    with jax.set_mesh(mesh):
        objective = run.make_objective(mesh, remat=remat, **layers)
        how = objective, settings.accumulate, run.kind
        train_step = make_train_step(model, optimizer, state.params, mesh, *how)
        probe = make_probe(model, mesh, *how)

    # ---- data: each process reads the rows that its devices hold
    own = local_rows(batch_sharding(mesh), settings.batch)
    if run.kind == "pairs":
        require_pairs(source)
    if run.kind == "preference":
        # Of the parameters that training starts from, which a resume makes again.
        source = with_reference(source, model, state.params, mesh, settings, listener.say)
    held_out, measured = None, source
    if settings.eval_every:
        examples = len(source)
        source, apart = split(source, settings.eval_share, run.seed)
        measured = apart
        forward = make_forward(run, mesh, **layers)
        held_out = HeldOut(apart, forward, mesh, settings, dropping, own)
        listener.say(f"held out: {len(apart)} of {examples} examples; the others are trained on")
    check_supervised(source, dropping)
    iterator = iter(
        batches(
            source,
            row_length=settings.row_length,
            batch=settings.batch,
            dropping=dropping,
            seed=run.seed,
            rows=own,
        )
    )

    # ---- resume: the folder is claimed now that every check of the start has passed
    saves = distributed.from_first("saves", lambda: claim_arm(folder, bound))
    keep = Keep(set(saves), settings.keep_last, settings.keep_every, settings.keep_best)
    checkpoints = Checkpoints(folder / "checkpoints", keep)
    about = bound | {"config": run.config, "git": git_revision(), "versions": package_versions()}
    resumed = checkpoints.resume(state, listener.warn)
    start = 0
    if resumed is not None:
        state, before = resumed
        check_arm(folder, bound, theirs=before)
        start = before["step"]
        iterator.set_state(before["iterator"])
    held_out_at = run.held_out_steps(keep.steps)
    resume_step = -1 if resumed is None else start
    metrics_file = MetricsFile(folder / "metrics.jsonl", resume_step, held_out_at)
    keep.losses.update(metrics_file.held_out)
    trackers = Trackers(settings, folder, about, resume_step=start)
    profiler = Profiler(settings, folder / "profile")
    log = Log(run, folder, schedule, metrics_file, trackers, listener, saved=start)

    with StopRequest() as stop:
        # ---- save the start, and compile
        # However the block ends, what was begun is completed, the last of these first.
        for begun in (checkpoints, metrics_file, trackers, profiler):
            stop.callback(begun.close)
        if resumed is None:
            with log.clock.apart():
                if not is_sound(state):
                    raise DataError(
                        "the parameters that training starts from are not all finite; "
                        "look at the model's weights"
                    )
                loss = log.held_out(held_out.row(0, state.params), None) if held_out else None
                if measure:
                    measure(0, state.params, mesh, measured)
                metrics_file.sync()
                place = {"step": 0, "iterator": iterator.get_state()}
                checkpoints.save(state, about | place, loss)
        if start < settings.steps:
            like = abstract_batch(settings.batch, settings.row_length, mesh, run.kind)
            train_step = compiled(train_step, state, like, mesh)
            say_memory(train_step, state, mesh, listener)

        # ---- loop: dispatch step n, then read the metrics of step n - 1: the device never waits
        stop.stepping = True
        pending = None
        for step in range(start + 1, settings.steps + 1):
            profiler.before(step)
            # An implicit transfer here would make the host wait for the device, or the device
            # for the host, in every step.
            with (
                jax.transfer_guard("disallow"),
                jax.profiler.StepTraceAnnotation("train", step_num=step),
            ):
                with log.clock.waiting("input_wait"):
                    rows = next(iterator)
                rows = dropped_weights(rows, dropping.fraction_at(step - 1))
                batch = global_batch(rows, batch_sharding(mesh), settings.batch)
                state, metrics = train_step(state, batch)
            profiler.after(step, metrics)
            if pending is not None:
                log.update(*pending)
            pending = (step, metrics, rows)
            stopping = stop.at(step)
            saving = step in keep.steps or stopping
            if saving or step in held_out_at:
                log.update(*pending)
                pending = None

            # ---- measure and save
            loss = None
            if held_out and step in held_out_at:
                with log.clock.apart():
                    loss = log.held_out(held_out.row(step, state.params), rows)
            if saving:
                # The parameters are examined before they are saved, and the rows synced first, so
                # that every checkpoint is finite and has all rows before it.
                if not is_sound(state, partial(probe, batch=batch)):
                    raise log.failed(
                        step,
                        rows,
                        f"step {step}: the parameters after this update, or the loss or gradient "
                        "that they give, are not finite; lower train.learning_rate, or look at "
                        "the data of this step",
                    )
                if measure and step in keep.steps:
                    with log.clock.apart():
                        measure(step, state.params, mesh, measured)
                metrics_file.sync()
                with log.clock.waiting("save_blocked"):
                    place = {"step": step, "iterator": iterator.get_state()}
                    checkpoints.save(state, about | place, loss)
                log.saved = step
            if stopping:
                break

        # ---- say what it took; raise what a stop request asked for
        if start < settings.steps:
            listener.say(log.clock.summary())
        if empty := sum(loss is None for loss in metrics_file.losses.values()):
            listener.say(f"{empty} updates had no supervised token left, and gradient 0")
        stop.check(log.saved, settings.steps)
    return_freed_memory()
    return folder / "checkpoints"
