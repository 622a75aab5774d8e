"""One panel of a figure: the curves of one arm in one domain, over checkpoints.

Colour, line and marker say which kind of action a curve is of, and its name stands at its end.
Every arm has panels of its own, so twelve arms are as easy to read as one. Bars are 95 % intervals
over games, bands where there are more checkpoints than bars have room for; of an arm with several
seeds, small dots are the seeds. The colours have a contrast of at least 4.5 to 1 on white, and
their counterparts for dark pages on the page's dark background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, starmap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.typing import LineStyleType
from scipy.optimize import isotonic_regression

from cotjax.report.arms import twin_of
from cotjax.report.summary import Summary

# Kind of curve -> (colour on white, on a dark page).
COLOURS = {
    "cot": ("#0067a3", "#5ab4f0"),
    "prompt": ("#ad4300", "#ff9351"),
    "constrained": ("#6b3fa0", "#c9a6ff"),
    "instructed": ("#006b4f", "#3fcf9f"),
}
_LETTER = 0.085  # width in inches of a letter of a name
BARS = 10  # checkpoints that have bars and markers; more have a band
INK, FAINT, SOFT = "#24292f", "#d8dce1", "#57606a"


@dataclass(frozen=True)
class Line:
    """One metric in a panel.

    Attributes:
      label: its name at the line's end, short.
      kind: of COLOURS; "" for ink.
      size: of its markers, in points; they differ, so that equal values do not hide each other.
      name: its name in a legend; "" for its label.
    """

    metric: str
    label: str
    kind: str
    style: LineStyleType = "-"
    marker: str = "o"
    size: float = 4.5
    name: str = ""


@dataclass(frozen=True)
class Chart:
    """One kind of figure.

    Attributes:
      low, high: ends of the y axis, as shares; None: from the data.
      twin: metric whose value for the arm trained on actions alone is drawn as a level; "" none.
    """

    title: str
    axis: str
    lines: tuple[Line, ...]
    low: float | None = 0.0
    high: float | None = 1.0
    note: str = ""
    twin: str = ""


def _modes(measure: str) -> tuple[Line, ...]:
    return (
        Line(f"{measure}_cot", "CoT", "cot", size=6),
        Line(f"{measure}_prompt", "prompt", "prompt", "--", "s"),
        Line(
            f"{measure}_prompt_constrained",
            "constr.",
            "constrained",
            ":",
            "D",
            3.5,
            "constrained prompt action",
        ),
        Line(f"{measure}_instructed", "instr.", "instructed", "-.", "^", 4, "instructed"),
    )


CHARTS = {
    "d1": Chart(
        "D1: the action is the expert's",
        "of expert states",
        _modes("d1"),
        note="On held-out expert states: is the action the reference action?",
        twin="d1_prompt",
    ),
    "d3": Chart(
        "D3: success of whole episodes",
        "of games won",
        _modes("d3"),
        note="Share of games won by each kind of action.",
        twin="d3_prompt",
    ),
    "gap": Chart(
        "Gap: CoT action minus prompt action",
        "points",
        (
            Line("d1_gap", "D1", "cot", "--", "s"),
            Line("gap", "D3", "", "-", "o"),
        ),
        low=None,
        high=None,
        note="The CoT advantage: in agreement with the expert (D1) and in games won (D3), both "
        "decoded freely. Above 0, reasoning is right where the prompt action is not.",
    ),
    "revision": Chart(
        "Revision: the CoT action is not the prompt action",
        "of expert states",
        (
            Line("revision", "revised", "", "-", "o"),
            Line("revision_helpful", "helpful", "instructed", "--", "^"),
            Line("revision_harmful", "harmful", "prompt", ":", "v"),
        ),
        high=None,
        note="On held-out expert states; one minus D2. Helpful: only the CoT action is the "
        "expert's. Harmful: only the prompt action is. Their difference is the gap of D1.",
    ),
}


def _chosen(measure: str, title: str, axis: str) -> Chart:
    """Return the chart of both actions where they are chosen among the admissible ones."""
    lines = (
        Line(f"{measure}_cot_constrained", "CoT", "cot", size=6),
        Line(f"{measure}_prompt_constrained", "prompt", "prompt", "--", "s"),
    )
    return Chart(title, axis, lines, twin=f"{measure}_prompt_constrained")


# Charts of what a verdict may be about: the measure, and whether actions are constrained.
PRIMARY = {
    ("d1", False): CHARTS["d1"],
    ("d3", False): CHARTS["d3"],
    ("d1", True): _chosen("d1", "D1 of constrained actions", "of expert states"),
    ("d3", True): _chosen("d3", "D3 by constrained actions", "of games won"),
}


def draw_panel(
    axes: Axes,
    summary: Summary,
    chart: Chart,
    arm: str,
    domain: str,
    width: float,
    y_axis: bool = True,
) -> None:
    """Draw one arm's curves of a chart in one domain.

    Args:
      width: of the panel in inches, as far as it is known; the names take the room they need of it.
      y_axis: with numbers and unit.
    """
    checkpoints, limits = summary.checkpoints, limits_of(summary, chart)
    span = max(checkpoints[-1] - checkpoints[0], 1)
    _draw_twin(axes, summary, chart, domain)
    ends = []
    for i, line in enumerate(chart.lines):
        values = _values(summary, arm, domain, line.metric)
        if not len(values):
            continue
        colour = COLOURS[line.kind][0] if line.kind else INK
        x, value, low, high = values.T
        # Shifted, so that the bars of two lines do not hide each other.
        many = len(checkpoints) > BARS
        shift = 0.0 if many else (i - (len(chart.lines) - 1) / 2) * 0.02 * span
        if many:
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        else:
            axes.vlines(x + shift, low, high, color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(
            x + shift,
            value,
            color=colour,
            linestyle=line.style,
            linewidth=1.8,
            marker=line.marker,
            markersize=line.size,
            markevery=[0, len(x) - 1] if many else None,
        )
        for step in x[[0, -1]] if many else x:
            seeds = summary.seed_values(arm, int(step), domain, line.metric)
            axes.plot(
                [step + shift] * len(seeds), seeds, ".", color=colour, markersize=3, alpha=0.7
            )
        ends.append((float(value[-1]), line.label, colour))
    axes.set_ylim(*limits)
    longest = max((len(label) for _, label, _ in ends), default=0)
    names = min((_LETTER * longest + 0.08) / width, 0.6)
    axes.set_xlim(
        checkpoints[0] - 0.08 * span,
        checkpoints[-1] + 0.07 * span + 1.15 * span * names / (1 - names),
    )
    _name_ends(axes, ends, checkpoints[-1] + 0.07 * span, limits)
    _style(axes, chart, y_axis, "start" if summary.arms[arm].start else "base")
    axes.set_xticks(ticks(checkpoints, width * (1 - names) / 1.15))
    if not ends:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=INK)


def limits_of(summary: Summary, chart: Chart) -> tuple[float, float]:
    """Return the ends of the y axis, the same for every arm and domain of a chart."""
    estimates = [point.metrics[line.metric] for point in summary.points for line in chart.lines]
    edges = [edge for each in estimates for edge in (each.low, each.high) if edge is not None]
    edges = edges or [0.0, 1.0]
    low = min(*edges, 0.0) - 0.03 if chart.low is None else chart.low
    high = max(*edges, 0.05) + 0.03 if chart.high is None else chart.high
    return low - 0.03 * (high - low), high + 0.03 * (high - low)


def apart(values: Sequence[float], space: float, low: float, high: float) -> np.ndarray:
    """Move rising `values` as little as possible (least squares) until they are `space` apart.

    Then move them into low .. high.
    """
    if not values:
        return np.empty(0)
    steps = space * np.arange(len(values))
    return np.clip(isotonic_regression(np.asarray(values) - steps).x, low, high - steps[-1]) + steps


def ticks(checkpoints: Sequence[int], width: float) -> list[int]:
    """Return up to four checkpoints whose names keep apart on an axis of `width` inches.

    The first and the last are among them. Checkpoints need not be evenly spread.
    """
    first, last = checkpoints[0], checkpoints[-1]
    scale = width / max(last - first, 1)

    def apart_from(one: int, other: int) -> bool:
        letters = (len(_step_name(one)) + len(_step_name(other))) / 2
        return (other - one) * scale > _LETTER * (letters + 1)

    for count in (4, 3):
        near = {
            min(checkpoints, key=lambda step: abs(step - value))
            for value in np.linspace(first, last, count)
        }
        chosen = sorted(near)
        if all(starmap(apart_from, pairwise(chosen))):
            return chosen
    return sorted({first, last})


def _step_name(step: float, first: str = "base") -> str:
    if round(step) == 0:
        return first
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:.0f}"


def _draw_twin(axes: Axes, summary: Summary, chart: Chart, domain: str) -> None:
    """Draw the prompt action of the arm trained on actions alone, as a level over the panel."""
    twin = twin_of(summary.arms)
    point = summary.last(twin, domain) if twin and chart.twin else None
    if point is None:
        return
    level = point.metrics[chart.twin]
    if level.value is not None and level.low is not None and level.high is not None:
        axes.axhspan(level.low, level.high, color=FAINT, alpha=0.5, linewidth=0)
        axes.axhline(level.value, color=SOFT, linewidth=1, linestyle=(0, (1, 1)))


def _values(summary: Summary, arm: str, domain: str, metric: str) -> np.ndarray:
    """Return [points, 4]: checkpoint, value, low and high where the metric was measured."""
    rows = []
    for checkpoint in summary.checkpoints:
        point = summary.point(arm, checkpoint, domain)
        if point is not None and point.metrics[metric].measured:
            estimate = point.metrics[metric]
            rows.append((checkpoint, estimate.value, estimate.low, estimate.high))
    return np.array(rows, float).reshape(-1, 4)


def _name_ends(
    axes: Axes, ends: list[tuple[float, str, str]], x: float, limits: tuple[float, float]
) -> None:
    """Write each line's name next to its last value, or as near as the other names allow."""
    order, space = sorted(ends), 0.1 * (limits[1] - limits[0])
    heights = apart(
        [value for value, _, _ in order], space, limits[0] + space / 2, limits[1] - space / 2
    )
    for y, (_, label, colour) in zip(heights, order, strict=True):
        axes.text(x, y, label, color=colour, fontsize=8.5, fontweight="bold", va="center")


def _style(axes: Axes, chart: Chart, y_axis: bool, first: str) -> None:
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _step_name(x, first)))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    unit = "" if chart.axis.endswith("points") else " %"
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda y, _: f"{100 * y:.0f}".replace("-", "−") + unit)
    )
    axes.tick_params(colors=INK, labelsize=8.5, length=3, labelleft=y_axis)
    axes.tick_params(axis="y", length=0)
    if y_axis:
        axes.set_ylabel(chart.axis, fontsize=8.5, color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    if chart.low is None:
        axes.axhline(0, color=INK, linewidth=1)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
