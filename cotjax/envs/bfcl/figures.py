"""What `cotjax bench worlds --world bfcl` says of the package's answers and its checker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cotjax.envs.bfcl.back_ends import accepts
from cotjax.envs.bfcl.calls import Call, parse_action
from cotjax.envs.bfcl.entries import TASK_TYPES, Entry, entries_file, read_entries


def answers_of(entry: Entry) -> list[list[Call]]:
    """Return the calls that fulfil each request."""
    return [[call for text in turn for call in parse_action(text)] for turn in entry.answers]


def without_last(answers: Sequence[list[Call]]) -> list[list[Call]]:
    """Return the answers without the last of all calls."""
    last = max(turn for turn, calls in enumerate(answers) if calls)
    return [calls[:-1] if turn == last else calls for turn, calls in enumerate(answers)]


def in_turns(answers: Sequence[list[Call]]) -> list[list[list[Call]]]:
    """Return each turn's calls as one action, as `accepts` takes them."""
    return [[calls] if calls else [] for calls in answers]


def figure_lines(folder: Path) -> Iterator[str]:
    """Yield a line a task type, on all its entries in a data folder, whatever their split."""
    for task_type in TASK_TYPES:
        entries = read_entries(entries_file(folder, task_type)).values()
        answers = [answers_of(entry) for entry in entries]
        accepted = sum(map(accepts, entries, map(in_turns, answers)))
        rejected = sum(
            not accepts(entry, in_turns(without_last(calls)))
            for entry, calls in zip(entries, answers, strict=True)
        )
        yield (
            f"{task_type}: answers accepted by the checker {accepted} of {len(entries)}, without "
            f"their last call rejected {rejected}"
        )
