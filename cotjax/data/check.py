"""Check a trajectory file line by line, and summarise its contents."""

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
from cotjax.data.tokens import TokenExample, trajectory_examples
from cotjax.data.trajectories import (
    KNOWN_FIELDS,
    KNOWN_STEP_FIELDS,
    BadLine,
    Line,
    Trajectory,
    read_lines,
)
from cotjax.errors import DataError
from cotjax.masking import Role
from cotjax.runtime.terminal import visible

_UNLIMITED = 1 << 30  # tokens: measure every episode uncut
_PROGRESS_BYTES = 1 << 20  # between two calls of `progress`
_MAX_LISTED = 12  # values of a field in the table; the others are counted together


@dataclass
class Contents:
    """The contents of a trajectory file. Counters map a value to its number of occurrences.

    errors: the messages of the first bad lines, as `file:line: problem`
    bad: number of bad lines
    episodes, steps: of the good lines
    untrained: steps marked as not trained on
    thoughtless: trained steps without a thought
    outcomes: won, lost, not known
    provenance: of trained steps' thoughts
    lengths: steps per episode
    tokens: tokens per episode, or, with a selection, per example
    unknown: fields that the schema does not have
    odd: what the schema allows but the author may not have meant
    long, lost: episodes longer than max_length tokens, and their steps that do not fit together
      with their prompt
    trained: what a run with the selection trains on, and what it leaves out; None without one
    """

    errors: list[str] = field(default_factory=list)
    bad: int = 0
    episodes: int = 0
    steps: int = 0
    untrained: int = 0
    thoughtless: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    task_types: Counter[str] = field(default_factory=Counter)
    environments: Counter[str] = field(default_factory=Counter)
    provenance: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    odd: Counter[str] = field(default_factory=Counter)
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
    seen: Callable[[TokenExample], None] = lambda example: None,
) -> Contents:
    """Read the whole file, good lines and bad, and return a summary of its contents.

    Args:
      limit: number of bad lines whose message is kept; all are counted.
      codec: if given, every episode is encoded, and its tokens are counted; a line whose text
        cannot be encoded is bad.
      max_length: tokens that an example may have in training.
      selection: if given (with a codec), encode only the steps that a run with it trains on; its
        own `max_length` applies then.
      progress: called with (bytes read, bytes in all) about once a megabyte.
      seen: called with each example that the selection trains on; a line of which it raises
        DataError is bad.

    Raises:
      DataError: the file is missing or empty.
    """
    path = Path(path)
    contents = Contents(trained=None if selection is None else Counts())
    total = path.stat().st_size if path.is_file() else 0
    done = reported = 0
    for line in read_lines(path):
        done += line.size
        error = line.error if isinstance(line, BadLine) else None
        if isinstance(line, Line) and codec is not None:
            try:
                if selection is None or contents.trained is None:
                    _encode_whole(contents, line.trajectory, codec, max_length)
                else:
                    examples = selection.examples(codec, line.trajectory, contents.trained)
                    contents.tokens.update(len(example.ids) for example in examples)
                    for example in examples:
                        seen(example)
            except DataError as problem:
                error = DataError(f"{path}:{contents.bad + contents.episodes + 1}: {problem}")
        if error is not None:
            contents.bad += 1
            if len(contents.errors) < limit:
                contents.errors.append(str(error))
        elif isinstance(line, Line):
            _count(contents, line)
        if done - reported >= _PROGRESS_BYTES:
            progress(done, total)
            reported = done
    return contents


def _count(contents: Contents, line: Line) -> None:
    """Count a good line."""
    trajectory = line.trajectory
    contents.episodes += 1
    contents.steps += len(trajectory.steps)
    contents.outcomes[{True: "won", False: "lost", None: "not known"}[trajectory.success]] += 1
    tally(contents.splits, trajectory.split)
    tally(contents.task_types, trajectory.task_type)
    tally(contents.environments, trajectory.environment)
    contents.lengths[len(trajectory.steps)] += 1
    contents.odd.update(oddities(trajectory))
    for step in trajectory.steps:
        if not step.trained:
            contents.untrained += 1
        elif step.thought is None:
            contents.thoughtless += 1
        else:
            tally(contents.provenance, step.provenance or UNKNOWN_PROVENANCE)
    for name in line.fields.keys() - KNOWN_FIELDS:
        tally(contents.unknown, name)
    for fields in line.fields["steps"]:
        for name in fields.keys() - KNOWN_STEP_FIELDS:
            tally(contents.unknown, f"steps.{name}")


