"""A comparison of sides: they must agree, then they take turns, and a table shows the figures.

No two sides run at the same time, and rounds alternate: a machine that is slower for a minute is
slower for every side, and the ratios stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from cotjax.bench.jobs import Job
from cotjax.bench.sides import Side
from cotjax.errors import InternalError, UsageError

Figures = dict[str, dict[str, float]]
# The least share of episodes in which two sides' actions are equal.
AGREE = 0.9


def compare(
    jobs: Iterable[Job],
    folder: Path,
    console: Console,
    *,
    describe: Callable[[Side], str],
    check: Callable[[Side, Side], None],
    rounds: int,
    count: int = 1,
    after_round: Callable[[int, Sequence[Side]], None] = lambda number, sides: None,
) -> list[Side]:
    """Start a side for each job, check it, and run the rounds; returns the sides, closed.

    Args:
      jobs: cotjax's first.
      folder: for the sides' standard error.
      describe: returns the line that is printed when a side has started.
      check: raises an error when the second side disagrees with the first, cotjax's.
      rounds, count: rounds, repetitions a round.
      after_round: called with the round's number, from 1.
    """
    sides: list[Side] = []
    try:
        for job in jobs:
            sides.append(Side(job, folder))
            say(console, describe(sides[-1]))
            check(sides[0], sides[-1])
        for number in range(1, rounds + 1):
            for side in sides:
                side.measure(count)
            # A run that is stopped before its table has said this much.
            took = (f"{side.name} {median(side.seconds[-1]):.3g} s" for side in sides)
            say(console, f"round {number}: {', '.join(took)}")
            after_round(number, sides)
    finally:
        for side in sides:
            side.close()
    return sides


def check_agreement(
    games: Sequence[str], ours: Mapping[str, list], theirs: Mapping[str, list], other: str
) -> list[str]:
    """Return a sentence for each episode that differs: its first differing step.

    Raises InternalError when they are more than a few.
    """
    differ = []
    for game in games:
        mine, their = ([*actions.get(game, []), None] for actions in (ours, theirs))
        if mine != their:
            pairs = enumerate(zip(mine, their, strict=False))
            step = next(step for step, pair in pairs if pair[0] != pair[1])
            differ.append(f"{game}, step {step + 1}: {mine[step]!r} here, {their[step]!r} there")
    if len(games) - len(differ) < AGREE * len(games):
        raise InternalError(
            f"cotjax and {other} do not play alike: {len(differ)} of {len(games)} episodes differ, "
            f"more than rounding explains; the first is {differ[0]}"
        )
    return differ


def ratios(ours: Side, other: Side) -> dict[str, float]:
    """Return how much longer the other side takes than cotjax.

    "ratio": of the medians; "ratio_low", "ratio_high": the lowest and highest round's;
    "best_ratio": of the fastest repetitions, which other load on the machine hardly touches.
    """
    by_round = [
        median(theirs) / median(mine)
        for theirs, mine in zip(other.seconds, ours.seconds, strict=True)
    ]
    return {
        "ratio": median(flat(other.seconds)) / median(flat(ours.seconds)),
        "ratio_low": min(by_round),
        "ratio_high": max(by_round),
        "best_ratio": min(flat(other.seconds)) / min(flat(ours.seconds)),
    }


def flat(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Return the figures of all rounds in one list."""
    return [figure for each in rounds for figure in each]


def check_counts(counts: dict[str, int], least: dict[str, int] | None = None) -> None:
    """Raise UsageError for an option below 1, or below `least` where it names the option."""
    for name, value in counts.items():
        limit = (least or {}).get(name, 1)
        if value < limit:
            raise UsageError(f"--{name} is {value}; it must be at least {limit}")


def say(console: Console, line: str) -> None:
    """Print a line as it is."""
    console.print(line, markup=False, soft_wrap=True)


def print_table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: the first column is left-aligned, the others are right-aligned."""
    first, *others = columns
    table = Table()
    table.add_column(first)
    for column in others:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
