"""Reinforcement learning, top to bottom: play, write, update, log, save, evaluate until done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from cotjax.envs.base import Game
from cotjax.errors import DataError
from cotjax.model.platform import return_freed_memory
from cotjax.model.sharding import make_mesh
from cotjax.rl.ahead import Plays
from cotjax.rl.batches import advantages_of, step_batches
from cotjax.rl.coefficients import Coefficients
from cotjax.rl.collapse import thoughts_compared
from cotjax.rl.devices import divided
from cotjax.rl.divergence import with_costs
from cotjax.rl.groups import Stream
from cotjax.rl.metrics import Clock, mean, step_row
from cotjax.rl.offload import to_devices, to_host
from cotjax.rl.play import Actors
from cotjax.rl.run import RLRun
from cotjax.rl.update import Scores, Update
from cotjax.runtime import distributed
from cotjax.runtime.claim import check_arm, claim_arm
from cotjax.runtime.progress import Listener
from cotjax.runtime.provenance import git_revision, package_versions
from cotjax.train.checkpoint import Checkpoints, Keep
from cotjax.train.checks import check_batch, check_counts
from cotjax.train.metrics import EVALUATED, MetricsFile
from cotjax.train.optim import configured
from cotjax.train.remat import remat_of
from cotjax.train.soundness import is_sound
from cotjax.train.step import init_state
from cotjax.train.stop import StopRequest
from cotjax.train.trackers import Trackers, check_trackers


def reinforce(
    run: RLRun,
    *,
    folder: Path,
    games: Sequence[Game],
    actors: Actors,
    mesh_shape: dict[str, int],
    listener: Listener | None = None,
    evaluate: Callable[[int], Mapping[str, Any]] | None = None,
) -> Path:
    """Train one arm by playing; return its checkpoint folder.

    An interrupted run resumes, from the newest undamaged checkpoint, when it is called again, and
    ends with the same bytes. Steps that were played after that checkpoint are read, not played.

    Args:
      run: what is trained.
      folder: holds `checkpoints/`, `rollouts/` and `metrics.jsonl` afterwards.
      games: what is played in training.
      actors: what plays.
      mesh_shape: sizes of the axes data, fsdp and tensor; one may be -1.
      listener: receives the progress, and what is damaged.
      evaluate: called as (step) once a checkpoint of the plan is on the disk; what it returns, if
        anything, is written to metrics.jsonl.

    Raises:
      UsageError: a setting out of its range, a batch that the mesh does not divide, a folder that
        holds another run.
      DataError: a loss or parameter is not finite, a checkpoint is of another model, or the disk is
        full.
      Stopped: SIGTERM came; the step in which it came is saved.
      KeyboardInterrupt: Ctrl-C came; likewise. A second one does not wait for the step.
    """
    # ---- fail before any work is done
    settings, model, listener = run.settings, run.model, listener or Listener()
    check_counts(settings)
    check_trackers(settings)
    trainers, _ = divided(run.rl.play_devices)
    mesh = make_mesh(mesh_shape["data"], mesh_shape["fsdp"], mesh_shape["tensor"], devices=trainers)
    check_batch(settings, mesh)
    stream, bound = Stream(games, run.seed), run.bound()
    for line in distributed.from_first("run", lambda: check_arm(folder, bound)):
        listener.warn(line)

    # ---- model, optimizer, update
    schedule, optimizer = configured(run.updates, model)
    layers = {"scan": settings.scan_layers, "kernel": settings.attention}
    with jax.set_mesh(mesh):
        state = init_state(model, optimizer, run.make_params(mesh), mesh)
    remat = remat_of(run, state, mesh, listener, **layers)
    with jax.set_mesh(mesh):
        objective = run.make_objective(mesh, remat=remat, **layers)
        update = Update(model, optimizer, state.params, mesh, objective)
        scores = Scores(run, mesh, **layers)

    # ---- resume: the folder is claimed now that every check of the start has passed
    saves = distributed.from_first("saves", lambda: claim_arm(folder, bound))
    keep = Keep(set(saves), settings.keep_last, settings.keep_every)
    checkpoints = Checkpoints(folder / "checkpoints", keep)
    about = bound | {"config": run.config, "git": git_revision(), "versions": package_versions()}
    resumed = checkpoints.resume(state, listener.warn)
    place: dict[str, Any] = {
        "step": 0,
        "position": 0,
        "updates": 0,
        "ahead": [],
        "coefficients": {},
    }
    if resumed is not None:
        state, before = resumed
        check_arm(folder, bound, theirs=before)
        place = {name: before.get(name, usual) for name, usual in place.items()}
    start = place["step"]
    plays = Plays(run, folder, actors, stream, listener.warn, place)
    weights = Coefficients.at(run.rl, place)
    metrics_file = MetricsFile(folder / "metrics.jsonl", -1 if resumed is None else start)
    trackers = Trackers(settings, folder, about, resume_step=start)

    def evaluate_at(step: int) -> None:
        if evaluate is None or step not in saves or step in metrics_file.evaluated:
            return
        checkpoints.finish()
        if found := evaluate(step):
            row = {"step": step, EVALUATED: dict(found)}
            metrics_file.write(row)
            trackers.write(row)

    with StopRequest() as stop:
        # ---- save the start
        # However the block ends, what was begun is completed, the last of these first.
        for begun in (checkpoints, metrics_file, trackers):
            stop.callback(begun.close)
        if resumed is None:
            if not is_sound(state):
                raise DataError(
                    "the parameters that training starts from are not all finite; "
                    "look at the model's weights"
                )
            checkpoints.save(state, about | place)
        evaluate_at(start)

        stop.stepping = True
        for step in range(start + 1, settings.steps + 1):
            # ---- play, or read what was played; it is on the disk before anything is trained
            clock = Clock()
            scored: dict[str, Any] = {}  # metrics that log-probabilities are needed for
            with clock.timing("play_s"):
                if run.rl.offload:
                    state = state._replace(opt_state=to_host(state.opt_state))
                rollouts, staleness = plays.of(step, state.params)
                if run.rl.offload:
                    state = state._replace(opt_state=to_devices(state.opt_state))

            # ---- advantages; rows of tokens with them; log-probabilities under the start, and
            # under this policy, before it changes
            with clock.timing("rows_s"):
                advantages = advantages_of(rollouts, run.rl)
                updates = step_batches(run, rollouts, advantages.values, actors.codec)
            with clock.timing("score_s"):
                updates = [
                    replace(each, batches=scores(state.params, each.batches)) for each in updates
                ]
                if run.rl.kl_in == "reward":
                    advantages, updates, costs = with_costs(rollouts, run.rl, updates, weights.kl)
                    scored["kl_cost"] = mean(own.sum() for own in costs.values())
                if run.rl.information:
                    own = partial(scores.own, state.params)
                    scored["thoughts"] = thoughts_compared(run, rollouts, actors.codec, own)

            # ---- update
            rate, found = float(schedule(place["updates"])), []
            with clock.timing("update_s"):
                for each in updates:
                    state, metrics = update(state, weights.laid(each.batches))
                    found.append(metrics)
            with clock.timing("play_s"):
                waits = plays.wait()  # for what is played meanwhile
            # Playing and training need memory of other sizes: neither fits into the other's.
            return_freed_memory()

            # ---- log
            row = step_row(rollouts, advantages, run.rl, updates, found, rate) | scored
            row |= {"staleness": staleness, "coefficients": weights.applied}
            row["time"] = clock.row(row["tokens"], waits)
            metrics_file.write(row)
            trackers.write(row)
            listener.report(step, settings.steps, row)
            weights = weights.after(row, run.rl)
            place = plays.place | {"step": step, "updates": place["updates"] + len(found)}
            place["coefficients"] = weights.values()

            # ---- save and evaluate
            stopping = stop.at(step)
            if stopping or step in saves:
                if not is_sound(state):
                    raise DataError(
                        f"step {step}: the parameters after this step are not finite; lower "
                        "train.learning_rate"
                    )
                metrics_file.sync()
                checkpoints.save(state, about | place)
            if stopping:
                break
            evaluate_at(step)
            # What was evaluated is saved.
            if step in saves and stop.at(step):
                break
        stop.check(place["step"], settings.steps)
    return folder / "checkpoints"
