"""`cotjax games make`, `games fetch` and `cotjax collect`. Heavy imports happen in the commands."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from cotjax.errors import DataError, UsageError

if TYPE_CHECKING:
    from cotjax.envs.worlds import World


def add_games(commands: argparse._SubParsersAction) -> None:
    """Add `games` and `collect` to the commands of the parser."""
    games = commands.add_parser(
        "games", help="make games, in ALFWorld's format by default, or download a world's own"
    ).add_subparsers(dest="what", required=True)
    make = games.add_parser(
        "make",
        help="make games",
        description="Make solvable games. Household games load in the stock ALFWorld too.",
    )
    _add_world(make)
    make.add_argument(
        "--out",
        required=True,
        type=Path,
        help="folder for the games, which can then be played like the world's own data",
    )
    make.add_argument(
        "--split",
        action="append",
        help="ALFWorld: train, valid_seen or valid_unseen; also an axis such as ood_rooms or "
        "ood_objects, whose held-out objects are then no goal of other splits; repeat for several "
        "(default: all but axes)",
    )
    make.add_argument(
        "--per-type",
        type=int,
        default=10,
        help="games of each task type in each split (default 10)",
    )
    make.add_argument(
        "--task-type",
        action="append",
        help="only this task type; repeat for several (default: all)",
    )
    make.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    make.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    make.set_defaults(run=_make_games)
    fetch = games.add_parser(
        "fetch",
        help="download a world's published games",
        description="Download a world's published games, and count them.",
    )
    fetch.add_argument("world", help="alfworld, whose package brings the downloader")
    fetch.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("ALFWORLD_DATA") or "~/alfworld"),
        help="folder for them, for ALFWORLD_DATA or config.games.root (default %(default)s)",
    )
    fetch.set_defaults(run=_fetch_games)

    _add_collect(commands)


def _add_collect(commands: argparse._SubParsersAction) -> None:
    collect = commands.add_parser(
        "collect", help="let a scripted agent play games and write its trajectories"
    )
    _add_world(collect)
    collect.add_argument(
        "--games", default="", help="folder of games, made or real (default: the world's own)"
    )
    collect.add_argument("--split", default="train", help="split to play (default train)")
    collect.add_argument("--out", required=True, type=Path, help="JSONL file to write")
    collect.add_argument(
        "--agent",
        default="expert",
        help="scripted agent that plays; ALFWorld has expert and explorer (default expert)",
    )
    collect.add_argument(
        "--thoughts",
        default="named",
        help="kind of the thoughts, as config.collect.thoughts; ALFWorld has named and unnamed "
        "(default named)",
    )
    collect.add_argument(
        "--slips",
        type=float,
        default=0.0,
        help="share of the expert's steps that go wrong, as config.collect.slips; they are not "
        "trained on, and the next ones show how to recover (default 0)",
    )
    collect.add_argument(
        "--max-steps", type=int, default=30, help="steps an episode, at most (default 30)"
    )
    collect.add_argument(
        "--limit", type=int, default=0, help="play at most this many games (default: all)"
    )
    collect.add_argument(
        "--seed", type=int, default=0, help="of wording and exploration (default 0)"
    )
    collect.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    collect.set_defaults(run=_collect)


def _add_world(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--world", default="alfworld", help="world of the games, as config.world (default alfworld)"
    )
    add_source(command)


def add_source(command: argparse.ArgumentParser) -> None:
    """Add --source, which `world_of` reads beside the world's name."""
    command.add_argument(
        "--source",
        help="where the world's facts are from; search_qa has invented and real (default: its own)",
    )


def world_of(arguments: argparse.Namespace) -> World:
    """Return the world that `arguments.world` and `arguments.source` name. Raises UsageError."""
    from cotjax.envs.worlds import load_world

    world = load_world(arguments.world)
    return world if arguments.source is None else world.of_source(arguments.source)


def _make_games(arguments: argparse.Namespace) -> None:
    from cotjax.runtime.progress import Reporter

    reporter, world = Reporter(), world_of(arguments)
    counts = {
        split: dict.fromkeys(arguments.task_type or world.task_types, arguments.per_type)
        for split in arguments.split or world.splits
    }
    with reporter.stage("games", "Making games") as stage:
        made = world.make_games(
            arguments.out,
            counts,
            arguments.seed,
            arguments.workers,
            lambda done, total: stage.update(done, total, "games"),
        )
    reporter.say(f"{len(made)} games in {arguments.out}")


def _fetch_games(arguments: argparse.Namespace) -> None:
    from cotjax.envs.worlds import load_world
    from cotjax.runtime.progress import Reporter

    reporter, world = Reporter(), load_world(arguments.world)
    counts = world.fetch_games(arguments.out, reporter.say)
    each = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    reporter.say(f"{arguments.out}: {each}; use it with --config.games.root={arguments.out}")


def _collect(arguments: argparse.Namespace) -> None:
    from cotjax.rollout.collect import Collecting, collect
    from cotjax.runtime.progress import Reporter
    from cotjax.study.games import left_out_text

    if arguments.limit < 0:
        raise UsageError(f"--limit is {arguments.limit}; give at least 0")
    reporter, world = Reporter(), world_of(arguments)
    world.check_agent(arguments.agent)
    left_out: Counter[str] = Counter()
    games = world.games(arguments.games, arguments.split, left_out)
    if left_out:
        reporter.say(
            f"left out of {arguments.games or world.name}, {arguments.split}: "
            f"{left_out_text(left_out)}"
        )
    if arguments.limit:
        games = games[: arguments.limit]
    with reporter.stage("collect", f"The {arguments.agent} plays {len(games)} games") as stage:
        summary = collect(
            world,
            games,
            arguments.out,
            Collecting(
                arguments.agent,
                arguments.seed,
                max_steps=arguments.max_steps,
                only_won=arguments.agent == "expert",
                mistakes=arguments.slips,
                thoughts=arguments.thoughts,
            ),
            workers=arguments.workers,
            progress=lambda done, total: stage.update(done, total, "episodes"),
        )
    for line in summary.lines():
        reporter.say(line)
    if not summary.kept:
        raise DataError(
            f"{arguments.out}: no episode could be kept, so the file is empty; "
            "see why above, and give other games"
        )
    reporter.say(f"Trajectories: {arguments.out}")
