"""`cotjax <command>`. Heavy packages are imported inside each command, so that `--help` is instant."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cotjax.cli.bench import add_bench
from cotjax.cli.data import add_data
from cotjax.cli.games import add_games
from cotjax.cli.mask import add_mask
from cotjax.cli.play import add_play
from cotjax.errors import CotjaxError, UsageError
from cotjax.runtime.files import disk_errors, local_path
from cotjax.runtime.signals import caused_by_interrupt, never_unheard, stop_at_sigterm
from cotjax.runtime.terminal import visible

DESCRIPTION = """\
cotjax shows where the gains of chain-of-thought (CoT) training of agents land: in the prompt action (decoded
without reasoning) or in the CoT advantage (what reasoning adds).

  cotjax demo                        the whole study on this machine, from made games to report.html
  cotjax study --config FILE         the same for any config
  cotjax play --game PATH            play one game, or watch a checkpoint play it
  cotjax train|evaluate|report       its parts, one by one, on the same --config and --out
  cotjax plan --config FILE          does it fit a TPU slice? compiled here, without one
"""
CONFIG_HELP = "config file, e.g. configs/demo.py; change a field with --config.train.steps=200"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 2 usage, 3 data (a full disk too), 4 environment, 75 stopped by SIGTERM (the
    same command goes on), 130 interrupted."""
    _never_fail_to_print()
    parser = _parser()
    arguments, extra = parser.parse_known_args(argv)
    overrides = [item.removeprefix("--config.") for item in extra if item.startswith("--config.")]
    unknown = [item for item in extra if not item.startswith("--config.")]
    if unknown:
        parser.error(f"unknown argument {unknown[0]!r} (see cotjax {arguments.command} --help)")
    arguments.overrides = overrides
    _quiet_libraries()
    try:
        with never_unheard(), stop_at_sigterm(), disk_errors():
            _check_paths(arguments)
            arguments.run(arguments)
    except CotjaxError as error:
        print(f"cotjax: {visible(str(error))}", file=sys.stderr)
        _stop_others(str(error), error.exit_code)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        return _interrupted(str(interrupt))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "cotjax"):
            raise
        print(
            f"cotjax: this command needs the package {package!r}; install cotjax with all it needs (`pip install .`)",
            file=sys.stderr,
        )
        _stop_others(str(error), UsageError.exit_code)
        return UsageError.exit_code
    except Exception as error:
        if caused_by_interrupt(error):
            return _interrupted()
        _stop_others(f"{type(error).__name__}: {error}", 1)
        raise
    return 0


