"""`cotjax demo`, `study`, `train`, `evaluate` and `report`: a config's study, whole or by stage."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotjax.cli.asking import check_run, print_parts, print_power, print_tables
from cotjax.errors import UsageError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from cotjax.study.run import Study

CONFIG_HELP = "config file, e.g. configs/demo.py; change a field with --config.train.steps=200"


def add_demo(commands: Any) -> None:
    """Add `demo` to the commands of the parser."""
    demo = commands.add_parser(
        "demo", help="run the whole study on this machine, from made games to the report"
    )
    size = demo.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="fewer games, cells, steps and checkpoints"
    )
    size.add_argument("--full", action="store_true", help="every cell with three seeds")
    _add_config(demo, default=None)
    demo.set_defaults(run=_demo)


def add_stages(commands: Any) -> None:
    """Add `study`, its stages and `rl` to the commands of the parser."""
    for name, run, text in (
        ("study", _study, "run a config's whole study"),
        (
            "train",
            _train,
            "make or find the games, collect, build the dataset, and train every arm",
        ),
        (
            "rl",
            _rl,
            "train every arm by reinforcement learning, play its checkpoints, and report them",
        ),
        (
            "evaluate",
            _evaluate,
            "play every checkpoint that `train` left in --out, or the model of --model",
        ),
        (
            "probe",
            _probe,
            "measure checkpoints at states of the episodes that `evaluate` left in --out",
        ),
        (
            "report",
            _report,
            "write report.html, figures and summary.json from the records of one or more runs",
        ),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        _add_config(command, default=f"configs/{'grpo_demo' if name == 'rl' else 'demo'}.py")
        command.set_defaults(run=run)
        if name == "study":
            _add_instead(command)
        if name in ("study", "train", "evaluate", "probe"):
            _add_arms(command)
        if name == "evaluate":
            _add_model(command)
        if name == "report":
            _add_runs(command)
        if name == "probe":
            command.add_argument(
                "--only",
                metavar="NAME,...",
                type=_names,
                default=(),
                help="probes (default: those of config.probes.names)",
            )


def _add_instead(command: argparse.ArgumentParser) -> None:
    """Add what `study` does in place of running a study."""
    instead = command.add_mutually_exclusive_group()
    instead.add_argument(
        "--power",
        action="store_true",
        help="say what a study of this size can find, by config.primary, and do nothing",
    )
    instead.add_argument(
        "--parts",
        action="store_true",
        help="print what --arms may name in processes of their own, a line for each, and "
        "do nothing",
    )
    instead.add_argument(
        "--check",
        metavar="RUN",
        type=Path,
        help="recompute every number of the report in a finished run's folder, or in the "
        "archive of one, from its records, by other code, and do nothing else; exit code 1 "
        "where one differs",
    )


def _add_arms(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--arms",
        metavar="NAME,...",
        type=_names,
        default=(),
        help="do this for these arms alone, or members such as sft/seed-0, beside other "
        "processes that have the others; --arms with the same --out (default: all, and a "
        "study's report)",
    )


def _add_config(command: argparse.ArgumentParser, default: str | None) -> None:
    shown = default or "the demo's own"
    command.add_argument(
        "--config", type=Path, default=default, help=f"{CONFIG_HELP} (default: {shown})"
    )
    command.add_argument(
        "--out",
        type=Path,
        help="folder to write to (default: the config's); several hosts need a shared one",
    )
    command.add_argument(
        "--devices", type=int, help="fail unless this many devices are there in all"
    )
    hosts = command.add_argument_group(
        "several processes",
        "On SLURM and on the hosts of a TPU slice they find each other; elsewhere:",
    )
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, with a free port")
    hosts.add_argument("--processes", type=int, help="number of processes")
    hosts.add_argument("--process-id", type=int, help="number of this process, from 0")


def _add_runs(command: argparse.ArgumentParser) -> None:
    """Add the runs that are reported without a config."""
    command.set_defaults(config=None)
    command.add_argument(
        "runs",
        metavar="RUN",
        nargs="*",
        type=Path,
        help="a run's folder, e.g. runs/demo; everything is read from it, and no --config is "
        "needed. Several get a page of all besides, runs.html in --out (default: the first RUN)",
    )
    command.add_argument(
        "--table",
        metavar="RUN",
        type=Path,
        help="print the main numbers of a finished run's report, or of the archive of one, as "
        "tables in Markdown, and do nothing else",
    )


def _add_model(command: argparse.ArgumentParser) -> None:
    """Add the arguments of a model that is played without a run."""
    # Without --model the default config is a stage's; with it there is none.
    command.set_defaults(config=None)
    model = command.add_argument_group(
        "a model without a run",
        "Writes records, run.json and the report to --out (default: runs/NAME-SPLIT). --config may "
        "give the settings of playing.",
    )
    model.add_argument(
        "--model",
        type=Path,
        help="Hugging Face, Orbax or PEFT folder; with --endpoint the model's name there",
    )
    model.add_argument(
        "--endpoint",
        metavar="URL",
        help="OpenAI-compatible server that has the model, such as http://localhost:8000/v1",
    )
    model.add_argument(
        "--key-variable",
        default="OPENAI_API_KEY",
        help="environment variable with the server's key (default: OPENAI_API_KEY)",
    )
    model.add_argument("--world", help="world that is played (default: the config's, or alfworld)")
    model.add_argument("--split", help="split that is played (default: the config's)")
    model.add_argument("--games", type=Path, help="folder of games (default: as config.games says)")
    model.add_argument(
        "--kinds",
        metavar="KIND,...",
        type=_names,
        default=(),
        help="kinds of action that are played (default: those of config.evaluate.elicitations)",
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _open(
    arguments: argparse.Namespace, path: Path, trains: bool = True, reinforced: bool = False
) -> Study:
    from cotjax.config import load_config

    _join(arguments)
    config = load_config(path, arguments.overrides)
    if arguments.out:
        config.out = str(arguments.out)
    only = getattr(arguments, "arms", ())
    return _opened(arguments, config, trains=trains, reinforced=reinforced, only=only)


def _join(arguments: argparse.Namespace) -> None:
    from cotjax.runtime.joining import join

    join(arguments.coordinator, arguments.processes, arguments.process_id)


def _opened(
    arguments: argparse.Namespace,
    config: ConfigDict,
    trains: bool = True,
    alone: Callable[[ConfigDict], None] | None = None,
    reinforced: bool = False,
    only: Sequence[str] = (),
) -> Study:
    from cotjax.model.platform import split_cpu
    from cotjax.runtime.joining import check

    split_cpu(config.cpu_devices)
    check(processes=arguments.processes, devices=arguments.devices)
    import tensorflow_datasets as tfds

    from cotjax.study.run import open_study

    tfds.disable_progress_bar()
    return open_study(config, trains, alone, reinforced, only)


def _demo(arguments: argparse.Namespace) -> None:
    size = "quick" if arguments.quick else "full" if arguments.full else ""
    if size and arguments.config:
        raise UsageError(f"--{size} is a config of its own: give --{size} or --config, not both")
    shipped = f"demo_{size}.py" if size else "demo.py"
    study = _open(arguments, arguments.config or shipped_config(shipped))
    _finish(study, study.run())


def shipped_config(name: str) -> Path:
    """Return a config of this checkout, from any working directory."""
    for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (folder / "configs" / name).is_file():
            return folder / "configs" / name
    raise UsageError(
        f"configs/{name} is not here; run this from a checkout of cotjax, or give --config FILE"
    )


def _study(arguments: argparse.Namespace) -> int:
    if arguments.check:
        return check_run(arguments.check)
    if arguments.power:
        print_power(arguments)
        return 0
    if arguments.parts:
        print_parts(arguments)
        return 0
    study = _open(arguments, arguments.config)
    _finish(study, study.run())
    return 0


def _train(arguments: argparse.Namespace) -> None:
    study = _open(arguments, arguments.config)
    study.train(study.games())
    study.reporter.say(f"Trained: {study.folder / 'arms'}")


def _rl(arguments: argparse.Namespace) -> None:
    study = _open(arguments, arguments.config, reinforced=True)
    _finish(study, study.reinforce(study.games()))


def _evaluate(arguments: argparse.Namespace) -> None:
    given = [name for name in ("world", "split", "games", "kinds") if getattr(arguments, name)]
    if arguments.arms and (arguments.model or arguments.endpoint):
        raise UsageError("--arms names arms of a config's run; leave it out with --model")
    if arguments.endpoint:
        _evaluate_endpoint(arguments)
        return
    if arguments.model:
        _evaluate_model(arguments)
        return
    if given:
        raise UsageError(f"--{given[0]} needs --model FOLDER; a config's run has its own")
    study = _open(arguments, arguments.config or Path("configs/demo.py"), trains=False)
    study.evaluate(study.games())
    study.reporter.say(f"Records: {study.folder / 'records'}")


def _probe(arguments: argparse.Namespace) -> None:
    study = _open(arguments, arguments.config, trains=False)
    study.probe(study.games(), arguments.only)
    study.reporter.say(f"Measured: {study.folder / 'probes'}")


def _evaluate_model(arguments: argparse.Namespace) -> None:
    from cotjax.study.model import config_of_model, play_model
    from cotjax.study.ready import check_alone

    _join(arguments)
    config = config_of_model(arguments.model, **_of_model(arguments))
    study = _opened(arguments, config, alone=check_alone)
    _finish(study, play_model(study, study.games()))


def _evaluate_endpoint(arguments: argparse.Namespace) -> None:
    from cotjax.study.endpoint import Endpoint, check_endpoint, config_of_endpoint, play_endpoint

    if arguments.model is None:
        raise UsageError("--endpoint needs --model NAME, the name that the server knows")
    _join(arguments)
    endpoint = Endpoint(arguments.endpoint, str(arguments.model), arguments.key_variable)
    config = config_of_endpoint(endpoint, **_of_model(arguments))
    study = _opened(arguments, config, alone=check_endpoint)
    _finish(study, play_endpoint(study, study.games(), endpoint))


def _of_model(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a model that is played without a run."""
    names = ("world", "split", "games", "kinds", "out", "overrides")
    return {name: getattr(arguments, name) for name in names} | {"file": arguments.config}


