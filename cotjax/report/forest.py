"""The figure that answers: how far each arm's two actions moved, and the verdict.

Each domain is a facet, which is a figure of the page; saved, they stand side by side.

Every arm has a line for its name, a line for its verdict and a line for each interval, so nothing
can collide however many arms there are.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cotjax.diagnostics.statistics import Estimate
from cotjax.report.labels import capitalize, domain_label, percent
from cotjax.report.panels import COLOURS, FAINT, INK, SOFT
from cotjax.report.summary import Summary
from cotjax.report.verdicts import NOT_INTERPRETED, colour_of, share_text, verdict_of

WIDTH, ROW, AXIS = 3.6, 0.62, 0.5  # inches: of a facet, of an arm, and of the axis below
_MARKERS = {"cot": ("o", 6.0), "prompt": ("s", 5.0)}
_BOLD, _PLAIN = FontProperties(size=8, weight="bold"), FontProperties(size=7.5)
# Height of the lines of a row, in rows from its middle; the intervals' by kind.
_NAME, _VERDICT = 0.32, 0.08
_LINES = {"cot": -0.16, "prompt": -0.34}


@dataclass(frozen=True)
class ForestRow:
    """One arm. `colour`: kind of curve that its verdict is coloured like; "" for ink."""

    label: str
    verdict: str
    colour: str
    estimates: dict[str, Estimate]


@dataclass(frozen=True)
class Facet:
    """A domain. `title`: with the number of its games; `unit`: of its axis."""

    title: str
    unit: str
    rows: tuple[ForestRow, ...]
    limits: tuple[float, float]

    @property
    def height(self) -> float:
        """Height in inches."""
        return ROW * len(self.rows) + AXIS

    @property
    def alt(self) -> str:
        """The facet in words."""
        texts = []
        for row in self.rows:
            parts = [f"{kind} {percent(each, digits=1)}" for kind, each in row.estimates.items()]
            texts.append(f"{row.label}: {'; '.join([*parts, row.verdict] if parts else ['–'])}")
        return f"{self.title}, {self.unit}, with 95 % intervals. {'. '.join(texts)}."


def facets(summary: Summary) -> tuple[Facet, ...]:
    """Return a facet for each domain with verdicts; of a base alone, one with its rates."""
    if not summary.last_checkpoint:
        rows = tuple(_level(summary, domain) for domain in summary.domains)
        return (Facet("Rates of the base", "percent", rows, (0.0, 1.0)),)
    by_domain = {
        domain: tuple(_moved(summary, arm, domain) for arm in summary.compared)
        for domain in summary.domains
    }
    ends = [
        edge
        for rows in by_domain.values()
        for row in rows
        for each in row.estimates.values()
        for edge in (each.low, each.high)
        if edge is not None
    ]
    limits = min(ends, default=0.0), max(ends, default=1.0)
    return tuple(
        Facet(capitalize(domain_label(domain)), "change from the base, points", rows, limits)
        for domain, rows in by_domain.items()
        if any(row.estimates for row in rows)
    )


def draw_facet(axes: Axes, facet: Facet) -> None:
    """Draw the rows of a facet, the first on top."""
    low, high = min(facet.limits[0], 0.0), max(facet.limits[1], 0.05)
    pad = 0.04 * (high - low)
    axes.set_xlim(low - pad, high + pad)
    axes.set_ylim(len(facet.rows) - 0.45, -0.5)
    left = axes.get_xlim()[0]
    for y, row in enumerate(facet.rows):
        if y:
            axes.axhline(y - 0.47, color=FAINT, linewidth=0.8)
        colour = COLOURS[row.colour][0] if row.colour else INK
        for height, text, font, ink in (
            (_NAME, row.label, _BOLD, INK),
            (_VERDICT, row.verdict, _PLAIN, colour),
        ):
            axes.text(
                left,
                y - height,
                _fitting(text, font),
                fontproperties=font,
                color=ink,
                va="center",
                parse_math=False,
            )
        # Not through the words.
        edges = y - _LINES["cot"] - 0.1, y - _LINES["prompt"] + 0.1
        axes.vlines(0, *edges, color=SOFT, linewidth=1, zorder=1)
        for kind, estimate in row.estimates.items():
            marker, size = _MARKERS[kind]
            line, own = y - _LINES[kind], COLOURS[kind][0]
            value, low, high = (x or 0.0 for x in (estimate.value, estimate.low, estimate.high))
            axes.hlines(line, low, high, color=own, linewidth=1.6)
            axes.plot(value, line, marker, color=own, markersize=size)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    signed = "+" if facet.unit.endswith("points") else ""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tick(100 * x, signed)))
    axes.tick_params(colors=INK, labelsize=7.5, length=3)
    axes.set_xlabel(facet.unit, fontsize=7.5, color=SOFT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)


def facet_figure(facet: Facet) -> Figure:
    """Return one facet as a figure of the page."""
    figure = Figure(figsize=(WIDTH, facet.height))
    below = 0.42 / facet.height
    figure.subplots_adjust(left=0.03, right=0.97, top=0.995, bottom=below)
    draw_facet(figure.add_subplot(), facet)
    return figure


def forest_figure(summary: Summary) -> Figure:
    """Return all facets side by side, at most three in a row, with a heading and a legend."""
    shown = facets(summary)
    columns = max(min(len(shown), 3), 1)
    lines = -(-len(shown) // columns)
    height = max((facet.height for facet in shown), default=2.0) + 0.4
    size = max(WIDTH * columns, 5.0), height * lines + 1.0
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(max(lines, 1), columns, squeeze=False).ravel()
    for axes, facet in zip(grid, shown, strict=False):
        draw_facet(axes, facet)
        axes.set_title(facet.title, fontsize=10, color=INK, loc="left", fontweight="bold")
    for axes in grid[len(shown) :]:
        axes.remove()
    heading = "Where CoT training gains land" if summary.last_checkpoint else "The base"
    handles = [
        Line2D([], [], color=COLOURS[kind][0], marker=_MARKERS[kind][0], label=label)
        for kind, label in (("cot", "CoT action"), ("prompt", "prompt action"))
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        title="95 % intervals. Prompt's share: of the CoT action's gain, in the prompt action.",
        title_fontsize=8,
    )
    figure.suptitle(heading, fontsize=13, color=INK, fontweight="bold")
    return figure


def _moved(summary: Summary, arm: str, domain: str) -> ForestRow:
    row = summary.placed(arm, domain)
    if row is None:
        return ForestRow(summary.label(arm), "not measured", "", {})
    share, verdict = share_text(row), verdict_of(summary, row)
    text = capitalize(verdict) if share == "–" else f"{capitalize(verdict)}; prompt's share {share}"
    if verdict == NOT_INTERPRETED:
        text = f"{capitalize(verdict)}: see the matrix of domains"
    moved = {"cot": row.placement.total, "prompt": row.placement.prompt}
    measured = {kind: each for kind, each in moved.items() if each.low is not None}
    return ForestRow(summary.label(arm), text, colour_of(summary, row), measured)


def _level(summary: Summary, domain: str) -> ForestRow:
    point = summary.last(summary.baseline, domain)
    for name, what in (("d3", "Games won"), ("d1", "Agreement with the expert")):
        rates = {} if point is None else {k: point.metrics[f"{name}_{k}"] for k in _MARKERS}
        measured = {kind: each for kind, each in rates.items() if each.low is not None}
        if measured:
            return ForestRow(capitalize(domain_label(domain)), what, "", measured)
    return ForestRow(capitalize(domain_label(domain)), "not measured", "", {})


def _fitting(text: str, font: FontProperties) -> str:
    """Return a text, or as much of its beginning as fits the width of a facet."""
    room = 72 * 0.93 * WIDTH  # points
    if _width(text, font) <= room:
        return text
    lengths = range(len(text))
    kept = bisect_right(lengths, room, key=lambda length: _width(f"{text[:length]}…", font)) - 1
    return f"{text[:kept]}…"


def _width(text: str, font: FontProperties) -> float:
    """Return the width of a text in points."""
    if not text.strip():
        return 0.0
    path = TextPath((0, 0), text.replace("$", "S"), prop=font)
    return float(path.get_extents().width)


def _tick(value: float, signed: str) -> str:
    number = f"{value:{signed}.0f}" if round(value) else "0"
    return number.replace("-", "−") + ("" if signed else " %")
