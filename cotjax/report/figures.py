"""Figures of a summary: curves over checkpoints, in-domain and out-of-domain side by side.

Each arm has a colour (Okabe and Ito's palette, distinguishable by colour-blind readers), each kind
of action a line style and a marker, and every line is labelled at its end. Bars are 95 % intervals.
Figures are drawn on `matplotlib.figure.Figure`, without pyplot and its global state.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.optimize import isotonic_regression

from cotjax.report.labels import domain_label, spread
from cotjax.report.summary import BASE, Summary

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")
INK, FAINT = "#24292f", "#d8dce1"


@dataclass(frozen=True)
class Line:
    """One metric in a panel. `label`: its name at the line's end."""

    metric: str
    label: str
    style: str = "-"
    marker: str = "o"


@dataclass(frozen=True)
class Chart:
    """One figure, with a panel per domain.

    `low`, `high`: ends of the y axis, as shares; None: from the data.
    """

    title: str
    axis: str
    lines: tuple[Line, ...]
    low: float | None = 0.0
    high: float | None = 1.0
    note: str = ""


CHARTS = {
    "d3": Chart(
        "D3: success of whole episodes",
        "success",
        (Line("d3_cot", "CoT"), Line("d3_prompt", "prompt", "--", "s")),
        note="Share of games won, driven by CoT actions (solid) and driven by prompt actions "
        "(dashed).",
    ),
    "gap": Chart(
        "Gap: success by CoT minus by prompt actions",
        "gap, points",
        (Line("gap", "gap"),),
        low=None,
        high=None,
        note="The CoT advantage, on the same games. Above 0, reasoning wins games that the prompt "
        "action loses.",
    ),
    "d1": Chart(
        "D1: the action is the expert's",
        "share of expert states",
        (Line("d1_cot", "CoT"), Line("d1_prompt", "prompt", "--", "s")),
        note="On held-out expert states: is the generated action the reference action?",
    ),
    "d2": Chart(
        "D2: prompt action = CoT action",
        "share of expert states",
        (Line("d2", "same"),),
        note="Consistency on held-out expert states: one minus the revision rate.",
    ),
    "revision": Chart(
        "Revision: CoT action ≠ prompt action",
        "share of expert states",
        (Line("revision", "revised"),),
        high=None,
        note="How often reasoning changes the action on held-out expert states.",
    ),
    "revision_quality": Chart(
        "Revisions that help, and that harm",
        "share of expert states",
        (
            Line("revision_helpful", "helpful", "-", "^"),
            Line("revision_harmful", "harmful", ":", "v"),
        ),
        high=None,
        note="Helpful: only the CoT action is the expert's. Harmful: only the prompt action is. "
        "Their difference is the gap of D1.",
    ),
}
_OVERVIEW = ("d3", "gap", "d1", "revision_quality")


