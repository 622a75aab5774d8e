"""Figures of a summary: a panel for every arm, the baseline first, one row a domain or a measure.

Figures are drawn on `matplotlib.figure.Figure`, without pyplot and its global state.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cotjax.report.arms import twin_of
from cotjax.report.labels import domain_label
from cotjax.report.panels import CHARTS, COLOURS, FAINT, INK, SOFT, Chart, draw_panel
from cotjax.report.summary import Summary
from cotjax.report.verdicts import share_text

# A row of a figure: its heading, its chart and its domain.
Row = tuple[str, Chart, str]


def write_figures(summary: Summary, folder: str | Path) -> list[Path]:
    """Write one PNG per chart, and overview.png (1600 x 900 pixels); return their paths.

    The overview has the verdict on every arm over its panels, of D1 and of D3.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, chart in CHARTS.items():
        rows = [(_row_title(summary, domain), chart, domain) for domain in summary.domains]
        size = 1.0 + 2.5 * len(summary.arms), 1.3 + 2.3 * len(rows)
        figure = Figure(figsize=(max(size[0], 6.5), size[1]), layout="constrained")
        _fill(figure, summary, rows, titles=_labels(summary))
        figure.suptitle(chart.title, fontsize=13, color=INK, fontweight="bold")
        paths.append(_save(figure, folder / f"{name}.png"))
    paths.append(_save(overview_figure(summary), folder / "overview.png"))
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
        verdict = "" if placed is None else str(placed.placement.verdict)
        if placed is not None and (share := share_text(placed)) != "–":
            verdict += f"\n{share}"
        titles.append(f"{label}\n{verdict}")
    figure = Figure(figsize=(16, 9), layout="constrained")
    _fill(figure, summary, rows, titles)
    heading = "Where CoT training gains land"
    if summary.placements:
        heading += ", and the share of each gain in the prompt action"
    figure.suptitle(heading, fontsize=16, color=INK, fontweight="bold")
    return figure


def panel_svg(summary: Summary, name: str, arm: str, domain: str, prefix: str) -> str:
    """Return one panel as an inline SVG element, with its text as text.

    Its ids begin with `prefix`. Its ink is currentColor, and its colours are var(--cot),
    var(--prompt), …
    """
    # Fixed margins: a layout engine would draw every panel twice.
    figure = Figure(figsize=(2.5, 1.85))
    figure.subplots_adjust(left=0.24, right=0.99, top=0.95, bottom=0.13)
    draw_panel(figure.add_subplot(), summary, CHARTS[name], arm, domain, width=1.85)
    buffer = io.StringIO()
    # Without a salt of our own, ids would differ from run to run.
    with rc_context({"svg.hashsalt": "cotjax", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), prefix)


def alt_text(summary: Summary, name: str, arm: str, domain: str) -> str:
    """Return what the panel shows, in words: first and last value of every line, with intervals."""
    parts = []
    for line in CHARTS[name].lines:
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
        f"{CHARTS[name].title}, {summary.label(arm)}, {domain_label(domain)}, in percent at the "
        f"base and at the last checkpoint, with 95 % intervals. {'; '.join(parts) or 'No records'}."
    )


_MEASURED = (CHARTS["d1"], CHARTS["d3"])


def _fill(figure: Figure, summary: Summary, rows: Sequence[Row], titles: Sequence[str]) -> None:
    """Draw a panel for every row and arm, with titles over the columns and a legend below."""
    grid = figure.subplots(len(rows), len(summary.arms), squeeze=False)
    width = 0.85 * figure.get_figwidth() / len(summary.arms) - 0.1
    for (heading, chart, domain), line in zip(rows, grid, strict=True):
        for i, (axes, arm) in enumerate(zip(line, summary.arms, strict=True)):
            draw_panel(axes, summary, chart, arm, domain, width, y_axis=i == 0)
        line[0].set_ylabel(f"{heading}\n{chart.axis}", fontsize=9, color=INK, parse_math=False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9, color=INK, loc="left", parse_math=False)
    _legend(figure, summary, [chart for _, chart, _ in rows])


def _labels(summary: Summary) -> list[str]:
    width = 30 if len(summary.arms) <= 4 else 24
    return [
        "\n".join(textwrap.wrap(about.label, width, max_lines=3)) or arm
        for arm, about in summary.arms.items()
    ]


def _row_title(summary: Summary, domain: str) -> str:
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
    handles.append(
        Line2D([], [], color=INK, marker="|", markersize=9, linestyle="none", label="95 %, games")
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


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=100, facecolor="white", metadata={"Software": None})
    return path


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
