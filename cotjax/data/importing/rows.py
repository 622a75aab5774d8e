"""The rows of a file: a JSON array, JSON Lines, one object, or an object with a list of rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cotjax.data.importing.layouts import layout_of
from cotjax.data.importing.turns import Unmapped
from cotjax.data.json_text import decode, decode_from, end_of, open_json
from cotjax.errors import DataError

_MARK_OF_ORDER = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Broken:
    """A row that is no JSON, or JSON that says two things. `cut`: it is JSON as far as it goes."""

    text: str
    reason: str
    cut: bool = False


Row = tuple[
    int, str, Any, float
]  # its number, its place, itself, the share of the file that is read


def read_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of a file; a line or an element that cannot be read is a `Broken`.

    Raises:
      DataError: the file is missing, is not JSON, or is an array that does not end.
    """
    with open_json(file) as raw:
        if raw.peek(1 << 12).removeprefix(_MARK_OF_ORDER).lstrip().startswith(b"["):
            yield from _array(_text(raw, file), file)
            return
        lines = _lines(raw, file)
        first = next(lines, None)
        if first is None:
            return
        row, second = first[2], None
        if isinstance(row, Broken):
            row = _whole_object(file, row)
        else:
            second = next(lines, None)
        if second is None and isinstance(row, dict):  # the one value of the file
            name = _list_of_rows(row)
            if name is None:
                yield *first[:2], row, 1.0
            else:
                yield from (
                    (number, f"{file}, {name}, row {number}", each, 1.0)
                    for number, each in enumerate(row[name])
                )
            return
        yield from (each for each in (first, second) if each is not None)
        yield from lines


def _lines(raw: BinaryIO, file: Path) -> Iterator[Row]:
    done, size = 0, max(1, file.stat().st_size)
    for number, line in enumerate(raw, start=1):
        done += len(line)
        if number == 1:
            line = line.removeprefix(_MARK_OF_ORDER)
        if line.strip():
            yield number, f"{file}:{number}", _parsed(line.rstrip(b"\r\n")), done / size


def _parsed(line: bytes) -> Any:
    try:
        text = line.decode()
        return decode(text)
    except UnicodeDecodeError as error:
        return Broken(
            line.decode(errors="replace"), f"the line is not UTF-8 (at byte {error.start})"
        )
    except json.JSONDecodeError as error:
        return Broken(text, "the line is no JSON", cut=error.pos >= len(text.rstrip()))
    except ValueError as error:
        return Broken(text, f"the line is no JSON ({error})")


def _text(raw: BinaryIO, file: Path) -> str:
    try:
        return raw.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from None


def _whole_object(file: Path, first: Broken) -> dict | None:
    """Return the object that the whole file is; None where only its first line is broken."""
    if not first.cut:
        return None
    try:
        return decode(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # not UTF-8 somewhere is one too
        if first.text.strip() == "{":
            what = f"no JSON ({error})"
            raise DataError(
                f"{file}: {what}; write one object a line (`jq -c .` does), or one array of them"
            ) from None
        return None


def _list_of_rows(row: dict) -> str | None:
    """Return the name of the list in an object such as {"data": [...]}; None for a row."""
    try:
        layout_of(row)
    except Unmapped:
        lists = [
            name
            for name, rows in row.items()
            if isinstance(rows, list) and rows and all(isinstance(each, dict) for each in rows)
        ]
        return lists[0] if len(lists) == 1 else None
    return None


def _array(text: str, file: Path) -> Iterator[Row]:
    """Yield the rows of a JSON array, once all of it is read: one that does not end yields none."""
    rows: list[Any] = []
    try:
        end = _behind(text, text.index("[") + 1)
        while text[end : end + 1] != "]":
            row, end = _element(text, end)
            rows.append(row)
            end = _behind(text, end)
            if text[end : end + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, end)
            if text[end] == ",":
                end = _behind(text, end + 1)
        if text[end + 1 :].strip():
            raise json.JSONDecodeError("Text behind the array", text, end + 1)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}:{error.lineno}: no JSON ({error.msg} at column {error.colno}); the file is not whole"
        ) from None
    except ValueError as error:
        raise DataError(f"{file}: no JSON ({error})") from None
    yield from (
        (number, f"{file}, row {number}", row, number / len(rows))
        for number, row in enumerate(rows)
    )


def _element(text: str, start: int) -> tuple[Any, int]:
    try:
        return decode_from(text, start)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        end = end_of(text, start)
        return Broken(text[start:end], f"the row is no JSON ({error})"), end


def _behind(text: str, start: int) -> int:
    """Where the white space that begins at `start` ends."""
    return _SPACE.match(text, start).end()