def write_figures(summary: Summary, folder: str | Path) -> list[Path]:
    """Write one PNG per chart and overview.png (1600 x 900 pixels); return their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, chart in CHARTS.items():
        paths.append(_save(_chart_figure(summary, chart), folder / f"{name}.png"))
    paths.append(_save(_overview_figure(summary), folder / "overview.png"))
    return paths


def panel_svg(summary: Summary, name: str, domain: str, prefix: str) -> str:
    """Return one panel as an inline SVG element.

    Its ids begin with `prefix`. Its ink is currentColor, and an arm's colour is var(--arm0),
    var(--arm1), …
    """
    figure = Figure(figsize=(5.4, 3.5), layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, summary, CHARTS[name], domain, _limits(summary, CHARTS[name]))
    buffer = io.StringIO()
    # Without a salt of our own, ids would differ from run to run.
    with rc_context({"svg.hashsalt": "cotjax"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), prefix)


def arm_colours(summary: Summary) -> dict[str, str]:
    """Return arm -> colour; the seventh arm has the first colour again."""
    return {arm: COLOURS[i % len(COLOURS)] for i, arm in enumerate(summary.arms)}


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=100, facecolor="white", metadata={"Software": None})
    return path


def _chart_figure(summary: Summary, chart: Chart) -> Figure:
    domains = summary.domains
    figure = Figure(figsize=(6.0 * len(domains), 4.6), layout="constrained")
    limits = _limits(summary, chart)
    for axes, domain in zip(np.atleast_1d(figure.subplots(1, len(domains))), domains, strict=True):
        _draw(axes, summary, chart, domain, limits)
        axes.set_title(_panel_title(summary, domain), fontsize=11, color=INK, loc="left")
    figure.suptitle(chart.title, fontsize=14, color=INK, fontweight="bold")
    _legend(figure, summary)
    return figure


def _overview_figure(summary: Summary) -> Figure:
    domains = summary.domains
    figure = Figure(figsize=(16, 9), layout="constrained")
    grid = figure.subplots(len(domains), len(_OVERVIEW), squeeze=False)
    for axes, name in zip(grid[0], _OVERVIEW, strict=True):
        axes.set_title(
            textwrap.fill(CHARTS[name].title, 25),
            fontsize=12,
            color=INK,
            fontweight="bold",
            loc="left",
        )
    for row, domain in zip(grid, domains, strict=True):
        for axes, name in zip(row, _OVERVIEW, strict=True):
            _draw(axes, summary, CHARTS[name], domain, _limits(summary, CHARTS[name]))
        row[0].set_ylabel(
            f"{_panel_title(summary, domain)}\n\n{CHARTS[_OVERVIEW[0]].axis}",
            fontsize=11,
            color=INK,
        )
    figure.suptitle("Where CoT training gains land", fontsize=17, color=INK, fontweight="bold")
    _legend(figure, summary)
    return figure


def _panel_title(summary: Summary, domain: str) -> str:
    games = max(
        (
            point.metrics[name].games
            for point in summary.points
            if point.domain == domain
            for name in ("d3_cot", "d1_cot")
        ),
        default=0,
    )
    return f"{domain_label(domain)}, {games} games"


def _legend(figure: Figure, summary: Summary) -> None:
    colours = arm_colours(summary)
    handles = [
        Line2D([], [], color=colours[arm], linewidth=3, label=about.label)
        for arm, about in summary.arms.items()
    ]
    handles.append(
        Line2D(
            [],
            [],
            color=INK,
            linewidth=1,
            marker="|",
            markersize=9,
            linestyle="none",
            label="95 % interval",
        )
    )
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 4),
        frameon=False,
        fontsize=11,
        labelcolor=INK,
    )


def _limits(summary: Summary, chart: Chart) -> tuple[float, float]:
    """Return the ends of the y axis, the same for every domain of a chart."""
    estimates = [point.metrics[line.metric] for point in summary.points for line in chart.lines]
    edges = [edge for each in estimates for edge in (each.low, each.high) if edge is not None]
    edges = edges or [0.0, 1.0]
    low = min(*edges, 0.0) - 0.03 if chart.low is None else chart.low
    high = max(*edges, 0.05) + 0.03 if chart.high is None else chart.high
    return low - 0.02 * (high - low), high + 0.02 * (high - low)


def _draw(
    axes: Axes, summary: Summary, chart: Chart, domain: str, limits: tuple[float, float]
) -> None:
    """Draw the chart's curves of one domain."""
    checkpoints = summary.checkpoints
    span = max(checkpoints[-1] - checkpoints[0], 1)
    colours, several = arm_colours(summary), len(summary.arms) > 1
    ends = []
    drawn = [(arm, line) for arm in summary.arms for line in chart.lines]
    for i, (arm, line) in enumerate(drawn):
        values = _values(summary, arm, domain, line.metric)
        if not len(values):
            continue
        x, value, low, high = values.T
        # Shifted, so that the bars of two lines do not hide each other.
        x = x + (i - (len(drawn) - 1) / 2) * 0.011 * span
        axes.vlines(x, low, high, color=colours[arm], linewidth=1.3, alpha=0.55)
        axes.plot(
            x,
            value,
            color=colours[arm],
            linestyle=line.style,
            linewidth=2,
            marker=line.marker,
            markersize=5,
        )
        label = line.label if len(chart.lines) > 1 or not several else arm
        ends.append((float(value[-1]), label, colours[arm]))
    axes.set_ylim(*limits)
    axes.set_xlim(checkpoints[0] - 0.05 * span, checkpoints[-1] + 0.26 * span)
    _name_ends(axes, ends, checkpoints[-1] + 0.05 * span, limits)
    _style(axes, chart, checkpoints)
    if not ends:
        axes.text(0.5, 0.5, "no records", transform=axes.transAxes, ha="center", color=INK)


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
    order, space = sorted(ends), 0.075 * (limits[1] - limits[0])
    heights = apart(
        [value for value, _, _ in order], space, limits[0] + space / 2, limits[1] - space / 2
    )
    for y, (_, label, colour) in zip(heights, order, strict=True):
        axes.text(
            x, y, label, color=colour, fontsize=10.5, fontweight="bold", va="center", clip_on=False
        )


