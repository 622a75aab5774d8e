"""The figure of AutoCoA's arms: exact match, searches and triggering, an arm a line.

On the page each facet is a figure of its own; saved, they stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cotjax.diagnostics.statistics import Estimate
from cotjax.report.autocoa import REAL, StageSummary
from cotjax.report.figures import inline_svg, save_figure
from cotjax.report.labels import number, percent
from cotjax.report.panels import COLOURS, FAINT, INK, SOFT

NAME = "ablation"
_WIDTH, _ROW, _AROUND = 3.6, 0.3, 0.75  # inches: of a facet, of an arm, of what is around the rows
_APART = 0.16  # rows between the marks of two figures


@dataclass(frozen=True)
class Mark:
    """A figure of `cotjax.diagnostics.searches` in a facet; `kind`: of COLOURS, or "" for ink."""

    figure: str
    label: str
    kind: str
    marker: str


@dataclass(frozen=True)
class ArmFacet:
    """One facet.

    labels: of the arms, the first on top. estimates: of each mark, in the order of the arms.
    """

    title: str
    marks: tuple[Mark, ...]
    labels: tuple[str, ...]
    estimates: tuple[tuple[Estimate, ...], ...]
    percent: bool

    @property
    def height(self) -> float:
        """Height in inches."""
        return _ROW * len(self.labels) + _AROUND

    @property
    def label(self) -> str:
        """What the page calls it: the title, and which mark is what."""
        signs = {"o": "●", "s": "■", "|": "│"}
        named = [f"{signs[mark.marker]} {mark.label}" for mark in self.marks]
        return f"{self.title}: {', '.join(named)}" if len(named) > 1 else self.title

    @property
    def alt(self) -> str:
        """The facet in words."""
        texts = []
        for place, arm in enumerate(self.labels):
            values = (
                percent(own[place]) if self.percent else number(own[place], 2)
                for own in self.estimates
            )
            named = zip((mark.label for mark in self.marks), values, strict=True)
            texts.append(f"{arm}: {', '.join(f'{name} {value}' for name, value in named)}")
        return f"{self.title}, with 95 % intervals. {'. '.join(texts)}."

    @property
    def svg(self) -> Markup:
        """The facet as an inline SVG element."""
        figure = Figure(figsize=(_WIDTH, self.height))
        figure.subplots_adjust(left=0.3, right=0.97, top=0.99, bottom=0.3 / self.height)
        draw_arms(figure.add_subplot(), self)
        return Markup(inline_svg(figure, f"{NAME}-{self.marks[0].figure}-"))


_FACETS = (
    ("Exact match, %", (Mark("exact", "exact match", "cot", "o"),)),
    (
        "Searches an episode",
        (Mark("searches", "made", "cot", "o"), Mark("oracle", "the oracle's", "", "|")),
    ),
    (
        "Triggering, %",
        (Mark("precision", "precision", "cot", "o"), Mark("recall", "recall", "prompt", "s")),
    ),
)


def facets(summary: StageSummary) -> list[ArmFacet]:
    """Return the facets of the arms that were played, greedily and with real results."""
    played = {name: row for name in summary.arms if (row := summary.row(name, REAL)) is not None}
    if not played:
        return []
    labels = tuple(summary.arms[name]["label"] for name in played)
    return [
        ArmFacet(
            title,
            marks,
            labels,
            tuple(tuple(row.figures[mark.figure] for row in played.values()) for mark in marks),
            title.endswith("%"),
        )
        for title, marks in _FACETS
    ]


def draw_arms(axes: Axes, facet: ArmFacet, named: bool = True) -> None:
    """Draw a facet; `named`: with the names of the arms."""
    rows = len(facet.labels)
    axes.set_ylim(rows - 0.5, -0.5)
    for place in range(1, rows):
        axes.axhline(place - 0.5, color=FAINT, linewidth=0.8)
    shift = _APART * (len(facet.marks) - 1)
    for number_, (mark, own) in enumerate(zip(facet.marks, facet.estimates, strict=True)):
        colour = COLOURS[mark.kind][0] if mark.kind else INK
        for place, each in enumerate(own):
            if each.value is None or each.low is None or each.high is None:
                continue
            if mark.marker == "|":  # a level, the same for every arm: without an interval
                axes.plot([each.value] * 2, [place - 0.3, place + 0.3], color=SOFT, linewidth=1.4)
                continue
            line = place - shift + 2 * _APART * number_ if shift and not _level(facet) else place
            axes.hlines(line, each.low, each.high, color=colour, linewidth=1.6)
            axes.plot(each.value, line, mark.marker, color=colour, markersize=5)
    axes.set_xlim(0, 1 if facet.percent and _most(facet) > 0.5 else 1.05 * _most(facet))
    axes.set_yticks(range(rows), facet.labels if named else [""] * rows, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    scale = 100 if facet.percent else 1
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{scale * x:g}"))
    axes.tick_params(colors=INK, labelsize=8, length=3)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)


def ablation_figure(shown: Sequence[ArmFacet], heading: str) -> Figure:
    """Return all facets side by side, with a heading. There is at least one."""
    size = _WIDTH * len(shown) - 0.6, shown[0].height + 0.75
    figure = Figure(figsize=size, layout="constrained")
    for number_, (axes, facet) in enumerate(
        zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True)
    ):
        draw_arms(axes, facet, named=number_ == 0)
        axes.set_title(facet.title, fontsize=10, color=INK, loc="left", fontweight="bold")
        if len(facet.marks) > 1:
            axes.set_xlabel(facet.label.partition(": ")[2], fontsize=8, color=INK)
    figure.suptitle(heading, fontsize=12, color=INK, fontweight="bold", parse_math=False)
    return figure


def write_figure(summary: StageSummary, folder: Path) -> list[Path]:
    """Write the figure as PNG and SVG; return their paths, [] where no arm was played."""
    shown = facets(summary)
    if not shown:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    games, seeds = (
        max((getattr(each, name) for each in shown[0].estimates[0]), default=0)
        for name in ("games", "seeds")
    )
    of_seeds = f", {seeds} seeds" if seeds > 1 else ""
    heading = f"{summary.about['title']} ({games} questions{of_seeds}, 95 % intervals)"
    return save_figure(ablation_figure(shown, heading), folder / NAME)


def _level(facet: ArmFacet) -> bool:
    """Return whether a mark of a facet is a level, which shares the line of the other one."""
    return any(mark.marker == "|" for mark in facet.marks)


def _most(facet: ArmFacet) -> float:
    ends = [each.high for own in facet.estimates for each in own if each.high is not None]
    return max(ends, default=0.0) or 1.0