def _never_fail_to_print() -> None:
    """Replace what a terminal or a job's log that is not UTF-8 cannot show, instead of ending a run over it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _check_paths(arguments: argparse.Namespace) -> None:
    """Expand `~` in every path of the command line, and refuse URLs, before anything is done."""
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            setattr(arguments, name, local_path(value))
        elif isinstance(value, list):
            setattr(
                arguments,
                name,
                [local_path(one) if isinstance(one, Path) else one for one in value],
            )


def _interrupted(kept: str = "") -> int:
    print(
        f"cotjax: {kept or 'interrupted; what is finished is kept, the same command goes on from it'}",
        file=sys.stderr,
    )
    _stop_others("interrupted", 130)
    return 130


def _stop_others(message: str, exit_code: int) -> None:
    """End the other processes of this run, where there are any; they would wait for this one."""
    if "cotjax.runtime.distributed" in sys.modules:
        sys.modules["cotjax.runtime.distributed"].stop_all(message, exit_code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cotjax", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo", help="run the whole study on this machine, from made games to the report"
    )
    demo.add_argument(
        "--quick", action="store_true", help="fewer games, steps and checkpoints; the same path"
    )
    _add_config(demo, default=None)
    demo.set_defaults(run=_demo)

    for name, run, text in (
        ("study", _study, "run a config's whole study"),
        (
            "train",
            _train,
            "make or find the games, collect, build the dataset, and train every arm",
        ),
        ("evaluate", _evaluate, "play every checkpoint that `train` left in --out"),
        (
            "report",
            _report,
            "write report.html, figures and summary.json from the records in --out",
        ),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        _add_config(command, default="configs/demo.py")
        command.set_defaults(run=run)

    add_games(commands)
    add_data(commands)

    add_mask(commands)
    add_play(
        commands.add_parser(
            "play", help="play a game in the terminal, or watch a checkpoint play it"
        )
    )

    export = commands.add_parser(
        "export",
        help="write a checkpoint as a Hugging Face folder (LoRA merged), or its adapters as PEFT's",
    )
    export.add_argument(
        "--run", dest="run_folder", required=True, type=Path, help="a run's folder, e.g. runs/demo"
    )
    export.add_argument("--arm", required=True, help="arm to export, e.g. sft")
    export.add_argument("--step", type=int, help="checkpoint (default: the last)")
    export.add_argument("--out", required=True, type=Path, help="folder to write")
    export.add_argument(
        "--adapter", action="store_true", help="of a run with LoRA: the adapters alone, for PEFT"
    )
    export.set_defaults(run=_export)

    replay = commands.add_parser(
        "replay",
        help="look into a training step whose loss was not finite",
        description="Run a failed step's batch through the checkpoint before it, and print its loss by row and role, the gradient's norm "
        "by group of parameters, and what is not finite.",
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

    plan = commands.add_parser(
        "plan",
        help="does a config fit a TPU slice? compiled here, without one",
        description="Compile a config's train step and sampler for a TPU slice on this CPU, and print whether they fit, the bytes a chip, "
        "the FLOPs and what is exchanged. No speed is estimated. Ends with exit code 1 when something does not fit.",
    )
    plan.add_argument("--config", type=Path, required=True, help=CONFIG_HELP)
    plan.add_argument(
        "--topology",
        required=True,
        help="generation and shape of a slice, such as v5e:8x8 or v5p:4x4x4",
    )
    plan.add_argument("--slices", type=int, default=1, help="slices of that shape (default 1)")
    plan.add_argument(
        "--only", choices=("train", "sampler"), help="compile only this (default: both)"
    )
    plan.set_defaults(run=_plan)

    convert = commands.add_parser(
        "convert",
        help="turn a Hugging Face folder into an Orbax folder, or back",
        description="""\
Turn a model's folder into the other kind; which one SOURCE is, its files tell:

  Hugging Face   config.json, model.safetensors whole or in indexed parts
  Orbax          model.json, params/; restored by every device straight into its own share
  PEFT           adapter_config.json, adapter_model.safetensors; becomes a Hugging Face folder, merged into its base

The tokenizer's files come along. Each kind serves as a config's model.base. Parameters are read tensor by tensor and
never unpickled; between reading and writing, the devices of this machine hold them. OUT appears when all of it is written.
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument(
        "source", metavar="SOURCE", type=Path, help="folder of a model, of any kind"
    )
    convert.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help="folder to write; one that is not there yet, or is empty",
    )
    convert.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the written parameters (default: that of the tensors in SOURCE)",
    )
    convert.add_argument(
        "--max-shard-gb",
        type=float,
        default=4.0,
        help="most GB in one safetensors file of a Hugging Face OUT (default 4)",
    )
    convert.set_defaults(run=_convert)

    add_bench(commands)
    return parser


def _add_config(command: argparse.ArgumentParser, default: str | None) -> None:
    shown = default or "the demo's own"
    command.add_argument(
        "--config", type=Path, default=default, help=f"{CONFIG_HELP} (default: {shown})"
    )
    command.add_argument(
        "--out",
        type=Path,
        help="folder to write to (default: the config's); of several hosts: one that all of them see",
    )
    command.add_argument("--devices", type=int, help="stop unless there are so many in all")
    hosts = command.add_argument_group(
        "several processes",
        "On SLURM and on the hosts of a TPU slice they find each other; elsewhere:",
    )
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, with a free port")
    hosts.add_argument("--processes", type=int, help="how many there are")
    hosts.add_argument("--process-id", type=int, help="which one this is, from 0")