def _report(arguments: argparse.Namespace) -> None:
    if arguments.table:
        print_tables(arguments.table)
        return
    if arguments.runs:
        _report_runs(arguments)
        return
    study = _open(arguments, arguments.config or Path("configs/demo.py"), trains=False)
    _finish(study, study.report())


def _report_runs(arguments: argparse.Namespace) -> None:
    runs, several = arguments.runs, len(arguments.runs) > 1
    if arguments.config or arguments.overrides:
        raise UsageError("report RUN... reads everything from the runs: leave --config out")
    if arguments.out and not several:
        raise UsageError(f"the report of one run is written to {runs[0]}: leave --out out")
    from rich.console import Console

    from cotjax.report.runs import report_runs
    from cotjax.runtime.progress import Reporter

    reporter = Reporter(console=Console(highlight=False))
    page = report_runs(runs, arguments.out, reporter.console, reporter.warn)
    reporter.say(f"Report: {page.resolve()}")


def _finish(study: Study, summary: Any) -> None:
    if summary is None and study.only:
        study.reporter.say(
            f"This part is done: {', '.join(study.arm_folders)}. When all are, the same command "
            "without --arms writes the report"
        )
        return
    if summary is None:
        study.reporter.say(f"Trained: {study.folder / 'arms'} (no games to play were asked for)")
        return
    study.reporter.say(f"Report: {(study.folder / 'report.html').resolve()}")
