"""What arms that play to learn were rewarded with, along their training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from cotjax.objectives.named import REINFORCED
from cotjax.report.labels import NOT_DEFINED
from cotjax.report.section import Cell, Section, SectionRow, SectionTable
from cotjax.report.summary import Reward, Summary

WINDOWS = 6  # columns
_NOTE = (
    "Mean over the plays of these steps, and over seeds: sampled episodes of training games, in "
    "contrast to the greedy ones of held-out games everywhere else on this page. Small: the share "
    "of them that won, in percent. No intervals: a step's plays come from a policy that changes."
)


def rewards(summary: Summary) -> list[Section]:
    """Return the section on rewards, where an arm has any."""
    if not summary.rewards:
        return []
    steps = {each.step for rows in summary.rewards.values() for each in rows}
    windows = _windows(max(steps))
    rows = []
    for about in summary.arms.values():
        own = [each for seed in about.seeds for each in summary.rewards.get(seed, ())]
        if about.objective in REINFORCED or own:
            rows.append(SectionRow(about.label, tuple(_cell(own, *window) for window in windows)))
        else:
            note = "it is trained on data"
            rows.append(SectionRow(about.label, (NOT_DEFINED,) * len(windows), note=note))
    heads = tuple(
        f"step {first}" if first == last else f"steps {first} to {last}" for first, last in windows
    )
    table = SectionTable("", heads, tuple(rows), (_NOTE,), rows_are="arm")
    return [Section("rewards", "Reward while training", (table,))]


def _windows(steps: int) -> list[tuple[int, int]]:
    """Return (first, last) of at most WINDOWS windows of steps 1 to `steps`, nearly equal ones."""
    count = min(WINDOWS, steps)
    ends = [round(steps * window / count) for window in range(count + 1)]
    return [(before + 1, end) for before, end in pairwise(ends)]


def _cell(rows: Sequence[Reward], first: int, last: int) -> Cell:
    inside = [each for each in rows if first <= each.step <= last]
    values = [each.reward for each in inside if each.reward is not None]
    wins = [each.success for each in inside if each.success is not None]
    if not values:
        return Cell("–")
    behind = f"{100 * sum(wins) / len(wins):.0f} % won" if wins else ""
    return Cell(f"{sum(values) / len(values):.2f}".replace("-", "−"), behind)
