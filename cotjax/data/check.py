"""Check a trajectory file line by line, and say what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cotjax.data.codec import Codec
from cotjax.data.oddities import oddities
from cotjax.data.selection import UNKNOWN_PROVENANCE, Counts, Selection, tally
from cotjax.data.tokens import trajectory_examples
from cotjax.data.trajectories import KNOWN_FIELDS, KNOWN_STEP_FIELDS, Line, Trajectory, read_lines
from cotjax.errors import DataError
from cotjax.masking import Role
from cotjax.runtime.terminal import visible

_WHOLE = 1 << 30  # tokens; nothing is cut for measuring it
_PROGRESS_BYTES = 1 << 20  # between two calls of `progress`
_SHOWN = 12  # values a table lists of a field; the others are counted together


@dataclass
class Contents:
    """What a file holds. Counters are value -> how often.

    errors: the first bad lines, as `file:line: what`; bad: how many there are in all
    episodes, steps: of the good lines; untrained: steps that are history alone; thoughtless: trained steps without a thought
    outcomes: won, lost, not known; provenance: of trained steps' thoughts
    lengths: steps an episode; tokens: tokens an episode, or, where there is a selection, an example
    unknown: fields that the schema does not have
    odd: what the schema allows but may not be meant
    long, lost: episodes longer than max_length tokens, and their steps that do not fit even by themselves
    trained: what a run with the selection trains on, and what it leaves out; None without one
    """

    errors: list[str] = field(default_factory=list)
    bad: int = 0
    episodes: int = 0
    steps: int = 0
    untrained: int = 0
    thoughtless: int = 0
    outcomes: Counter = field(default_factory=Counter)
    splits: Counter = field(default_factory=Counter)
    task_types: Counter = field(default_factory=Counter)
    environments: Counter = field(default_factory=Counter)
    provenance: Counter = field(default_factory=Counter)
    lengths: Counter = field(default_factory=Counter)
    tokens: Counter = field(default_factory=Counter)
    unknown: Counter = field(default_factory=Counter)
    odd: Counter = field(default_factory=Counter)
    long: int = 0
    lost: int = 0
    trained: Counts | None = None


def check(
    path: str | Path,
    *,
    limit: int = 20,
    codec: Codec | None = None,
    max_length: int = 768,
    selection: Selection | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Contents:
    """Read all of a file, good lines and bad, holding one line at a time.

    Args:
      limit: bad lines whose message is kept; all are counted.
      codec: with one, every episode is encoded too: its text must be, and its tokens are counted.
      max_length: tokens an example may have in training.
      selection: with one, and a codec, exactly those steps are encoded that a run with it trains on, and only text that it would
        encode must be encodable; its own `max_length` counts then.
      progress: called with (bytes read, bytes in all) now and then.

    Raises:
      DataError: the file is missing or empty.
    """
    found, done, told, path = Contents(trained=selection and Counts()), 0, 0, Path(path)
    total = path.stat().st_size if path.is_file() else 0
    for line in read_lines(path):
        done += line.size
        error = line.error
        if error is None and codec is not None:
            try:
                _encode(found, line.trajectory, codec, max_length, selection)
            except DataError as refused:
                error = DataError(f"{path}:{found.bad + found.episodes + 1}: {refused}")
        if error is not None:
            found.bad += 1
            if len(found.errors) < limit:
                found.errors.append(str(error))
        else:
            _count(found, line)
        if done - told >= _PROGRESS_BYTES:
            progress(done, total)
            told = done
    return found


def _count(found: Contents, line: Line) -> None:
    trajectory = line.trajectory
    found.episodes += 1
    found.steps += len(trajectory.steps)
    found.outcomes[{True: "won", False: "lost", None: "not known"}[trajectory.success]] += 1
    tally(found.splits, trajectory.split)
    tally(found.task_types, trajectory.task_type)
    tally(found.environments, trajectory.environment)
    found.lengths[len(trajectory.steps)] += 1
    found.odd.update(oddities(trajectory))
    for step in trajectory.steps:
        if not step.trained:
            found.untrained += 1
        elif step.thought is None:
            found.thoughtless += 1
        else:
            tally(found.provenance, step.provenance or UNKNOWN_PROVENANCE)
    for name in line.row.keys() - KNOWN_FIELDS:
        tally(found.unknown, name)
    for step in line.row["steps"]:
        for name in step.keys() - KNOWN_STEP_FIELDS:
            tally(found.unknown, f"steps.{name}")


def _encode(
    found: Contents,
    trajectory: Trajectory,
    codec: Codec,
    max_length: int,
    selection: Selection | None,
) -> None:
    """Raises DataError: what would be encoded cannot be."""
    if selection is not None:
        found.tokens.update(
            len(example.ids) for example in selection.examples(codec, trajectory, found.trained)
        )
        return
    for example in trajectory_examples(
        codec, trajectory, "cot", _WHOLE, no_thought="direct"
    ):  # one, or none where no step is trained
        found.tokens[len(example.ids)] += 1
        if len(example.ids) > max_length:
            found.long += 1
            # Positions go on from a response's own prompt, whatever stands between them in the example.
            found.lost += int((example.positions[example.roles == Role.END] >= max_length).sum())


def print_contents(path: Path, found: Contents, console: Console, max_length: int) -> None:
    """The bad lines, and a table of the rest."""
    for error in found.errors:
        console.print(visible(str(error)), style="red", markup=False, soft_wrap=True)
    if found.bad > len(found.errors):
        console.print(f"and {found.bad - len(found.errors):,} more", style="red")
    console.print(
        f"{path}: {found.episodes:,} episodes, {found.steps:,} steps", markup=False, soft_wrap=True
    )
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    known = found.outcomes["won"] + found.outcomes["lost"]
    won = (
        f"{found.outcomes['won'] / known:.1%} of the {known:,} whose outcome is known"
        if known
        else "no outcome is known"
    )
    table.add_row("success", won)
    for name, counts in (
        ("split", found.splits),
        ("environment", found.environments),
        ("task type", found.task_types),
    ):
        table.add_row(name, Text(_listed(counts)))
    table.add_row("steps an episode", _spread(found.lengths))
    table.add_row("steps not trained on", f"{found.untrained:,}")
    table.add_row("thoughts missing", f"{found.thoughtless:,}")
    table.add_row("thoughts' provenance", Text(_listed(found.provenance)))
    for what, count in found.odd.most_common():
        table.add_row("odd", Text(f"{count:,} {visible(what)}"))
    if found.unknown:
        table.add_row("unknown fields, passed over", Text(_listed(found.unknown)))
    if found.trained is not None:
        table.add_row("tokens an example", _spread(found.tokens))
    elif found.tokens:
        table.add_row("tokens an episode", _spread(found.tokens))
        text = f"{found.long:,} episodes; {found.lost:,} of their steps do not fit with their prompt, and are not trained on"
        table.add_row(f"longer than {max_length:,}", text)
    console.print(table)
    if found.trained is not None:
        for line in ("A run trains on", *(f"  {line}" for line in found.trained.lines())):
            console.print(line, markup=False, soft_wrap=True)


def _listed(counts: Counter) -> str:
    shown = [f"{visible(value):.60} {count:,}" for value, count in counts.most_common(_SHOWN)]
    others = len(counts) - len(shown)
    return ", ".join([*shown, *([f"and {others:,} other values"] if others else [])]) or "none"


def _spread(counts: Counter) -> str:
    """Quartiles of a counter's numbers."""
    total, seen, marks = sum(counts.values()), 0, []
    wanted = [0.0, 0.25, 0.5, 0.75, 1.0]
    for value in sorted(counts):
        seen += counts[value]
        while wanted and seen >= max(1, wanted[0] * total):
            marks.append(value)
            wanted.pop(0)
    names = ("least", "a quarter at most", "median", "three quarters at most", "most")
    return ", ".join(f"{name} {mark:,}" for name, mark in zip(names, marks, strict=False))
