"""Read the rows of a file: JSON Lines, an array, one object, or an object with a list of rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cotjax.data.importing.layouts import layout_of
from cotjax.data.importing.unmapped import Unmapped
from cotjax.data.json_text import decode, decode_from, end_of, open_json
from cotjax.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Broken:
    """A row that is not valid JSON, or repeats a key.

    text: the row as it is in the file
    reason: what is wrong with it
    cut: the text is valid as far as it goes
    """

    text: str
    reason: str
    cut: bool = False


class Row(NamedTuple):
    """One element of a public data set.

    number: its line, or its index in an array
    where: its place, for messages
    value: its JSON value, or a `Broken`
    share: the share of the file that has been read, from 0 to 1
    """

    number: int
    where: str
    value: Any
    share: float


def read_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of a file; one that cannot be read has the value `Broken`.

    Raises:
      DataError: the file is missing, is not JSON, or is an incomplete array.
    """
    with open_json(file) as raw:
        if raw.peek(1 << 12).removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"["):
            yield from _array(_text(raw, file), file)
            return
        lines = _lines(raw, file)
        first, second = next(lines, None), None
        if first is None:
            return
        value = first.value
        if isinstance(value, Broken):
            value = _whole_object(file, value)
        else:
            second = next(lines, None)
        if second is None and isinstance(value, dict):
            yield from _only_value(file, first, value)
            return
        yield from (row for row in (first, second) if row is not None)
        yield from lines


def _only_value(file: Path, first: Row, value: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of a file that consists of one object."""
    name = _list_of_rows(value)
    if name is None:
        yield first._replace(value=value, share=1.0)
        return
    for number, row in enumerate(value[name]):
        yield Row(number, f"{file}, {name}, row {number}", row, 1.0)


def _lines(raw: BinaryIO, file: Path) -> Iterator[Row]:
    done, size = 0, max(1, file.stat().st_size)
    for number, line in enumerate(raw, start=1):
        done += len(line)
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if line.strip():
            yield Row(number, f"{file}:{number}", _parsed(line.rstrip(b"\r\n")), done / size)


def _parsed(line: bytes) -> Any:
    try:
        text = line.decode()
        return decode(text)
    except UnicodeDecodeError as error:
        problem = f"the line is not UTF-8 (at byte {error.start})"
        return Broken(line.decode(errors="replace"), problem)
    except json.JSONDecodeError as error:
        return Broken(text, "the line is not valid JSON", cut=error.pos >= len(text.rstrip()))
    except ValueError as error:
        return Broken(text, f"the line is not valid JSON ({error})")


def _text(raw: BinaryIO, file: Path) -> str:
    try:
        return raw.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from None


def _whole_object(file: Path, first: Broken) -> dict[str, Any] | None:
    """Return the object that the whole file is; None where only its first line is broken."""
    if not first.cut:
        return None
    try:
        return decode(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # UnicodeDecodeError is one too
        if first.text.strip() == "{":
            raise DataError(
                f"{file}: invalid JSON ({error}); write one object a line (convert it with "
                "`jq -c .`), or one array of them"
            ) from None
        return None


def _list_of_rows(row: dict[str, Any]) -> str | None:
    """Return the name of the list of rows in an object such as {"data": [...]}; None for a row."""
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
    """Yield the rows of a JSON array; an incomplete one yields none."""
    rows: list[Any] = []
    try:
        end = _after_space(text, text.index("[") + 1)
        while text[end : end + 1] != "]":
            row, end = _element(text, end)
            rows.append(row)
            end = _after_space(text, end)
            if text[end : end + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, end)
            if text[end] == ",":
                end = _after_space(text, end + 1)
        if text[end + 1 :].strip():
            raise json.JSONDecodeError("Text after the array", text, end + 1)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}:{error.lineno}: invalid JSON ({error.msg} at column {error.colno}); the file "
            "is incomplete"
        ) from None
    except ValueError as error:
        raise DataError(f"{file}: invalid JSON ({error})") from None
    for number, row in enumerate(rows):
        yield Row(number, f"{file}, row {number}", row, number / len(rows))


def _element(text: str, start: int) -> tuple[Any, int]:
    """Return (the array's element that begins at `start`, the index of its end)."""
    try:
        return decode_from(text, start)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        end = end_of(text, start)
        return Broken(text[start:end], f"the row is not valid JSON ({error})"), end


def _after_space(text: str, start: int) -> int:
    """Return the index after the whitespace that begins at `start`."""
    space = _SPACE.match(text, start)
    return space.end() if space else start