def apart(values: Sequence[float], space: float, low: float, high: float) -> np.ndarray:
    """Move rising `values` as little as possible (least squares) until they are `space` apart.

    Then move them into low .. high.
    """
    if not values:
        return np.empty(0)
    steps = space * np.arange(len(values))
    return np.clip(isotonic_regression(np.asarray(values) - steps).x, low, high - steps[-1]) + steps


def _style(axes: Axes, chart: Chart, checkpoints: Sequence[int]) -> None:
    axes.set_ylabel(chart.axis, fontsize=10.5, color=INK)
    axes.set_xlabel("training step", fontsize=10.5, color=INK)
    axes.set_xticks(spread(checkpoints, 7))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: "base" if round(x) == 0 else f"{x:.0f}")
    )
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    unit = "" if chart.axis.endswith("points") else " %"
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda y, _: f"{100 * y:.0f}".replace("-", "−") + unit)
    )
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    if chart.low is None:
        axes.axhline(0, color=INK, linewidth=1)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.tick_params(colors=INK, labelsize=10, length=3)
    axes.tick_params(axis="y", length=0)


def _inline(svg: str, prefix: str) -> str:
    """Return the SVG element of a file, without what a page does not need."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    head, rest = svg[: svg.index(">")], svg[svg.index(">") :]
    head = re.sub(r'\s(?:xmlns(?::xlink)?|version|width|height)="[^"]*"', "", head)
    svg = (head + rest).replace("xlink:href=", "href=")
    # Several panels share a page: keep the ids that something refers to, and make them unique.
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r'\sid="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="|url\()#', rf"\g<1>#{prefix}", svg)
    for i, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--arm{i})")
    svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--line)")
    return re.sub(r"\n\s*", "\n", svg).strip()


def alt_text(summary: Summary, name: str, domain: str) -> str:
    """Return what the panel shows, in words: first and last value of every line."""
    parts = []
    for arm, about in summary.arms.items():
        for line in CHARTS[name].lines:
            ends = [summary.point(arm, 0, domain), summary.last(arm, domain)]
            values = [point.metrics[line.metric].value for point in ends if point]
            numbers = [f"{100 * value:.0f}" for value in values if value is not None]
            if numbers and len(numbers) == len(values):
                label = f"{about.label}, {line.label}" if arm != BASE else line.label
                parts.append(f"{label}: " + " to ".join(numbers))
    return (
        f"{CHARTS[name].title}, {domain_label(domain)}, in percent from base to last checkpoint. "
        + ("; ".join(parts) or "No records")
        + "."
    )
