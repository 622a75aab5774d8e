"""The page's sections on probes, in one shape: sentences and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from cotjax.diagnostics.metrics import METRICS
from cotjax.diagnostics.probes import PROBE_ROWS
from cotjax.report.judged import judged
from cotjax.report.labels import capitalize, domain_label, number, percent
from cotjax.report.role_shares import role_shares
from cotjax.report.summary import PointSummary, Summary
from cotjax.report.traces import TraceSection, changed_thoughts, conflicts


@dataclass(frozen=True)
class SectionRow:
    """A row. `part`: it belongs to the row above it."""

    label: str
    cells: tuple[str, ...]
    part: bool = False


@dataclass(frozen=True)
class SectionTable:
    """A table. `columns`: those of the rows' cells; `sentences` stand above it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[SectionRow, ...]
    sentences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A section. `id`: of its heading."""

    id: str
    title: str
    sentences: tuple[str, ...]
    tables: tuple[SectionTable, ...]
    notes: tuple[str, ...] = ()


def sections(summary: Summary) -> list[Section]:
    """Return a section for each kind of probe that measured something."""
    found = [
        _judged(summary),
        _of_traces(summary, "conflict", "Forced thoughts", conflicts),
        _of_traces(summary, "faithfulness", "Changed thoughts", changed_thoughts),
        _of_roles(summary),
        _of_metrics(summary, "floor", "Samples of one mode: the floor of D2"),
        _of_metrics(summary, "likelihood", "D1 and D2 by log-likelihood"),
    ]
    return [each for each in found if each.tables]


def _judged(summary: Summary) -> Section:
    found = judged(summary)
    tables = [
        SectionTable(
            table.title,
            table.columns,
            tuple(
                SectionRow(" · ".join(filter(None, (row.label, row.domain, row.about))), row.cells)
                for row in table.rows
            ),
            notes=table.notes,
        )
        for table in found.tables
    ]
    return Section("judged", found.title, found.sentences, tuple(tables))


def _of_traces(
    summary: Summary, id_: str, title: str, make: Callable[[Summary, str], TraceSection | None]
) -> Section:
    tables, heading, notes = list[SectionTable](), title, dict[str, None]()
    for domain in summary.domains:
        found = make(summary, domain)
        if found is None:
            continue
        heading, sentences = found.title, found.sentences
        notes |= dict.fromkeys(found.notes)
        for table in found.tables:
            rows = tuple(SectionRow(row.label, row.cells, row.control) for row in table.rows)
            name = " · ".join(filter(None, (table.label, found.domain)))
            tables.append(SectionTable(name, table.columns, rows, sentences))
            sentences = ()  # above the domain's first table alone
    return Section(id_, heading, (), tuple(tables), tuple(notes))


def _of_roles(summary: Summary) -> Section:
    found = role_shares(summary)
    tables = [
        SectionTable(
            f"{table.label} · {table.domain}",
            found.columns,
            tuple(SectionRow(f"{row.name}: {row.what}", row.cells, row.part) for row in table.rows),
            table.sentences,
        )
        for table in found.tables
    ]
    published = [f"Published: {what}, {share} %." for what, share in found.published]
    return Section("roles", found.title, (), tuple(tables), (*found.notes, *published))


def _of_metrics(summary: Summary, probe: str, title: str) -> Section:
    """Return all metrics of a probe, a table a domain with a column for each point."""
    tables = [
        SectionTable(
            capitalize(domain_label(domain)),
            tuple(summary.label_of(point) for point in ends),
            tuple(_metric_rows(ends, PROBE_ROWS[probe].metrics)),
        )
        for domain in summary.domains
        if (ends := summary.ends(domain))
    ]
    return Section(probe, title, (), tuple(table for table in tables if table.rows))


def _metric_rows(ends: list[PointSummary], names: Iterable[str]) -> Iterator[SectionRow]:
    for name in names:
        estimates = [point.metrics.get(name) for point in ends]
        if not any(each and each.measured for each in estimates):
            continue
        metric = METRICS[name]
        rate = metric.kind != "mean"
        cells = (
            "–" if each is None else percent(each) if rate else number(each, 2)
            for each in estimates
        )
        unit = ", %" if metric.kind == "rate" else ", points" if rate else ""
        yield SectionRow(f"{metric.label}{unit}", tuple(cells))
