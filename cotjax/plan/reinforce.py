"""The phases of a step of `cotjax rl`, compiled: play, score, add up micro-batches, update.

What is on the devices in each phase, beside what its programs use:

    play     parameters and optimizer, the start's parameters, the other half's cache
    score    optimizer, the start's parameters; the sampler's weights and caches are freed
    update   the start's parameters; sums of gradients, which are freed at its end

The start's parameters are there with a KL term and without LoRA. With `rl.offload` the optimizer is
on the host in play, and the start's parameters in play and in the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from jax.sharding import Mesh
from jax.stages import Lowered
from ml_collections import ConfigDict

from cotjax.model.config import ModelConfig
from cotjax.model.kernels import kernel_for
from cotjax.model.platform import platform_of
from cotjax.model.sharding import whole_slots
from cotjax.objectives.named import REINFORCED
from cotjax.plan.measure import DoesNotFit, Program, compile_for, sampler_programs
from cotjax.rl.run import policy_of
from cotjax.rl.update import Update, score_program, scored_fields
from cotjax.rollout.elicitation import SIMULATED
from cotjax.train.checks import check_batch
from cotjax.train.memory import bytes_a_device, peak_bytes
from cotjax.train.optim import configured
from cotjax.train.step import abstract_batch, abstract_state


def reinforces(config: ConfigDict) -> bool:
    """Return whether every arm trains on what it plays: a config for `cotjax rl` names its
    advantages, a study's arms have such an objective.
    """
    return all(_plays(arm) for arm in config.arms.values())


def reinforces_some(config: ConfigDict) -> bool:
    """Return whether an arm of a study trains on what it plays."""
    return any(_plays(arm) for arm in config.arms.values())


def _plays(arm: ConfigDict) -> bool:
    return bool(arm.get("advantage")) or arm.get("objective") in REINFORCED


def rl_programs(
    config: ConfigDict, model: ModelConfig, mesh: Mesh, playing: Mesh
) -> Iterator[Program | DoesNotFit]:
    """Yield the programs of each phase; a peak includes what the phase holds beside its program.

    `mesh`, `playing`: of training, and of the sampler.

    Raises UsageError where sizes do not divide over the mesh, CotjaxError where the compiler fails
    for another reason than memory.
    """
    settings = config.train
    check_batch(settings, mesh)
    _, optimizer = configured(settings, model)
    state = abstract_state(model, optimizer, mesh)
    rows = abstract_batch(settings.batch, settings.row_length, mesh, "policy")
    params, opt_state = (bytes_a_device(each) for each in (state.params, state.opt_state))
    start = {"start (KL)": float(params)} if config.rl.kl and not model.lora else {}
    trained = {"trained parameters": float(params)}
    if not config.rl.offload:
        trained |= {"optimizer": float(opt_state)} | start
    for each, other in _playing_programs(config, model, playing):
        yield _holding(each, trained | other)

    layers: dict[str, Any] = {"scan": settings.scan_layers, "kernel": settings.attention}
    objective = policy_of(config.rl).make(model, mesh, remat=settings.remat, **layers)
    update = Update(model, optimizer, state.params, mesh, objective)
    layers["kernel"] = kernel_for(model, mesh, settings.attention)
    score = score_program(model, mesh, **layers)
    own, held = {"parameters": float(params)}, {"optimizer": float(opt_state)} | start
    whole = own | {"optimizer": float(opt_state)}
    if config.rl.offload:
        start = {}
    summed = {"optimizer": float(opt_state)} | start
    lowered = update.lowered(state, rows)
    # Name -> what lowers it, what of its arguments is told apart, and what is held beside it.
    phases: dict[str, tuple[Callable[[], Lowered], dict[str, float], dict[str, float]]] = {
        "rl score": (partial(score.lower, state.params, scored_fields(rows)), own, held),
        "rl micro-batch": (lowered["micro-batch"], own, summed),
        "rl update": (lowered["update"], whole, start),
    }
    for name, (lower, given, beside) in phases.items():
        made = compile_for(name, lower, mesh)
        if isinstance(made, DoesNotFit):
            yield made
            continue
        peak = peak_bytes(made.program, platform_of(mesh))
        parts = given | {"rows, sums and temporaries": peak - sum(given.values())}
        program = Program(name, made.seconds, peak, parts, exchanged=made.exchanged)
        yield _holding(program, beside)


def freed(config: ConfigDict) -> str:
    """Return a line on what is freed between the phases."""
    halves = _halves(config)
    moved = "the optimizer while it plays" + (", the start but in scoring" if config.rl.kl else "")
    return (
        "    freed between: the sampler's parameters"
        + (f" and {halves} caches" if halves > 1 else " and cache")
        + " after play; the sums of gradients after the update"
        + (f"; on the host: {moved}" if config.rl.offload else "")
    )


def _halves(config: ConfigDict) -> int:
    """Return how many policies play in turn, as `cotjax rl` divides its slots."""
    return 2 if config.evaluate.halves and config.rl.slots > 1 else 1


def _playing_programs(
    config: ConfigDict, model: ModelConfig, mesh: Mesh
) -> Iterator[tuple[Program | DoesNotFit, dict[str, float]]]:
    """Yield the sampler's programs, and what the other half's cache takes beside each."""
    own = config.copy_and_resolve_references()
    if config.rl.simulated_steps:
        own.evaluate.search = SIMULATED
    own.evaluate.slots = whole_slots(-(-config.rl.slots // _halves(config)), mesh)
    for program in sampler_programs(own, model, mesh):
        cache = program.parts["cache"] if isinstance(program, Program) else 0.0
        yield program, {"other cache": cache} if _halves(config) > 1 else {}


def _holding(program: Program | DoesNotFit, held: dict[str, float]) -> Program | DoesNotFit:
    """Return a program with what is held beside it in its peak and its parts."""
    if isinstance(program, DoesNotFit):
        return program
    name = program.name.replace("sampler, ", "rl play, ")
    return Program(
        name,
        program.seconds,
        program.peak + sum(held.values()),
        {f"held: {part}": size for part, size in held.items()} | dict(program.parts),
        program.flops,
        program.exchanged,
    )
