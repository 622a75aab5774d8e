"""A section of the page: sentences and tables, as text."""

from __future__ import annotations

from dataclasses import dataclass


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
    """A row. `part`: it belongs to the row above it; `note`: small, below its label."""

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


@dataclass(frozen=True)
class Section:
    """A section. `id`: of its heading."""

    id: str
    title: str
    tables: tuple[SectionTable, ...]
    sentences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
