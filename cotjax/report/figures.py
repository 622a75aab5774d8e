"""Figures of a summary: curves over checkpoints, in-domain and out-of-domain side by side.

An arm is a colour (Okabe and Ito's, told apart by colour-blind readers), a kind of action is a line style and a marker, and every line
is named at its end. Bars are 95 % intervals. Figures are drawn on `matplotlib.figure.Figure` alone: pyplot and its global state stay
untouched.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.optimize import isotonic_regression

from cotjax.report.summary import BASE, domain_label, find_point

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")
INK, FAINT = "#24292f", "#d8dce1"


@dataclass(frozen=True)
class Line:
    """One metric in a panel: its name at the line's end, line style and marker."""

    metric: str
    label: str
    style: str = "-"
    marker: str = "o"


@dataclass(frozen=True)
class Chart:
    """One figure: a panel a domain. `low` and `high` bound the y axis at least (as shares; None leaves it to the data)."""

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
        note="Share of games won, driven by CoT actions (solid) and driven by prompt actions (dashed).",
    ),
    "gap": Chart(
        "Gap: success by CoT minus by prompt actions",
        "gap, points",
        (Line("gap", "gap"),),
        low=None,
        high=None,
        note="The CoT advantage, on the same games. Above 0, reasoning wins games that the prompt action loses.",
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
        note="Helpful: only the CoT action is the expert's. Harmful: only the prompt action is. Their difference is the gap of D1.",
    ),
}
_OVERVIEW = ("d3", "gap", "d1", "revision_quality")


def write_figures(summary: dict, folder: str | Path) -> list[Path]:
    """Write a PNG a chart, and overview.png (1600 x 900 pixels), into `folder`; return their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, chart in CHARTS.items():
        paths.append(_save(_chart_figure(summary, chart), folder / f"{name}.png"))
    paths.append(_save(_overview_figure(summary), folder / "overview.png"))
    return paths


def panel_svg(summary: dict, name: str, domain: str, prefix: str) -> str:
    """One panel as an inline SVG element: ids begin with `prefix`, ink is currentColor, an arm's colour is var(--arm0), var(--arm1), …"""
    figure = Figure(figsize=(5.4, 3.5), layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, summary, CHARTS[name], domain, _limits(summary, CHARTS[name]))
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), prefix)


def arm_colours(summary: dict) -> dict[str, str]:
    """arm -> colour; the seventh arm begins again at the first colour."""
    return {arm: COLOURS[i % len(COLOURS)] for i, arm in enumerate(summary["arms"])}


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=100, facecolor="white", metadata={"Software": None})
    return path


def _chart_figure(summary: dict, chart: Chart) -> Figure:
    domains = summary["domains"]
    figure = Figure(figsize=(6.0 * len(domains), 4.6), layout="constrained")
    limits = _limits(summary, chart)
    for axes, domain in zip(np.atleast_1d(figure.subplots(1, len(domains))), domains, strict=True):
        _draw(axes, summary, chart, domain, limits)
        axes.set_title(_panel_title(summary, domain), fontsize=11, color=INK, loc="left")
    figure.suptitle(chart.title, fontsize=14, color=INK, fontweight="bold")
    _legend(figure, summary)
    return figure


def _overview_figure(summary: dict) -> Figure:
    domains = summary["domains"]
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


def _panel_title(summary: dict, domain: str) -> str:
    games = max(
        (
            point["metrics"][name]["games"]
            for point in summary["points"]
            if point["domain"] == domain
            for name in ("d3_cot", "d1_cot")
        ),
        default=0,
    )
    return f"{domain_label(domain)}, {games} games"


