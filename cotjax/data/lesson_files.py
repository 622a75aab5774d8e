"""Files of lessons and choices: JSON Lines, one text or choice a line.

    {"id": "…", "task": "What is …?", "observation": "You can search 10 times.", "text": "I need …",
     "slips": []}
    {"id": "…", "task": "…", "observation": "…", "text": "I need …", "chosen": " So I search. …",
     "rejected": " Ma Ti Lo, I know, …", "searches": true}

docs/autocoa.md describes the fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from cotjax.data.json_lines import parse_line, raw_lines
from cotjax.data.json_text import json_type, open_json
from cotjax.envs.lessons import Choice, Lesson
from cotjax.errors import DataError
from cotjax.runtime.files import atomic_file

T = TypeVar("T", Lesson, Choice)
MARK = b'"observation"'  # occurs near the beginning of every file of lessons or choices
_KINDS = {
    "str": (str, "a string"),
    "bool": (bool, "true or false"),
    "tuple[int, ...]": (list, "a list of integers"),
}


def write_texts(path: Path, texts: Iterable[Lesson | Choice]) -> int:
    """Write lessons or choices atomically and return how many there were.

    Raises:
      UsageError: `path` is a file that holds something else, a folder, or a device.
    """
    count = 0
    with atomic_file(path, mark=MARK) as out:
        for text in texts:
            out.write(json.dumps(asdict(text), ensure_ascii=False) + "\n")
            count += 1
    return count


def read_lessons(path: Path) -> list[Lesson]:
    """Return the lessons of a file. Raises DataError, with `file:line:`, for a bad line."""
    return _read(path, Lesson, "text")


def read_choices(path: Path) -> list[Choice]:
    """Return the choices of a file. Raises DataError, with `file:line:`, for a bad line."""
    return _read(path, Choice, "chosen")


def _read(path: Path, kind: type[T], needed: str) -> list[T]:
    """`needed`: the field that may not be empty."""
    found: list[T] = []
    first_lines: dict[str, int] = {}
    with open_json(path, "no such file; `cotjax data choices` makes one of choices") as file:
        for number, (raw, size) in enumerate(raw_lines(file), start=1):
            where = f"{path}:{number}"
            row = parse_line(raw, size, where, first=number == 1)
            values: dict[str, Any] = {}
            for field in fields(kind):
                expected, name = _KINDS[str(field.type)]
                value = row.get(field.name)
                whole = not isinstance(value, list) or all(type(each) is int for each in value)
                if type(value) is not expected or not whole:
                    what = json_type(value) if field.name in row else "missing"
                    raise DataError(
                        f"{where}: the field {field.name!r} is {what}; it must be {name}"
                    )
                values[field.name] = tuple(value) if isinstance(value, list) else value
            if not values[needed].strip():
                raise DataError(f"{where}: the field {needed!r} is empty; delete the line")
            first = first_lines.setdefault(values["id"], number)
            if first != number:
                raise DataError(
                    f"{where}: the id {values['id']!r:.80} occurs in line {first} already; ids "
                    "must be unique"
                )
            found.append(kind(**values))
    if not found:
        raise DataError(f"{path}: the file is empty")
    return found
