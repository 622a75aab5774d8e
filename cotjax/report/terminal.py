"""A summary as tables for the terminal, 80 columns wide."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cotjax.report.labels import domain_label, percent
from cotjax.report.section import Section
from cotjax.report.summary import Summary
from cotjax.report.verdicts import NOT_INTERPRETED, share_text, verdict_of

# Metric -> column title. The last one makes way for the constrained actions, where measured.
_COLUMNS = {
    "d3_cot": "CoT\nsuccess",
    "d3_prompt": "prompt\nsuccess",
    "gap": "gap",
    "d1_cot": "D1\nCoT",
    "d1_prompt": "D1\nprompt",
    "revision": "revised",
}
_CONSTRAINED = {
    "d3_prompt_constrained": "prompt\namong\nadmis-\nsible",
    "d1_prompt_constrained": "D1\namong\nadmis-\nsible",
}


def terminal_table(summary: Summary) -> Group:
    """Return base and last checkpoint of every arm in percent, and below it where gains landed.

    Columns: success by both kinds of action, the gap, D1 of both, and the revision rate; success
    and D1 of constrained prompt actions in place of it, where they were measured.
    """
    return Group(*(table for table in (_numbers(summary), _verdicts(summary)) if table is not None))


def section_tables(sections: Sequence[Section], columns: int = 5) -> Group:
    """Return the tables of sections of the page, with the columns that a terminal has room for."""
    made = []
    for section, table in ((each, table) for each in sections for table in each.tables):
        shown = Table(title=f"{section.title}, {table.title}", box=SIMPLE, padding=0)
        shown.add_column("", overflow="fold")
        for title in table.columns[:columns]:
            shown.add_column(title, justify="right", no_wrap=True)
        for row in table.rows:
            cells = (each if isinstance(each, str) else each.text for each in row.cells[:columns])
            shown.add_row(Text(row.label), *(cell.replace(" [", "\n[") for cell in cells))
        made.append(shown)
    return Group(*made)


def _numbers(summary: Summary) -> Table:
    run, columns = summary.run, _columns(summary)
    table = Table(
        title=f"{run.get('title') or run.get('name') or 'study'}\nin percent, with 95 % intervals",
        box=SIMPLE,
        padding=0,  # the box separates columns by a space; more would cut names in two
    )
    table.add_column("arm", overflow="fold")
    for title in columns.values():
        table.add_column(title, justify="right", no_wrap=True)
    for domain in summary.domains:
        rows = summary.ends(domain)
        games = max((point.metrics[name].games for point in rows for name in columns), default=0)
        table.add_section()
        table.add_row(f"[bold]{domain_label(domain)}[/bold]\n{games} games")
        for point in rows:
            start = summary.arms[point.arm].start.replace("@", "\nstep ") or "base"
            label = f"{point.arm}\nstep {point.checkpoint}" if point.checkpoint else start
            cells = (percent(point.metrics[name], signed=name == "gap") for name in columns)
            table.add_row(Text(label), *(cell.replace(" [", "\n[") for cell in cells))
    return table


def _columns(summary: Summary) -> dict[str, str]:
    measured = {
        name: title
        for name, title in _CONSTRAINED.items()
        if any(name in point.metrics and point.metrics[name].measured for point in summary.points)
    }
    if not measured:
        return _COLUMNS
    return {name: title for name, title in _COLUMNS.items() if name != "revision"} | measured


def _verdicts(summary: Summary) -> Table | None:
    """Return where the gain of every arm landed; None where nothing was trained."""
    if not any(row.primary for row in summary.placements):
        return None
    table = Table(
        title="where the gain landed, and the share of it in the prompt action",
        box=SIMPLE,
        padding=(0, 0, 0, 1),
    )
    table.add_column("arm", overflow="fold")
    for domain in summary.domains:
        table.add_column(domain_label(domain), overflow="fold")
    for arm, about in summary.compared.items():
        seeds = f" ({len(about.seeds)} seeds)" if len(about.seeds) > 1 else ""
        cells = []
        for domain in summary.domains:
            row = summary.placed(arm, domain)
            if row is None:
                cells.append("–")
                continue
            share, verdict = share_text(row), verdict_of(summary, row)
            by = "" if share == "–" or verdict == NOT_INTERPRETED else f", {share}"
            cells.append(f"{verdict}{by} ({row.measure.upper()})")
        if about.cannot_differ and about.minus is not None:
            cells[0] += f"; cannot differ from {about.minus}"
        table.add_row(Text(arm + seeds), *map(Text, cells))
    return table
