"""Figures of a summary: a panel for every arm, the baseline first, one row a domain or a measure.

Figures are drawn on `matplotlib.figure.Figure`, without pyplot and its global state.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cotjax.report.answer import games_of
from cotjax.report.arms import twin_of
from cotjax.report.forest import Facet, facet_figure, forest_figure
from cotjax.report.labels import domain_label
from cotjax.report.panels import CHARTS, COLOURS, FAINT, INK, SOFT, Chart, draw_panel
from cotjax.report.reward_panels import reward_figure
from cotjax.report.summary import Summary
from cotjax.report.verdicts import share_text, verdict_of

_SIDE_BY_SIDE = 6  # arms
# Without a salt of our own, ids would differ from run to run.
_SVG: Any = {"svg.hashsalt": "cotjax", "svg.fonttype": "none"}  # matplotlib types the keys
# A row of a figure: its heading, its chart and its domain.
Row = tuple[str, Chart, str]


def write_figures(summary: Summary, folder: str | Path) -> list[Path]:
    """Write answer, overview and a figure per chart, each as PNG and as SVG; return their paths.

    `answer` is the page's first figure. `overview` has the verdict on every arm over its panels, of
    D1 and of D3; of up to six arms it has 1600 x 900 pixels.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = save_figure(forest_figure(summary), folder / "answer")
    paths += save_figure(overview_figure(summary), folder / "overview")
    for name, chart in CHARTS.items():
        rows = [(_row_title(summary, domain), chart, domain) for domain in summary.domains]
        columns, lines = _shape(summary)
        size = max(1.0 + 2.5 * columns, 6.5), 1.3 + 2.3 * len(rows) * lines
        figure = Figure(figsize=size, layout="constrained")
        _fill(figure, summary, rows, titles=_labels(summary))
        figure.suptitle(chart.title, fontsize=13, color=INK, fontweight="bold")
        paths += save_figure(figure, folder / name)
    return paths


def overview_figure(summary: Summary) -> Figure:
    """Return the figure with the verdict on every arm: D1 and D3 of the first domain, and D1 of
    the second.
    """
    first, *others = summary.domains
    rows = [(f"{chart.title}\n{_row_title(summary, first)}", chart, first) for chart in _MEASURED]
    rows += [(f"D1\n{_row_title(summary, domain)}", CHARTS["d1"], domain) for domain in others[:1]]
    titles = []
    for arm, label in zip(summary.arms, _labels(summary), strict=True):
        placed = summary.placed(arm, first)
        verdict = "" if placed is None else verdict_of(summary, placed)
        if placed is not None and (share := share_text(placed)) != "–":
            verdict += f"\n{share}"
        titles.append(f"{label}\n{verdict}")
    lines = _shape(summary)[1]
    figure = Figure(figsize=(16, 9 if lines == 1 else 1.5 + 2.6 * len(rows) * lines))
    figure.set_layout_engine("constrained")
    _fill(figure, summary, rows, titles)
    heading = "Where CoT training gains land"
    if summary.placements:
        heading += ", and the share of each gain in the prompt action"
    figure.suptitle(heading, fontsize=16, color=INK, fontweight="bold")
    return figure


def facet_svg(facet: Facet, prefix: str) -> str:
    """Return a facet of the page's first figure as an inline SVG element, as `panel_svg` does."""
    return inline_svg(facet_figure(facet), prefix)


def panel_svg(summary: Summary, chart: Chart, arm: str, domain: str, prefix: str) -> str:
    """Return one panel as an inline SVG element, with its text as text.

    Its ids begin with `prefix`. Its ink is currentColor, and its colours are var(--cot),
    var(--prompt), …
    """
    return inline_svg(panel_figure(summary, chart, arm, domain), prefix)


def panel_figure(summary: Summary, chart: Chart, arm: str, domain: str) -> Figure:
    """Return one panel as a figure of the page's size."""
    # Fixed margins: a layout engine would draw every panel twice.
    figure = Figure(figsize=(2.5, 1.85))
    figure.subplots_adjust(left=0.24, right=0.99, top=0.95, bottom=0.13)
    draw_panel(figure.add_subplot(), summary, chart, arm, domain, width=1.85)
    return figure


def alt_text(summary: Summary, chart: Chart, arm: str, domain: str) -> str:
    """Return what the panel shows, in words: first and last value of every line, with intervals."""
    parts = []
    for line in chart.lines:
        ends = [summary.point(arm, 0, domain), summary.last(arm, domain)]
        texts = [
            f"{100 * each.value:.0f} ({100 * each.low:.0f} to {100 * each.high:.0f})"
            for point in ends
            if point is not None
            and (each := point.metrics[line.metric]).value is not None
            and each.low is not None
            and each.high is not None
        ]
        if texts:
            parts.append(f"{line.label}: " + ", then ".join(texts))
    return (
        f"{chart.title}, {summary.label(arm)}, {domain_label(domain)}, in percent at the "
        f"{'start' if summary.arms[arm].start else 'base'} and at the last checkpoint, with 95 % "
        f"intervals. {'; '.join(parts) or 'No records'}."
    )


