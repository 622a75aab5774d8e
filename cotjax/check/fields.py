"""Files of JSON, and fields of what they hold, with one clear line for each that is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotjax.errors import DataError

_NAMES = {str: "text", bool: "true or false", int: "an integer", float: "a number"}
_NAMES |= {dict: "an object", list: "a list"}


@dataclass(frozen=True)
class Fields:
    """An object of a file. `place`: the file, with a line or a field for what is inside."""

    content: dict[str, Any]
    place: str

    def get(self, name: str, kind: type, *, null: bool = False) -> Any:
        """Return a field. Raises DataError where it is missing or of another kind."""
        if name not in self.content:
            raise DataError(f"{self.place}: lacks the field {name}; restore the file")
        value = self.content[name]
        if value is None and null:
            return None
        good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if kind is float:
            whole = isinstance(value, int | float) and not isinstance(value, bool)
            good = whole and math.isfinite(value)
        if not good:
            raise DataError(
                f"{self.place}: {name} is {value!r:.60}, not {_NAMES[kind]}; restore the file"
            )
        return value

    def object(self, name: str, *, null: bool = False) -> Fields | None:
        """Return a field that is an object; None where it is null, or `null` and missing."""
        if null and self.content.get(name) is None:
            return None
        return Fields(self.get(name, dict), f"{self.place}: {name}")

    def objects(self, name: str) -> list[Fields]:
        """Return a field that is a list of objects."""
        found = []
        for number, each in enumerate(self.get(name, list)):
            if not isinstance(each, dict):
                raise DataError(
                    f"{self.place}: {name}[{number}] is {each!r:.60}, not an object; restore the "
                    "file"
                )
            found.append(Fields(each, f"{self.place}: {name}[{number}]"))
        return found


def read(path: Path, remedy: str) -> Fields:
    """Return the object that a file holds. Raises DataError, which ends with `remedy`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not complete JSON ({error}); {remedy}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object; {remedy}")
    return Fields(content, str(path))


def read_lines(path: Path, remedy: str) -> Iterator[Fields]:
    """Yield the object of each line. Raises DataError, which ends with `remedy`."""
    try:
        # Not splitlines(): JSON may hold other line separators, such as U+2028, as they are.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {remedy}") from None
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON ({error}); {remedy}") from None
        if not isinstance(content, dict):
            raise DataError(f"{path}:{number}: not a JSON object; {remedy}")
        yield Fields(content, f"{path}:{number}")
