"""A section of the page: sentences and tables, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cotjax.report.labels import capitalize


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
      behind: what its number was counted on.
      sure: its interval excludes 0.
      note: what else belongs to it.
      mark: why it is not interpreted; "" where it is.
    """

    text: str
    behind: str = ""
    sure: bool = False
    note: str = ""
    mark: str = ""


@dataclass(frozen=True)
class SectionRow:
    """A row. `part`: it belongs to the row above it; `note`: small, below its label.

    A row without cells is the heading of those below it.
    """

    label: str
    cells: tuple[str | Cell, ...]
    part: bool = False
    note: str = ""


@dataclass(frozen=True)
class SectionTable:
    """A table.

    Attributes:
      columns: those of the rows' cells.
      rows_are: heading of the column of the rows' labels.
      words: numbers of the columns that hold words, from 0.
      notes: stand below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[SectionRow, ...]
    notes: tuple[str, ...] = ()
    rows_are: str = ""
    words: tuple[int, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """Return of each column why none of it is interpreted; "" where the cells say it."""
        rows = [row.cells for row in self.rows if row.cells]
        return tuple(_mark([cells[place] for cells in rows]) for place in range(len(self.columns)))


def under_headings(groups: Iterable[tuple[str, Sequence[SectionRow]]]) -> tuple[SectionRow, ...]:
    """Return the rows of all groups, each below its heading; a group without rows has none."""
    return tuple(
        row
        for heading, rows in groups
        if rows
        for row in (SectionRow(capitalize(heading), ()), *rows)
    )


def _mark(cells: Sequence[str | Cell]) -> str:
    """Return the mark that all cells share; "" where they do not, or where there is one cell."""
    marks = [cell.mark if isinstance(cell, Cell) else "" for cell in cells]
    return marks[0] if len(marks) > 1 and len(set(marks)) == 1 else ""


@dataclass(frozen=True)
class Section:
    """A section.

    Attributes:
      id: of its heading.
      open: number of tables that are shown; of more than four the others are on demand.
      folded: the others are on demand, however few there are.
    """

    id: str
    title: str
    tables: tuple[SectionTable, ...]
    sentences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    open: int = 1
    folded: bool = False