def _legend(figure: Figure, summary: dict) -> None:
    colours = arm_colours(summary)
    handles = [
        Line2D([], [], color=colours[arm], linewidth=3, label=about["label"])
        for arm, about in summary["arms"].items()
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


def _limits(summary: dict, chart: Chart) -> tuple[float, float]:
    """The y axis, the same for every domain of a chart."""
    edges = [
        point["metrics"][line.metric][side]
        for point in summary["points"]
        for line in chart.lines
        for side in ("low", "high")
    ]
    edges = [edge for edge in edges if edge is not None] or [0.0, 1.0]
    low = min(*edges, 0.0) - 0.03 if chart.low is None else chart.low
    high = max(*edges, 0.05) + 0.03 if chart.high is None else chart.high
    return low - 0.02 * (high - low), high + 0.02 * (high - low)


def _draw(
    axes: Axes, summary: dict, chart: Chart, domain: str, limits: tuple[float, float]
) -> None:
    """The chart's curves of one domain into `axes`."""
    checkpoints = summary["checkpoints"]
    span = max(checkpoints[-1] - checkpoints[0], 1)
    colours, several = arm_colours(summary), len(summary["arms"]) > 1
    ends = []
    drawn = [(arm, line) for arm in summary["arms"] for line in chart.lines]
    for i, (arm, line) in enumerate(drawn):
        shift = (
            (i - (len(drawn) - 1) / 2) * 0.011 * span
        )  # so that the bars of two lines do not hide each other
        found = [
            (c, point["metrics"][line.metric])
            for c in checkpoints
            if (point := find_point(summary, arm, c, domain))
        ]
        found = [(c, estimate) for c, estimate in found if estimate["value"] is not None]
        if not found:
            continue
        x = np.array([c for c, _ in found]) + shift
        value, low, high = (
            np.array([estimate[key] for _, estimate in found]) for key in ("value", "low", "high")
        )
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
        ends.append((value[-1], label, colours[arm]))
    axes.set_ylim(*limits)
    axes.set_xlim(checkpoints[0] - 0.05 * span, checkpoints[-1] + 0.26 * span)
    _name_ends(axes, ends, checkpoints[-1] + 0.05 * span, limits)
    _style(axes, chart, checkpoints)
    if not ends:
        axes.text(0.5, 0.5, "no records", transform=axes.transAxes, ha="center", color=INK)


def _name_ends(
    axes: Axes, ends: list[tuple[float, str, str]], x: float, limits: tuple[float, float]
) -> None:
    """Each line's name beside its last value, or as near to it as the other names leave room."""
    order, room = sorted(ends), 0.075 * (limits[1] - limits[0])
    heights = apart(
        [value for value, _, _ in order], room, limits[0] + room / 2, limits[1] - room / 2
    )
    for y, (_, label, colour) in zip(heights, order, strict=True):
        axes.text(
            x, y, label, color=colour, fontsize=10.5, fontweight="bold", va="center", clip_on=False
        )


def apart(values: Sequence[float], room: float, low: float, high: float) -> np.ndarray:
    """Rising `values` moved as little as it takes (by least squares) for them to be `room` apart, and then into low .. high."""
    if not values:
        return np.empty(0)
    steps = room * np.arange(len(values))
    return np.clip(isotonic_regression(np.asarray(values) - steps).x, low, high - steps[-1]) + steps


def _style(axes: Axes, chart: Chart, checkpoints: list[int]) -> None:
    axes.set_ylabel(chart.axis, fontsize=10.5, color=INK)
    axes.set_xlabel("training step", fontsize=10.5, color=INK)
    axes.set_xticks(_ticks(checkpoints))
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


def _ticks(checkpoints: list[int]) -> list[int]:
    """At most seven checkpoints, first and last among them."""
    chosen = np.unique(
        np.linspace(0, len(checkpoints) - 1, min(len(checkpoints), 7)).round().astype(int)
    )
    return [checkpoints[i] for i in chosen]


def _inline(svg: str, prefix: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = (
        re.sub(r'\s(?:xmlns(?::xlink)?|version|width|height)="[^"]*"', "", svg[: svg.index(">")])
        + svg[svg.index(">") :]
    )
    svg = svg.replace("xlink:href=", "href=")
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    # matplotlib salts its ids with a random number: number them in the order of appearance instead.
    names: dict[str, str] = {}
    svg = re.sub(
        r'\sid="([^"]+)"',
        lambda m: (
            f' id="{names.setdefault(m[1], f"{prefix}{len(names)}")}"' if m[1] in used else ""
        ),
        svg,
    )
    svg = re.sub(r'(href="|url\()#([^")]+)', lambda m: f"{m[1]}#{names[m[2]]}", svg)
    for i, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--arm{i})")
    return re.sub(
        r"\n\s*", "\n", svg.replace(INK, "currentColor").replace(FAINT, "var(--line)")
    ).strip()


def alt_text(summary: dict, name: str, domain: str) -> str:
    """What the panel shows, in words: first and last value of every line."""
    parts = []
    for arm, about in summary["arms"].items():
        for line in CHARTS[name].lines:
            ends = [
                find_point(summary, arm, checkpoint, domain)
                for checkpoint in (0, summary["last_checkpoint"])
            ]
            values = [point["metrics"][line.metric]["value"] for point in ends if point]
            if values and None not in values:
                label = f"{about['label']}, {line.label}" if arm != BASE else line.label
                parts.append(f"{label}: " + " to ".join(f"{100 * value:.0f}" for value in values))
    return (
        f"{CHARTS[name].title}, {domain_label(domain)}, in percent from base to last checkpoint. "
        + ("; ".join(parts) or "No records")
        + "."
    )
