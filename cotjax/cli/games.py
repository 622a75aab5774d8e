"""`cotjax games make` and `cotjax collect`. As in `cotjax.cli.main`, heavy imports wait for the command."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path

from cotjax.errors import DataError, UsageError


def add_games(commands) -> None:
    """Add `games` and `collect` to the commands of the parser."""
    games = commands.add_parser(
        "games", help="make household games in ALFWorld's format"
    ).add_subparsers(dest="what", required=True)
    make = games.add_parser(
        "make",
        help="make games",
        description="Make solvable household games that the stock ALFWorld loads.",
    )
    make.add_argument(
        "--out",
        required=True,
        type=Path,
        help="folder for the games; it then serves as ALFWorld data",
    )
    make.add_argument(
        "--split",
        action="append",
        help="train, valid_seen or valid_unseen; repeat for several (default: all)",
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
        help="only this task type; repeat for several (default: all six)",
    )
    make.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    make.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    make.set_defaults(run=_make_games)

    collect = commands.add_parser(
        "collect", help="let a scripted agent play games and write its trajectories"
    )
    collect.add_argument(
        "--games", required=True, type=Path, help="ALFWorld data folder (made or real)"
    )
    collect.add_argument("--split", default="train", help="split to play (default train)")
    collect.add_argument("--out", required=True, type=Path, help="JSONL file to write")
    collect.add_argument(
        "--agent",
        choices=("expert", "explorer"),
        default="expert",
        help="who plays (default expert)",
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


def _make_games(arguments: argparse.Namespace) -> None:
    from cotjax.envs.alfworld.maker.make import make_games
    from cotjax.envs.base import TASK_TYPES
    from cotjax.runtime.progress import Reporter

    reporter = Reporter()
    counts = {
        split: dict.fromkeys(arguments.task_type or TASK_TYPES, arguments.per_type)
        for split in arguments.split or ("train", "valid_seen", "valid_unseen")
    }
    with reporter.stage("games", "Making games") as stage:
        made = make_games(
            arguments.out,
            counts,
            arguments.seed,
            arguments.workers,
            lambda done, total: stage.update(done, total, "games"),
        )
    reporter.say(f"{len(made)} games in {arguments.out}")


def _collect(arguments: argparse.Namespace) -> None:
    from cotjax.envs.alfworld.env import find_games, told_left_out
    from cotjax.rollout.collect import collect
    from cotjax.runtime.progress import Reporter

    if arguments.limit < 0:
        raise UsageError(f"--limit is {arguments.limit}; give at least 0")
    reporter = Reporter()
    left_out: Counter[str] = Counter()
    games = find_games(arguments.games, arguments.split, left_out)
    if left_out:
        reporter.say(f"left out of {arguments.games}, {arguments.split}: {told_left_out(left_out)}")
    if arguments.limit:
        games = games[: arguments.limit]
    with reporter.stage("collect", f"The {arguments.agent} plays {len(games)} games") as stage:
        summary = collect(
            games,
            arguments.out,
            agent=arguments.agent,
            seed=arguments.seed,
            workers=arguments.workers,
            only_won=arguments.agent == "expert",
            progress=lambda done, total: stage.update(done, total, "episodes"),
        )
    for line in summary.lines():
        reporter.say(line)
    if not summary.kept:
        raise DataError(
            f"{arguments.out}: no episode could be kept, so the file is empty; see why above, and give other games"
        )
    reporter.say(f"Trajectories: {arguments.out}")