def _encode_whole(
    contents: Contents, trajectory: Trajectory, codec: Codec, max_length: int
) -> None:
    """Encode an episode uncut, and count its tokens and the steps that would not fit.

    Raises:
      DataError: its text cannot be encoded.
    """
    # One example, or none where no step is trained on.
    for example in trajectory_examples(codec, trajectory, "cot", _UNLIMITED, no_thought="direct"):
        contents.tokens[len(example.ids)] += 1
        if len(example.ids) > max_length:
            contents.long += 1
            # Positions continue from a response's own prompt, so they tell its length alone.
            ends = example.positions[example.roles == Role.END]
            contents.lost += int((ends >= max_length).sum())


def print_contents(path: Path, contents: Contents, console: Console, max_length: int) -> None:
    """Print the bad lines, a table of the rest, and what a run trains on."""
    for error in contents.errors:
        console.print(visible(error), style="red", markup=False, soft_wrap=True)
    if contents.bad > len(contents.errors):
        console.print(f"and {contents.bad - len(contents.errors):,} more", style="red")
    summary = f"{path}: {contents.episodes:,} episodes, {contents.steps:,} steps"
    console.print(summary, markup=False, soft_wrap=True)
    console.print(_table(contents, max_length))
    if contents.trained is not None:
        for line in ("A run trains on", *(f"  {line}" for line in contents.trained.lines())):
            console.print(line, markup=False, soft_wrap=True)


def _table(contents: Contents, max_length: int) -> Table:
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    known = contents.outcomes["won"] + contents.outcomes["lost"]
    share = f"{contents.outcomes['won'] / known:.1%}" if known else ""
    table.add_row(
        "success", f"{share} of the {known:,} whose outcome is known" if known else "none is known"
    )
    table.add_row("split", Text(_listed(contents.splits)))
    table.add_row("environment", Text(_listed(contents.environments)))
    table.add_row("task type", Text(_listed(contents.task_types)))
    table.add_row("steps per episode", _quartiles(contents.lengths))
    table.add_row("steps not trained on", f"{contents.untrained:,}")
    table.add_row("missing thoughts", f"{contents.thoughtless:,}")
    table.add_row("provenance of thoughts", Text(_listed(contents.provenance)))
    for oddity, count in contents.odd.most_common():
        table.add_row("odd", Text(f"{count:,} {visible(oddity)}"))
    if contents.unknown:
        table.add_row("unknown fields, ignored", Text(_listed(contents.unknown)))
    if contents.trained is not None:
        table.add_row("tokens per example", _quartiles(contents.tokens))
    elif contents.tokens:
        table.add_row("tokens per episode", _quartiles(contents.tokens))
        table.add_row(
            f"longer than {max_length:,}",
            f"{contents.long:,} episodes; {contents.lost:,} of their steps do not fit together "
            "with their prompt and are not trained on",
        )
    return table


def _listed(counts: Counter[str]) -> str:
    listed = [f"{visible(value):.60} {count:,}" for value, count in counts.most_common(_MAX_LISTED)]
    if len(counts) > _MAX_LISTED:
        listed.append(f"and {len(counts) - _MAX_LISTED:,} other values")
    return ", ".join(listed) or "none"


def _quartiles(counts: Counter[int]) -> str:
    """Return the minimum, quartiles and maximum of a counter's numbers, in words."""
    total, seen = sum(counts.values()), 0
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    values: list[int] = []
    for value in sorted(counts):
        seen += counts[value]
        while len(values) < len(shares) and seen >= max(1, shares[len(values)] * total):
            values.append(value)
    names = ("min", "25 %", "median", "75 %", "max")
    return ", ".join(f"{name} {value:,}" for name, value in zip(names, values, strict=False))
