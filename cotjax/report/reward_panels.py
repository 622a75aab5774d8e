"""The training curve of an arm that plays to learn: its reward and its sampled success by step."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from cotjax.report.panels import COLOURS, INK
from cotjax.report.summary import Reward, Summary

_POINTS = 30  # of a line: means over so many windows of steps
TITLE = "Reward while training"
NOTE = (
    "Mean reward of a step's plays (line) and the share of them that won (dashed), over seeds: "
    "sampled episodes of training games. Not defined for arms that are trained on data."
)


def playing(summary: Summary) -> list[str]:
    """Return the arms that have rewards."""
    return [
        arm
        for arm, about in summary.arms.items()
        if any(summary.rewards.get(seed) for seed in about.seeds)
    ]


def reward_figure(summary: Summary, arm: str) -> Figure:
    """Return the panel of an arm, of the page's size."""
    figure = Figure(figsize=(2.5, 1.85))
    figure.subplots_adjust(left=0.2, right=0.97, top=0.95, bottom=0.22)
    axes = figure.add_subplot()
    for name, style in (("reward", "-"), ("success", "--")):
        steps, values = _line(_rows(summary, arm), name)
        if len(steps):
            axes.plot(steps, values, style, color=COLOURS["cot"][0], linewidth=1.6)
    axes.set_xlabel("step", fontsize=8.5, color=INK)
    axes.tick_params(colors=INK, labelsize=8.5, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def reward_words(summary: Summary, arm: str) -> str:
    """Return what the panel shows, in words."""
    steps, values = _line(_rows(summary, arm), "reward")
    if not len(steps):
        return f"{TITLE}, {summary.label(arm)}: no episode was played."
    return (
        f"{TITLE}, {summary.label(arm)}: mean reward {values[0]:.2f} at first, {values[-1]:.2f} at "
        f"step {steps[-1]:.0f}."
    )


def _rows(summary: Summary, arm: str) -> list[Reward]:
    return [row for seed in summary.arms[arm].seeds for row in summary.rewards.get(seed, ())]


def _line(rows: list[Reward], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps, means): over seeds and over windows of steps, one at the end of each."""
    by_step: dict[int, list[float]] = {}
    for row in rows:
        value = getattr(row, name)
        if value is not None:
            by_step.setdefault(row.step, []).append(value)
    if not by_step:
        return np.empty(0), np.empty(0)
    steps = np.array(sorted(by_step), float)
    values = np.array([np.mean(by_step[int(step)]) for step in steps])
    windows = np.array_split(np.arange(len(steps)), min(_POINTS, len(steps)))
    return (
        np.array([steps[each[-1]] for each in windows]),
        np.array([values[each].mean() for each in windows]),
    )
