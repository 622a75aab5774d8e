"""A summary as a table for the terminal, 80 columns wide."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from cotjax.report.labels import domain_label, percent
from cotjax.report.summary import PointSummary, Summary

# Metric -> column title.
_COLUMNS = {
    "d3_cot": "CoT\nsuccess",
    "d3_prompt": "prompt\nsuccess",
    "gap": "gap",
    "d1_cot": "D1\nCoT",
    "d1_prompt": "D1\nprompt",
    "revision": "revised",
}


def terminal_table(summary: Summary) -> Table:
    """Return base and last checkpoint of every arm, in percent.

    Columns: success by both kinds of action, the gap, D1 of both, and the revision rate.
    """
    run = summary.run
    table = Table(
        title=f"{run.get('title') or run.get('name') or 'study'}\nin percent, with 95 % intervals",
        box=SIMPLE,
        padding=(0, 0, 0, 1),
    )
    table.add_column("arm, step", overflow="fold")
    for title in _COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for domain in summary.domains:
        rows = _rows(summary, domain)
        games = max(
            (point.metrics[name].games for _, point in rows for name in _COLUMNS), default=0
        )
        table.add_section()
        table.add_row(f"[bold]{domain_label(domain)}[/bold]\n{games} games")
        for label, point in rows:
            cells = (percent(point.metrics[name], signed=name == "gap") for name in _COLUMNS)
            table.add_row(Text(label), *(cell.replace(" [", "\n[") for cell in cells))
    return table


def _rows(summary: Summary, domain: str) -> list[tuple[str, PointSummary]]:
    """Return (label, point): the base once, then every arm at the last checkpoint."""
    bases = [summary.point(arm, 0, domain) for arm in summary.arms]
    rows = [("base", base) for base in bases if base is not None][:1]
    if summary.last_checkpoint:
        for arm in summary.arms:
            point = summary.last(arm, domain)
            if point is not None:
                rows.append((f"{arm}, {summary.last_checkpoint}", point))
    return rows