_MEASURED = (CHARTS["d1"], CHARTS["d3"])


def reward_svg(summary: Summary, arm: str, prefix: str) -> str:
    """Return the panel of an arm's reward as an inline SVG element, as `panel_svg` does."""
    return inline_svg(reward_figure(summary, arm), prefix)


def _shape(summary: Summary) -> tuple[int, int]:
    """Return how many arms stand side by side, and how many lines of them there are."""
    arms = len(summary.arms)
    lines = -(-arms // _SIDE_BY_SIDE)
    return -(-arms // lines), lines


def _fill(figure: Figure, summary: Summary, rows: Sequence[Row], titles: Sequence[str]) -> None:
    """Draw a panel for every row and arm, with titles over the columns and a legend below.

    Arms beyond those that fit side by side have lines of panels of their own, below the others.
    """
    columns, lines = _shape(summary)
    grid = figure.subplots(len(rows) * lines, columns, squeeze=False)
    width = 0.85 * figure.get_figwidth() / columns - 0.1
    for place, (arm, title) in enumerate(zip(summary.arms, titles, strict=True)):
        line, column = divmod(place, columns)
        for number, (heading, chart, domain) in enumerate(rows):
            axes = grid[line * len(rows) + number, column]
            draw_panel(axes, summary, chart, arm, domain, width, y_axis=column == 0)
            if column == 0:
                label = f"{heading}\n{chart.axis}"
                axes.set_ylabel(label, fontsize=9, color=INK, parse_math=False)
            if number == 0:
                axes.set_title(title, fontsize=9, color=INK, loc="left", parse_math=False)
    for place in range(len(summary.arms), columns * lines):
        line, column = divmod(place, columns)
        for axes in grid[line * len(rows) : (line + 1) * len(rows), column]:
            axes.remove()
    _legend(figure, summary, [chart for _, chart, _ in rows])


def _labels(summary: Summary) -> list[str]:
    width = 30 if _shape(summary)[0] <= 4 else 24
    return [
        "\n".join(textwrap.wrap(about.label, width, max_lines=3)) or arm
        for arm, about in summary.arms.items()
    ]


def _row_title(summary: Summary, domain: str) -> str:
    return f"{domain_label(domain)}, {games_of(summary, domain)} games"


def _legend(figure: Figure, summary: Summary, charts: Sequence[Chart]) -> None:
    lines = {
        line.name or line.label: line
        for chart in charts
        for line in chart.lines
        if any(point.metrics[line.metric].measured for point in summary.points)
    }
    handles = [
        Line2D(
            [],
            [],
            color=COLOURS[line.kind][0] if line.kind else INK,
            linestyle=line.style,
            marker=line.marker,
            markersize=line.size,
            label=label,
        )
        for label, line in lines.items()
    ]
    over = "95 %, games and seeds" if summary.seed_points else "95 %, games"
    handles.append(
        Line2D([], [], color=INK, marker="|", markersize=9, linestyle="none", label=over)
    )
    if summary.seed_points:
        handles.append(Line2D([], [], color=INK, marker=".", linestyle="none", label="a seed"))
    if twin_of(summary.arms) and any(chart.twin for chart in charts):
        handles.append(
            Line2D([], [], color=SOFT, linestyle=(0, (1, 1)), label="trained on actions alone")
        )
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 6),
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
    )


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Save a figure as PNG and as SVG, whose text is text; the same figure gives the same bytes."""
    png, svg = path.with_suffix(".png"), path.with_suffix(".svg")
    figure.savefig(png, dpi=100, facecolor="white", metadata={"Software": None})
    with rc_context(_SVG):
        figure.savefig(svg, facecolor="white", metadata={"Date": None})
    return [png, svg]


def inline_svg(figure: Figure, prefix: str) -> str:
    """Return a figure as an inline SVG element, as `panel_svg` does."""
    buffer = io.StringIO()
    with rc_context(_SVG):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), prefix)


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
    for kind, (colour, _) in COLOURS.items():
        svg = svg.replace(colour, f"var(--{kind})")
    svg = svg.replace(INK, "currentColor").replace(SOFT, "var(--soft)")
    return re.sub(r"\n\s*", "\n", svg.replace(FAINT, "var(--line)")).strip()