def _quiet_libraries() -> None:
    """Keep library chatter off the terminal; errors still show."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import logging

    for name in ("absl", "orbax", "jax", "tensorflow_datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _open(arguments: argparse.Namespace, path: Path, trains: bool = True):
    from cotjax.config import load_config
    from cotjax.model.sharding import split_cpu
    from cotjax.runtime import distributed

    distributed.join(arguments.coordinator, arguments.processes, arguments.process_id)
    config = load_config(path, arguments.overrides)
    split_cpu(config.cpu_devices)
    distributed.check(processes=arguments.processes, devices=arguments.devices)
    if arguments.out:
        config.out = str(arguments.out)
    import tensorflow_datasets as tfds

    from cotjax.study.run import open_study

    tfds.disable_progress_bar()
    return open_study(config, trains)


def _demo(arguments: argparse.Namespace) -> None:
    if arguments.quick and arguments.config:
        raise UsageError("--quick is a config of its own: give --quick or --config, not both")
    study = _open(
        arguments,
        arguments.config or _shipped_config("demo_quick.py" if arguments.quick else "demo.py"),
    )
    _finish(study, study.run())


def _shipped_config(name: str) -> Path:
    """A config of this checkout, wherever the command is run."""
    for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (folder / "configs" / name).is_file():
            return folder / "configs" / name
    raise UsageError(
        f"configs/{name} is not here; run this from a checkout of cotjax, or give --config FILE"
    )


def _study(arguments: argparse.Namespace) -> None:
    study = _open(arguments, arguments.config)
    _finish(study, study.run())


def _train(arguments: argparse.Namespace) -> None:
    study = _open(arguments, arguments.config)
    study.train(study.games())
    study.reporter.say(f"Trained: {study.folder / 'arms'}")


def _evaluate(arguments: argparse.Namespace) -> None:
    study = _open(arguments, arguments.config, trains=False)
    study.evaluate(study.games())
    study.reporter.say(f"Records: {study.folder / 'records'}")


def _report(arguments: argparse.Namespace) -> None:
    study = _open(arguments, arguments.config, trains=False)
    _finish(study, study.report())


def _finish(study, summary: dict | None) -> None:
    if summary is None:
        study.reporter.say(f"Trained: {study.folder / 'arms'} (no games to play were asked for)")
        return
    from cotjax.report.summary import terminal_table

    study.reporter.console.print(terminal_table(summary))
    study.reporter.say(f"Report: {(study.folder / 'report.html').resolve()}")


def _export(arguments: argparse.Namespace) -> None:
    from cotjax.study.export import export

    step = export(
        arguments.run_folder, arguments.arm, arguments.step, arguments.out, arguments.adapter
    )
    print(f"{arguments.arm} at step {step}: {arguments.out}")


def _replay(arguments: argparse.Namespace) -> None:
    from cotjax.train.replay import replay

    replay(arguments.failed, arguments.step)


def _plan(arguments: argparse.Namespace) -> None:
    from cotjax.plan.topology import Topology, use_compiler_alone

    topology = Topology(arguments.topology, arguments.slices)
    use_compiler_alone()
    from rich.console import Console

    from cotjax.config import load_config
    from cotjax.plan.main import plan

    if not plan(
        load_config(arguments.config, arguments.overrides),
        topology,
        Console(highlight=False, soft_wrap=True),
        arguments.only,
    ):
        sys.exit(1)


def _convert(arguments: argparse.Namespace) -> None:
    from cotjax.train.convert import OTHER, convert, folder_kind

    if arguments.max_shard_gb <= 0:
        raise UsageError(f"--max-shard-gb is {arguments.max_shard_gb:g}; give more than 0")
    kind = folder_kind(arguments.source)
    print(f"{arguments.source} ({kind}) -> {arguments.out} ({OTHER[kind]})", flush=True)
    made = convert(
        arguments.source,
        arguments.out,
        arguments.dtype,
        max(1, int(arguments.max_shard_gb * 1e9)),
        print,
    )
    print(
        f"{made.parameters:,} parameters, {made.bytes / 1e6:,.1f} MB, in {made.seconds:.1f} s: {arguments.out}"
    )


def entry_point() -> None:
    """The `cotjax` command."""
    sys.exit(main())
