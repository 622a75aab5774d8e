"""`cotjax data choices`: pairs for action triggering, from facts or from runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from cotjax.errors import UsageError


def add_choices(commands: argparse._SubParsersAction) -> None:
    """Add `choices` to the subcommands of `data`."""
    choices = commands.add_parser(
        "choices",
        help="make pairs that teach when to search, from facts or from runs",
        description="Make pairs of a chosen and a rejected way to go on, half of them in each "
        "direction. By default from a world's facts: a search is chosen where the next fact is "
        "unknown, its statement where it is known. With --records from a model's runs: a search "
        "is chosen where the model was right with one and wrong without, and the reverse.",
    )
    choices.add_argument("--out", required=True, type=Path, help="JSONL file to write")
    choices.add_argument(
        "--world", default="search_qa", help="world, as config.world (default search_qa)"
    )
    choices.add_argument("--games", type=Path, help="folder of games whose facts are asked for")
    choices.add_argument(
        "--records",
        type=Path,
        action="append",
        default=[],
        help="folder of episode records with and without searches, of training games; repeat for "
        "several",
    )
    choices.add_argument(
        "--count", type=int, default=500, help="pairs, half in each direction (default 500)"
    )
    choices.add_argument("--seed", type=int, default=0, help="of draws and wording (default 0)")
    choices.set_defaults(run=_choices)


def _choices(arguments: argparse.Namespace) -> None:
    from cotjax.data.lesson_files import MARK, write_texts
    from cotjax.envs.worlds import load_world
    from cotjax.rl.choices import choices_of_records
    from cotjax.rollout.record import read_records
    from cotjax.runtime.files import check_output
    from cotjax.runtime.progress import Reporter

    if arguments.count < 2:
        raise UsageError(f"--count is {arguments.count}; give at least 2, one in each direction")
    if bool(arguments.games) == bool(arguments.records):
        raise UsageError("give --games FOLDER for its facts, or --records FOLDER for runs")
    check_output(arguments.out, mark=MARK)
    reporter, world = Reporter(), load_world(arguments.world)
    if arguments.games:
        made = world.lessons(arguments.games, arguments.seed).choices(arguments.count)
    else:
        records = (record for folder in arguments.records for record in read_records(folder))
        made, counts = choices_of_records(world, records, arguments.count, arguments.seed)
        for line in counts.lines():
            reporter.say(f"  {line}")
    write_texts(arguments.out, made)
    searches = sum(choice.searches for choice in made)
    reporter.say(
        f"{len(made):,} pairs ({searches:,} choose a search, {len(made) - searches:,} none): "
        f"{arguments.out}"
    )
