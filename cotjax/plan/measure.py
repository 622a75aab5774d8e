"""Compiles the train step and the sampler of a config for a mesh of devices that may not be there, and reads what comes out."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled, Lowered
from ml_collections import ConfigDict

from cotjax.errors import CotjaxError
from cotjax.model.config import ModelConfig
from cotjax.model.flops import train_flops
from cotjax.model.sharding import batch_parts, whole_slots
from cotjax.objectives.objective import Objective
from cotjax.objectives.supervised import make_objective
from cotjax.plan.collectives import Collective, collectives
from cotjax.sample.buckets import read_buckets
from cotjax.sample.programs import Programs
from cotjax.sample.vocabulary import stop_table
from cotjax.train.checks import check_batch
from cotjax.train.optim import configured
from cotjax.train.step import abstract_batch, abstract_state, make_train_step

# The pass of the compiler after which its text shows every collective once, and as one operation.
_PASS = "all-reduce-combiner"
# As the compiler says it after laying out the memory, and as it says it before where that is hopeless.
_NO_ROOM = re.compile(
    r"(?:Used |temporaries \()([\d.]+[KMGT]?)(?: of |\) exceeds available HBM \()([\d.]+[KMGT]?)"
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Program:
    """One compiled program. Bytes and seconds; bytes are those of one device."""

    name: str
    seconds: float  # to compile
    peak: float  # bytes in use at the worst moment, arguments included
    parts: Mapping[str, float]  # what the bytes are of: name -> bytes
    flops: float | None = None  # of the model, all devices together, in one run
    exchanged: tuple[Collective, ...] = ()


@dataclass(frozen=True)
class DoesNotFit:
    """The compiler found no room: it would take `peak` of the `room` bytes that a device has for programs (0: it does not say)."""

    name: str
    peak: float = 0
    room: float = 0


def train_program(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> Program | DoesNotFit:
    """The train step of this config, compiled for this mesh.

    Raises UsageError where sizes do not divide over the mesh, CotjaxError where the compiler fails for another reason.
    """
    settings = config.train
    check_batch(settings, mesh)
    _, optimizer = configured(settings, model)
    state, batch = (
        abstract_state(model, optimizer, mesh),
        abstract_batch(settings.batch, settings.row_length, mesh),
    )
    objective = make_objective(
        model,
        mesh,
        normalizer=config.masking.normalizer,
        remat=settings.remat,
        scan=settings.scan_layers,
        kernel=settings.attention,
    )
    step = make_train_step(model, optimizer, state.params, mesh, objective, settings.accumulate)
    compiled = _compile("train step", partial(step.lower, state, batch), mesh)
    if isinstance(compiled, DoesNotFit):
        return compiled
    program, seconds, exchanged = compiled
    kept = _kept_bytes(objective, state.params, settings.row_length) * settings.batch
    kept /= settings.accumulate * batch_parts(mesh)
    peak = _peak(program)
    parts = {
        "parameters": _bytes_a_device(state.params),
        "optimizer": _bytes_a_device(state.opt_state),
        "batch": _bytes_a_device(batch),
    }
    made = peak - sum(parts.values())
    parts |= {"activations": min(kept, made), "temporaries": made - min(kept, made)}
    flops = train_flops(model, [settings.row_length] * settings.batch)
    return Program("train step", seconds, peak, parts, flops, exchanged)


def sampler_programs(
    config: ConfigDict, model: ModelConfig, mesh: Mesh
) -> list[Program | DoesNotFit]:
    """The sampler's two programs of this config at their largest: reading prompts, and decoding."""
    settings = config.evaluate
    slots = whole_slots(settings.slots, mesh)
    new, room = max(settings.max_new_tokens, settings.max_action_tokens), settings.max_length
    programs = Programs(model, mesh, slots, new, stop_table([[0]], model.vocab_size), pad_id=0)
    parts = {
        "parameters": _bytes_a_device(programs.abstract_params()),
        "cache": _bytes_a_device(programs.abstract_cache(room)),
    }
    sizes = {"prefill": min(read_buckets(slots)[-1], room), "decode": 0}
    found: list[Program | DoesNotFit] = []
    for name, size in sizes.items():
        compiled = _compile(f"sampler, {name}", partial(getattr(programs, name), size, room), mesh)
        if not isinstance(compiled, DoesNotFit):
            program, seconds, exchanged = compiled
            temporaries = {"temporaries": _peak(program) - sum(parts.values())}
            compiled = Program(
                f"sampler, {name}",
                seconds,
                _peak(program),
                parts | temporaries,
                exchanged=exchanged,
            )
        found.append(compiled)
    return found


def replicated(params: Any, mesh: Mesh) -> dict[str, tuple[int, int]]:
    """Parameters of which several devices hold the same piece: name, with `*` for the layer -> (copies, bytes a device)."""
    found: dict[str, tuple[int, int]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        pieces = np.prod(
            [
                size // part
                for size, part in zip(
                    leaf.shape, leaf.sharding.shard_shape(leaf.shape), strict=True
                )
            ]
        )
        copies = mesh.size // int(pieces)
        if copies > 1:
            name = ".".join("*" if key.key.isdigit() else key.key for key in path)
            found[name] = (copies, found.get(name, (0, 0))[1] + _bytes_a_device(leaf))
    return found


def _compile(
    name: str, lower: Callable[[], Lowered], mesh: Mesh
) -> tuple[Compiled, float, tuple[Collective, ...]] | DoesNotFit:
    """Compiles for the mesh's devices; returns the program, seconds, and its collectives."""
    with (
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        tempfile.TemporaryDirectory(prefix="cotjax-plan-") as folder,
    ):
        started = time.perf_counter()
        try:
            compiled = lower().compile(
                compiler_options={"xla_dump_to": folder, "xla_dump_hlo_pass_re": _PASS}
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise CotjaxError(
                    f"{name}: the compiler failed: {str(error).splitlines()[0]}"
                ) from error
            used = _NO_ROOM.search(str(error))
            return DoesNotFit(name, *map(_amount, used.groups())) if used else DoesNotFit(name)
        seconds = time.perf_counter() - started
        passes = sorted(Path(folder).glob(f"*.after_{_PASS}.*.txt"))
        hlo = passes[-1].read_text() if passes else compiled.as_text()
        return compiled, seconds, tuple(collectives(hlo, dict(mesh.shape)))


def _amount(text: str) -> float:
    """Bytes of "15.75G"."""
    return float(text.rstrip("KMGT")) * _UNITS.get(text[-1], 1)


def _peak(program: Compiled) -> float:
    """Bytes of a device in use at the worst moment, code included."""
    memory = program.memory_analysis()
    # The sum of all that is ever allocated, where the compiler does not tell the most that is in use at a time.
    whole = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return (memory.peak_memory_in_bytes or whole) + memory.generated_code_size_in_bytes


def _bytes_a_device(tree: Any) -> int:
    """Bytes that each device holds of these arrays."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def _kept_bytes(objective: Objective, params: Any, length: int) -> float:
    """Bytes that the forward pass keeps for the backward pass, for each row: what more is kept for three rows than for two."""

    def kept(rows: int) -> int:
        def pull_of(params: Any, batch: dict) -> Any:
            return jax.vjp(lambda p: objective(p, batch)["loss"][0], params)[1]

        pull = jax.eval_shape(pull_of, params, abstract_batch(rows, length))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))

    return kept(3) - kept(2)
