"""The page's sections on probes, in one shape: sentences and tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cotjax.report.agreement import Agreement, floor, likelihood
from cotjax.report.judged import judged
from cotjax.report.role_shares import role_shares
from cotjax.report.summary import Summary
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
        _of_agreement("floor", floor(summary)),
        _of_agreement("likelihood", likelihood(summary)),
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


def _of_agreement(id_: str, found: Agreement) -> Section:
    rows = tuple(
        SectionRow(f"{row.label} · {row.domain}" if row.domain else row.label, row.cells)
        for row in found.rows
    )
    tables = (SectionTable("", found.columns, rows),) if rows else ()
    return Section(id_, found.title, found.sentences, tables)
