"""`cotjax plan`: whether a config's train step, sampler and probes fit a TPU slice, and what would.

It says nothing about speed: the compiler knows memory, arithmetic and exchange, not time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from cotjax.assets import BASE_FOLDER
from cotjax.config import sampler_mesh, set_field
from cotjax.data.codec import Codec
from cotjax.errors import UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.params import abstract_params
from cotjax.model.published import PUBLISHED, published
from cotjax.model.sharding import make_mesh
from cotjax.objectives.objective import Objective, Spec
from cotjax.objectives.supervised import make_objective
from cotjax.plan.measure import (
    DoesNotFit,
    Program,
    probe_programs,
    replicated,
    sampler_programs,
    train_program,
)
from cotjax.plan.reinforce import freed, reinforces, reinforces_some, rl_programs
from cotjax.plan.topology import Topology
from cotjax.rl.run import policy_of
from cotjax.train.checks import check_batch, check_counts
from cotjax.train.optim import configured
from cotjax.train.remat import AUTO, least_remat
from cotjax.train.step import abstract_state
from cotjax.weights.convert import read_config, tokenizer_folder
from cotjax.weights.hf_config import config_from_hf
from cotjax.weights.stored import all_there

PROGRAMS = ("train", "sampler", "probe", "rl")
# The probes that have programs of their own; the others use the sampler's.
PROBES = ("attention", "gradient")
# Not bfloat16 parameters for the train step: with the float32 copy that keeps their updates they
# take as much as float32 ones.
_ELSE = {
    "train": "LoRA (model.lora_rank)",
    "sampler": "parameters in bfloat16 (model.param_dtype)",
    "probe": "parameters in bfloat16 (model.compute_dtype)",
    "rl": "LoRA (model.lora_rank)",
}
_SHOWN = 1e6  # bytes: smaller replicated parameters share one line


def plan(
    config: ConfigDict,
    topology: Topology,
    console: Console,
    only: str | None = None,
    spec: Spec | None = None,
) -> bool:
    """Print the plan and return whether everything fits.

    Args:
      only: one of PROGRAMS; None: all that the config runs.
      spec: what the train step minimises; None: the supervised loss.

    Raises UsageError for an impossible config, mesh or topology, CotjaxError where the compiler
    fails for another reason than memory.
    """
    check_counts(config.train)
    model, devices = model_of(config), topology.devices()
    model.check_length(config.data.max_length, "data.max_length")
    wanted = _run_by(config)
    meshes = {
        which: _mesh(which, config, devices) for which in (wanted if only is None else (only,))
    }
    room = device_memory(topology, devices)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model)))
    console.print(
        f"{config.model.base}, {parameters / 1e9:.2f}B parameters, on {topology}: {len(devices)} "
        f"devices of {_gb(room)}"
    )
    console.print(
        "Compiled, not run: this says what fits and what is exchanged, and nothing about speed.\n"
    )
    config = _with_remat(config, model, meshes, room, console, spec)
    fits = True
    for which, mesh in meshes.items():
        console.print(
            f"{which}: mesh {' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())}"
        )
        programs = []
        for each in _measured(which, config, model, devices, spec):
            # Shown as it is compiled: a large model's programs take minutes each.
            _show(each, room, console)
            programs.append(each)
        if which == "rl":
            console.print(freed(config))
        if which in ("train", "rl"):
            _show_replicated(model, mesh, console)
        if not all(_fits(each, room) for each in programs):
            fits = False
            _show_nearest(which, config, model, devices, room, console, spec)
    return fits


def _with_remat(
    config: ConfigDict,
    model: ModelConfig,
    meshes: dict[str, Mesh],
    room: float,
    console: Console,
    spec: Spec | None = None,
) -> ConfigDict:
    """Return the config with the remat that "auto" is on these devices, as training chooses it."""
    which = next((which for which in ("train", "rl") if which in meshes), None)
    if config.train.remat != AUTO or which is None:
        return config
    config, mesh = config.copy_and_resolve_references(), meshes[which]
    settings = config.train
    check_batch(settings, mesh)
    how = {"scan": settings.scan_layers, "kernel": settings.attention}
    if which == "rl":
        spec = policy_of(config.rl)
    objective: Callable[..., Objective] = make_objective if spec is None else spec.make
    settings.remat, line = least_remat(
        model,
        abstract_state(model, configured(settings, model)[1], mesh),
        lambda remat: objective(model, mesh, remat=remat, **how),
        batch=settings.batch // settings.accumulate,
        length=settings.row_length,
        sums=settings.accumulate > 1,
        scan=settings.scan_layers,
        mesh=mesh,
        available=room,
        kind="supervised" if spec is None else spec.kind,
    )
    console.print(line)
    return config


def device_memory(topology: Topology, devices: list[jax.Device]) -> float:
    """Return the bytes of one device: a chip's, or a share of it where a chip is several
    devices.
    """
    chips = {(getattr(device, "slice_index", 0), *device.coords) for device in devices}
    return topology.chip.memory * len(chips) / len(devices)


def model_of(config: ConfigDict) -> ModelConfig:
    """Return the sizes of a config's base: a published name, a folder, or "package".

    A folder needs only a config.json. Raises UsageError for "random", whose vocabulary comes from
    data, and for anything else.
    """
    dtypes = {name: config.model[name] for name in ("param_dtype", "compute_dtype")}
    base = config.model.base
    if base in PUBLISHED:
        return published(base, **dtypes)
    if base == "random":
        raise UsageError(
            "model.base is 'random': its vocabulary is made from data; name a folder or a "
            "published model, such as qwen3-8b"
        )
    folder = BASE_FOLDER if base == "package" else Path(base)
    if not folder.is_dir():
        raise UsageError(
            f"model.base: {base} is neither a folder nor a published model; there are "
            f"{', '.join(PUBLISHED)}"
        )
    if (folder / "config.json").is_file() and not all_there(folder):
        return config_from_hf(folder, **dtypes)
    model = read_config(folder, **dtypes)
    tokenizer = Path(config.model.tokenizer) if config.model.tokenizer else tokenizer_folder(folder)
    if (tokenizer / "tokenizer.json").is_file():
        model.check_ids(Codec.load(tokenizer, config.data.template).vocab_size)
    return model


def _run_by(config: ConfigDict) -> tuple[str, ...]:
    """Return the kinds of programs that a config runs."""
    if reinforces(config):
        return ("rl",)
    of_data = PROGRAMS[:3] if probes_of(config) else PROGRAMS[:2]
    return (*of_data, "rl") if reinforces_some(config) else of_data


def _mesh(which: str, config: ConfigDict, devices: list[jax.Device]) -> Mesh:
    trains = which in ("train", "rl")
    return make_mesh(**(config.mesh if trains else sampler_mesh(config)), devices=devices)


def _measured(
    which: str,
    config: ConfigDict,
    model: ModelConfig,
    devices: list[jax.Device],
    spec: Spec | None,
) -> Iterable[Program | DoesNotFit]:
    mesh = _mesh(which, config, devices)
    if which == "rl":
        return rl_programs(config, model, mesh, _mesh("sampler", config, devices))
    if which == "train":
        return [train_program(config, model, mesh, spec)]
    if which == "probe":
        return probe_programs(config, model, mesh, probes_of(config) or PROBES)
    return sampler_programs(config, model, mesh)


def probes_of(config: ConfigDict) -> list[str]:
    """Return the config's probes that have programs of their own."""
    return [name for name in PROBES if name in config.probes.names]


