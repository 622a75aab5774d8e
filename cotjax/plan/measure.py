"""Compile a config's train step and sampler for devices that may be absent, and measure the
programs.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled, Lowered
from ml_collections import ConfigDict

from cotjax.diagnostics.role_shares import GROUPS
from cotjax.errors import CotjaxError
from cotjax.model.config import ModelConfig
from cotjax.model.flops import train_flops
from cotjax.model.params import abstract_params
from cotjax.model.platform import platform_of
from cotjax.model.sharding import batch_parts, whole_slots
from cotjax.model.shares import lower as lower_shares
from cotjax.objectives.objective import Spec
from cotjax.objectives.supervised import make_objective
from cotjax.plan.collectives import Collective, collectives
from cotjax.rollout.elicitation import longest_response
from cotjax.sample.programs import Programs
from cotjax.sample.vocabulary import stop_table
from cotjax.train.checks import check_batch
from cotjax.train.memory import bytes_a_device, kept_bytes, peak_bytes
from cotjax.train.optim import configured
from cotjax.train.step import abstract_batch, abstract_state, make_train_step

# After this pass of the compiler its text has every collective once, as one operation.
_PASS = "all-reduce-combiner"
# The compiler's two messages: after it has laid out memory, and before, where that cannot succeed.
_NO_ROOM = re.compile(
    r"(?:Used |temporaries \()([\d.]+[KMGT]?)(?: of |\) exceeds available HBM \()([\d.]+[KMGT]?)"
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Program:
    """One compiled program. Bytes are those of one device."""

    name: str
    seconds: float  # to compile
    peak: float  # most bytes in use at a time, arguments included
    parts: Mapping[str, float]  # name -> bytes
    flops: float | None = None  # of the model, all devices together, in one run
    exchanged: tuple[Collective, ...] = ()


@dataclass(frozen=True)
class DoesNotFit:
    """The compiler ran out of memory: the program needs `peak` of a device's `room` bytes.

    Both are 0 where the compiler does not say.
    """

    name: str
    peak: float = 0
    room: float = 0


class Made(NamedTuple):
    """What the compiler made, and what it sends."""

    program: Compiled
    seconds: float
    exchanged: tuple[Collective, ...]


def train_program(
    config: ConfigDict, model: ModelConfig, mesh: Mesh, spec: Spec | None = None
) -> Program | DoesNotFit:
    """Return the config's train step, compiled for this mesh.

    `spec`: what is minimised; None: the supervised loss.

    Raises UsageError where sizes do not divide over the mesh, CotjaxError where the compiler fails
    for another reason than memory.
    """
    settings = config.train
    check_batch(settings, mesh)
    _, optimizer = configured(settings, model)
    state = abstract_state(model, optimizer, mesh)
    kind = "supervised" if spec is None else spec.kind
    batch = abstract_batch(settings.batch, settings.row_length, mesh, kind)
    layers: dict[str, Any] = {
        "remat": settings.remat,
        "scan": settings.scan_layers,
        "kernel": settings.attention,
    }
    if spec is None:
        objective = make_objective(model, mesh, normalizer=config.masking.normalizer, **layers)
    else:
        objective = spec.make(model, mesh, **layers)
    step: Any = make_train_step(
        model, optimizer, state.params, mesh, objective, settings.accumulate, kind
    )
    compiled = compile_for("train step", partial(step.lower, state, batch), mesh)
    if isinstance(compiled, DoesNotFit):
        return compiled
    kept = kept_bytes(objective, state.params, settings.row_length, kind) * settings.batch
    kept /= settings.accumulate * batch_parts(mesh)
    peak = peak_bytes(compiled.program, platform_of(mesh))
    parts: dict[str, float] = {
        "parameters": bytes_a_device(state.params),
        "optimizer": bytes_a_device(state.opt_state),
        "batch": bytes_a_device(batch),
    }
    others = peak - sum(parts.values())
    parts |= {"activations": min(kept, others), "temporaries": others - min(kept, others)}
    flops = train_flops(model, [settings.row_length] * settings.batch)
    return Program("train step", compiled.seconds, peak, parts, flops, compiled.exchanged)


def sampler_programs(
    config: ConfigDict, model: ModelConfig, mesh: Mesh
) -> Iterator[Program | DoesNotFit]:
    """Yield the config's two largest sampler programs, compiled: reading prompts, and decoding."""
    settings = config.evaluate
    slots, capacity = whole_slots(settings.slots, mesh), settings.max_length
    new = longest_response(settings)
    programs = Programs(model, mesh, slots, new, stop_table([[0]], model.vocab_size), pad_id=0)
    parts = {
        "parameters": bytes_a_device(programs.abstract_params()),
        "cache": bytes_a_device(programs.abstract_cache(capacity)),
    }
    most = min(programs.reads[-1], capacity)
    for name, lower in (
        ("sampler, prefill", partial(programs.prefill, most, capacity)),
        ("sampler, decode", partial(programs.decode, 0, capacity)),
    ):
        compiled = compile_for(name, lower, mesh)
        if isinstance(compiled, DoesNotFit):
            yield compiled
            continue
        peak = peak_bytes(compiled.program, platform_of(mesh))
        of_peak = parts | {"temporaries": peak - sum(parts.values())}
        yield Program(name, compiled.seconds, peak, of_peak, exchanged=compiled.exchanged)


def probe_programs(
    config: ConfigDict, model: ModelConfig, mesh: Mesh, names: Sequence[str]
) -> list[Program | DoesNotFit]:
    """Return the programs of the probes `attention` and `gradient` at their largest, compiled.

    `names`: those of the two to compile.
    """
    settings = config.evaluate
    results: list[Program | DoesNotFit] = []
    for name in names:
        rows = config.probes[name].rows * batch_parts(mesh)
        lowered = partial(
            lower_shares,
            model,
            mesh,
            rows,
            settings.max_length,
            settings.max_action_tokens,
            len(GROUPS),
            name == "gradient",
        )
        compiled = compile_for(f"probe, {name}", lowered, mesh)
        if isinstance(compiled, DoesNotFit):
            results.append(compiled)
            continue
        peak = peak_bytes(compiled.program, platform_of(mesh))
        parameters = bytes_a_device(
            jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, model.compute_as, sharding=x.sharding),
                abstract_params(model, mesh),
            )
        )
        parts = {"parameters": parameters, "temporaries": peak - parameters}
        results.append(
            Program(f"probe, {name}", compiled.seconds, peak, parts, exchanged=compiled.exchanged)
        )
    return results


def replicated(params: Any, mesh: Mesh) -> dict[str, tuple[int, int]]:
    """Return the parameters of which several devices hold the same piece.

    Name, with `*` for the layer number -> (copies, bytes a device).
    """
    pieces_of: dict[str, tuple[int, int]] = {}
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
            held = pieces_of.get(name, (0, 0))[1]
            pieces_of[name] = (copies, held + bytes_a_device(leaf))
    return pieces_of


def compile_for(name: str, lower: Callable[[], Lowered], mesh: Mesh) -> Made | DoesNotFit:
    """Compile for the mesh's devices."""
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
        hlo = passes[-1].read_text() if passes else compiled.as_text() or ""
        return Made(compiled, seconds, tuple(collectives(hlo, dict(mesh.shape))))


def _amount(text: str) -> float:
    """Return the bytes of "15.75G"."""
    return float(text.rstrip("KMGT")) * _UNITS.get(text[-1], 1)
