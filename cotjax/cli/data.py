"""`cotjax data check|import|replay`; `cotjax.cli.choices` has `cotjax data choices`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cotjax.cli.choices import add_choices
from cotjax.errors import DataError, UsageError
from cotjax.runtime.terminal import visible

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from cotjax.data.codec import Codec
    from cotjax.data.information import RemovedTokens
    from cotjax.data.selection import Selection

LAYOUTS = (
    *("auto", "eto", "agentgym", "sharegpt", "messages", "alpaca"),
    *("prompt-response", "verl-agent", "steps"),
)


def add_data(commands: argparse._SubParsersAction) -> None:
    """Add `data` and its subcommands to the commands of the parser."""
    data = commands.add_parser(
        "data",
        help="check trajectories, import public ones, replay them in their world, or make choices",
    )
    subcommands = data.add_subparsers(dest="what", required=True)
    _add_check(subcommands)
    _add_import(subcommands)
    _add_replay(subcommands)
    add_choices(subcommands)


def _add_check(commands: argparse._SubParsersAction) -> None:
    check = commands.add_parser(
        "check",
        help="validate a trajectory file and summarise its contents",
        description="Validate every line of a trajectory file and summarise its contents. Exits "
        "with code 3 if a line is bad.",
    )
    check.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        nargs="?",
        help="JSONL of trajectories (default: the config's data.trajectories)",
    )
    check.add_argument(
        "--limit", type=int, default=20, help="bad lines to print; all are counted (default 20)"
    )
    check.add_argument(
        "--config",
        type=Path,
        help="summarise what a run of this config would train on; --config.data.layout=step "
        "changes a field",
    )
    check.add_argument(
        "--arm", help="arm whose data are summarised (default: data.direct_share of the config)"
    )
    check.add_argument(
        "--tokenizer",
        type=Path,
        help="folder with tokenizer.json: encode every episode and count its tokens",
    )
    check.add_argument(
        "--template", help="turn template for the encoding, or auto (default chatml)"
    )
    check.add_argument(
        "--max-length", type=int, help="tokens per example in training (default 768)"
    )
    check.set_defaults(run=_check)


def _add_import(commands: argparse._SubParsersAction) -> None:
    read = commands.add_parser(
        "import",
        help="convert public agent data to trajectories",
        description="Convert public agent data (a JSON array or JSON Lines) to a trajectory file. "
        "Reports the rows that cannot be converted.",
    )
    read.add_argument("files", metavar="FILE", type=Path, nargs="+", help="files to read")
    read.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="auto",
        help="layout of their rows (default auto: by each row's fields)",
    )
    read.add_argument("--out", required=True, type=Path, help="JSONL file to write")
    read.add_argument(
        "--environment",
        default="unknown",
        help="for rows that do not name one (default: the world whose game they name, or unknown)",
    )
    read.add_argument(
        "--split", default="train", help="for rows that do not name one (default train)"
    )
    read.add_argument(
        "--rejected",
        type=Path,
        help="JSONL file for the rows that cannot be converted, with their place and the reason",
    )
    read.add_argument(
        "--instructions",
        action="store_true",
        help="begin the first observation with system messages, tools and instructions, which are "
        "left out otherwise",
    )
    read.add_argument(
        "--limit", type=int, default=20, help="rejected rows to print; all are counted (default 20)"
    )
    read.set_defaults(run=_import)


def _add_replay(commands: argparse._SubParsersAction) -> None:
    replay = commands.add_parser(
        "replay",
        help="play trajectories again in their world, and compare every observation",
        description="Play the actions of every trajectory again, and compare the task, all "
        "observations and whether it was won. Exits with code 3 if one differs.",
    )
    replay.add_argument("file", metavar="FILE", type=Path, help="JSONL of trajectories")
    replay.add_argument(
        "--world",
        help="their world, as config.world (default: the one that the first of them names; "
        "alfworld where it names none)",
    )
    replay.add_argument(
        "--games", default="", help="folder of its games (default: the world's own)"
    )
    replay.add_argument(
        "--out", type=Path, help="JSONL file for the trajectories in which nothing differs"
    )
    replay.add_argument(
        "--limit", type=int, default=20, help="differences to print; all are counted (default 20)"
    )
    replay.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    replay.set_defaults(run=_replay)


def _check(arguments: argparse.Namespace) -> None:
    from cotjax.data.check import check, print_contents
    from cotjax.data.codec import Codec
    from cotjax.data.information import RemovedTokens
    from cotjax.runtime.progress import Reporter

    _not_negative(arguments.limit)
    if arguments.max_length is not None and arguments.max_length < 1:
        raise UsageError(f"--max-length is {arguments.max_length}; it must be at least 1")
    file: Path = arguments.file
    codec: Codec | None = None
    selection: Selection | None = None
    removed = RemovedTokens({})
    max_length = 768 if arguments.max_length is None else arguments.max_length
    if arguments.config or arguments.overrides:
        file, codec, selection, removed = _inputs_of_config(arguments)
    elif arguments.arm is not None:
        raise UsageError("--arm needs a config: give --config too")
    elif file is None:
        raise UsageError(
            "give the FILE to check, or a --config that names one as data.trajectories"
        )
    elif arguments.tokenizer:
        codec = Codec.load(arguments.tokenizer, arguments.template or "chatml")
    reporter = Reporter()
    with reporter.stage("check", f"Checking {file}") as stage:
        contents = check(
            file,
            limit=arguments.limit,
            codec=codec,
            max_length=max_length,
            selection=selection,
            progress=lambda done, total: stage.update(done // 10**6, total // 10**6, "MB"),
            seen=removed.add,
        )
    print_contents(file, contents, reporter.console, max_length)
    for line in removed.lines():
        reporter.console.print(line, markup=False, soft_wrap=True)
    if contents.bad:
        lines = contents.bad + contents.episodes
        raise DataError(f"{file}: {contents.bad:,} of {lines:,} lines are bad")
    if contents.trained is not None and not contents.trained.examples:
        raise DataError(f"{file}: {contents.trained.why_nothing()}")


def _inputs_of_config(
    arguments: argparse.Namespace,
) -> tuple[Path, Codec, Selection, RemovedTokens]:
    """Return the file, codec and selection of a run of the config, and what its arms drop."""
    from cotjax.data.information import RemovedTokens
    from cotjax.study.arms import arms_of, dropping_of, member_named
    from cotjax.study.training_data import codec_of, drawn_of, selection_of

    flags = {"data.trajectories": arguments.file, "model.tokenizer": arguments.tokenizer}
    flags |= {"data.template": arguments.template, "data.max_length": arguments.max_length}
    config = data_config(arguments, flags)
    file, arms = Path(config.data.trajectories), arms_of(config)
    arm = None if arguments.arm is None else arms[member_named(config, arguments.arm)]
    on_data = [name for name, own in arms.items() if not own.reinforced]
    droppings, drawn = {each: dropping_of(config, each) for each in on_data}, drawn_of(config, file)
    codec, selection = codec_of(config, file, drawn), selection_of(config, arm, drawn)
    return file, codec, selection, RemovedTokens(droppings)


def data_config(arguments: argparse.Namespace, flags: dict[str, object]) -> ConfigDict:
    """Return the config that the arguments give.

    Args:
      flags: field -> value; None keeps the config's own value.

    Raises:
      UsageError: the config names no trajectory file.
      DataError: the file does not exist.
    """
    from cotjax.config import default_config, load_config, own_files, set_fields
    from cotjax.runtime.members import arm_and_seed

    overrides = [
        *arguments.overrides,
        *(f"{name}={value}" for name, value in flags.items() if value is not None),
    ]
    if arguments.config:
        config = load_config(arguments.config, overrides)
    else:
        config = default_config()
        set_fields(config, overrides)
    own = own_files(config).get(arm_and_seed(arguments.arm or "")[0])
    if own and flags["data.trajectories"] is None:
        config.data.trajectories = own
    if not config.data.trajectories:
        raise UsageError(
            "the config collects its own trajectories: give a file of them, or set "
            "--config.data.trajectories=FILE"
        )
    if not Path(config.data.trajectories).is_file():
        raise DataError(
            f"{config.data.trajectories}: no such trajectory file; `cotjax collect` makes one"
        )
    return config


def _import(arguments: argparse.Namespace) -> None:
    from cotjax.data.importing.importing import import_files
    from cotjax.runtime.progress import Reporter

    _not_negative(arguments.limit)
    reporter = Reporter()
    with reporter.stage("import", f"Reading {', '.join(map(str, arguments.files))}") as stage:
        result = import_files(
            arguments.files,
            arguments.out,
            layout=arguments.layout,
            environment=arguments.environment,
            split=arguments.split,
            rejected=arguments.rejected,
            instructions=arguments.instructions,
            limit=arguments.limit,
            progress=lambda rows, share: stage.update(
                round(100 * share), 100, f"percent, {rows:,} rows"
            ),
        )
    for message in result.messages:
        print(visible(message), file=sys.stderr)
    if result.rejected > len(result.messages):
        print(f"and {result.rejected - len(result.messages):,} more", file=sys.stderr)
    for reason, count in result.reasons.most_common():
        reporter.say(f"  {count:,} rejected: {reason}")
    for kind, count in result.left_out.most_common():
        reporter.say(f"  {count:,} left out: {kind}")
    layouts = ", ".join(f"{name} {count:,}" for name, count in result.layouts.most_common())
    reporter.say(
        f"{result.kept:,} of {result.rows:,} rows are trajectories ({layouts}): {arguments.out}"
    )


def _not_negative(limit: int) -> None:
    if limit < 0:
        raise UsageError(f"--limit is {limit}; it must be at least 0")


def _replay(arguments: argparse.Namespace) -> None:
    from cotjax.data.trajectories import MARK, UNKNOWN, read_trajectories, write_trajectories
    from cotjax.envs.worlds import load_world
    from cotjax.rollout.verify import games_of, verify
    from cotjax.runtime.files import check_output
    from cotjax.runtime.progress import Reporter

    _not_negative(arguments.limit)
    if arguments.out is not None:
        check_output(arguments.out, mark=MARK, inputs=[arguments.file])
    reporter, trajectories = Reporter(), list(read_trajectories(arguments.file))
    named = [each.environment for each in trajectories[:1] if each.environment != UNKNOWN]
    world = load_world(arguments.world or next(iter(named), "alfworld"))
    games = games_of(world, arguments.games, trajectories)
    same, faults = [], []
    with reporter.stage("replay", f"Replaying {len(trajectories)} episodes") as stage:
        for replayed in verify(
            world,
            games,
            trajectories,
            workers=arguments.workers,
            progress=lambda done, total: stage.update(done, total, "episodes"),
        ):
            if replayed.fault is None:
                same.append(replayed.trajectory)
            else:
                faults.append(replayed.fault)
    for fault in faults[: arguments.limit]:
        reporter.say(f"  {visible(fault)}")
    reporter.say(f"{len(same)} of {len(trajectories)} episodes replay to the same observations")
    if arguments.out is not None:
        write_trajectories(arguments.out, same)
        reporter.say(f"{arguments.out}: these {len(same)}")
    if faults:
        raise DataError(f"{arguments.file}: {len(faults)} episodes differ, or cannot be replayed")