def _fits(program: Program | DoesNotFit, room: float) -> bool:
    return isinstance(program, Program) and program.peak <= room


def _show(program: Program | DoesNotFit, room: float, console: Console) -> None:
    if isinstance(program, DoesNotFit):
        needs = (
            f"{_gb(program.peak)} of {_gb(program.room)} a chip"
            if program.peak
            else f"more than {_gb(room)} a chip"
        )
        console.print(f"  {program.name}: DOES NOT FIT ({needs})")
        return
    verdict = "fits" if _fits(program, room) else "DOES NOT FIT"
    console.print(
        f"  {program.name}: {verdict} ({_gb(program.peak)} of {_gb(room)} a chip at the worst "
        "moment; "
        f"compiled in {program.seconds:.0f} s)"
    )
    console.print(
        "    bytes a chip: "
        + ", ".join(f"{name} {_gb(size)}" for name, size in program.parts.items())
    )
    if program.flops:
        console.print(
            f"    arithmetic: {program.flops:.3g} FLOPs a step, of the model (what remat does "
            "again "
            "is not counted)"
        )
    if program.exchanged:
        table = Table(
            "axis", "collective", "times", "bytes a chip", box=None, padding=(0, 2), show_edge=False
        )
        for each in program.exchanged:
            table.add_row(each.axis, each.kind, f"{each.count:,}", _gb(each.bytes))
        console.print(
            "    exchanged in one run (a loop that the data ends, such as decoding, counts as one "
            "turn):"
        )
        console.print(table)


def _show_replicated(model: ModelConfig, mesh: Mesh, console: Console) -> None:
    if mesh.shape["data"] > 1:
        console.print(
            f"    replicated: every parameter, once for each of the {mesh.shape['data']} groups "
            "of data; and within a group:"
        )
    # A group's own copies: what data parallelism copies by intent is printed above.
    within = {
        name: (copies // mesh.shape["data"], size)
        for name, (copies, size) in replicated(abstract_params(model, mesh), mesh).items()
    }
    whole = {name: copies for name, copies in within.items() if copies[0] > 1}
    large = {name: copies for name, copies in whole.items() if copies[1] >= _SHOWN}
    for name, (copies, size) in large.items():
        console.print(f"    replicated: {name}, {copies} copies of each piece, {_gb(size)} a chip")
    rest = sum(size for name, (_, size) in whole.items() if name not in large)
    if rest:
        console.print(
            f"    replicated: {len(whole) - len(large)} kinds of small parameters (norms, "
            f"biases), {_gb(rest)} a chip in all"
        )


def _show_nearest(
    which: str,
    config: ConfigDict,
    model: ModelConfig,
    devices: list[jax.Device],
    room: float,
    console: Console,
    spec: Spec | None,
) -> None:
    for overrides in changes(which, config):
        other = config.copy_and_resolve_references()
        for override in overrides:
            set_field(other, override)
        flags = " ".join(f"--config.{override}" for override in overrides)
        try:
            programs = list(_measured(which, other, model, devices, spec))
        except UsageError as error:
            console.print(f"    {flags}: cannot be ({error})")
            continue
        if all(_fits(each, room) for each in programs):
            peak = max(each.peak for each in programs if isinstance(each, Program))
            console.print(f"    nearest change that fits: {flags} ({_gb(peak)} a chip)")
            return
        console.print(f"    {flags}: does not fit either")
    console.print(f"    none of these fits: take a larger slice, or {_ELSE[which]}")


def changes(which: str, config: ConfigDict) -> Iterator[tuple[str, ...]]:
    """What may make a program smaller, each a set of overrides, from what costs least to what
    changes the run.
    """
    if which == "sampler":
        settings = config.evaluate
        yield from (
            (f"evaluate.slots={settings.slots // part}",)
            for part in (2, 4)
            if settings.slots >= part
        )
        yield (f"evaluate.tensor={2 * sampler_mesh(config)['tensor']}",)
        yield (f"evaluate.max_length={settings.max_length // 2}",)
        return
    if which == "rl":
        if not config.rl.offload:
            yield ("rl.offload=True",)
        if config.train.remat != "block":
            yield ("train.remat=block",)
        yield from ((f"rl.slots={config.rl.slots // part}",) for part in (2, 4))
        yield (f"train.batch={config.train.batch // 2}",)
        return
    if which == "probe":
        rows = max(config.probes[name].rows for name in PROBES)
        if rows > 1:
            yield tuple(f"probes.{name}.rows=1" for name in PROBES)
        yield (f"evaluate.tensor={2 * sampler_mesh(config)['tensor']}",)
        yield (f"evaluate.max_length={config.evaluate.max_length // 2}",)
        return
    settings, mesh = config.train, config.mesh
    if settings.remat != "block":
        yield ("train.remat=block",)
    yield from ((f"train.accumulate={settings.accumulate * parts}",) for parts in (2, 4))
    if mesh.data != 1:
        yield ("mesh.data=1", "mesh.fsdp=-1")
    room = () if -1 in (mesh.data, mesh.fsdp) else (f"mesh.fsdp={mesh.fsdp // 2}",)
    yield (*room, f"mesh.tensor={2 * mesh.tensor}")
    yield (f"train.batch={settings.batch // 2}",)
    yield (f"train.row_length={settings.row_length // 2}",)


def _gb(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**28 else f"{size / 2**20:,.1f} MiB"
