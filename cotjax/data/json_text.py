"""Strict JSON decoding, and opening files with a clear error where they are not JSON in UTF-8."""

from __future__ import annotations

import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from cotjax.errors import DataError

# First bytes of formats that are mistaken for JSON -> what the file is and what to do.
_FOREIGN = {
    b"\x1f\x8b": "compressed with gzip; unpack it (gunzip)",
    b"BZh": "compressed with bzip2; unpack it (bunzip2)",
    b"\xfd7zXZ": "compressed with xz; unpack it (unxz)",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it (unzstd)",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"PAR1": "a Parquet file; write its rows as JSON Lines",
    b"ARROW1": "an Arrow file; write its rows as JSON Lines",
    b"\xff\xfe": "in UTF-16; save it as UTF-8",
    b"\xfe\xff": "in UTF-16; save it as UTF-8",
}
_HEAD = max(map(len, _FOREIGN))
_JSON_TYPES = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def open_json(path: str | Path, missing: str = "no such file") -> BufferedReader:
    """Open a file of JSON text for reading.

    Args:
      missing: the message for a file that does not exist.

    Raises:
      DataError: the file does not exist, is a folder or a device, cannot be read, is compressed, or
        is not in UTF-8; the message says which.
    """
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISDIR(kind):
            raise DataError(f"{path}: a folder, not a file; name a file in it")
        if not stat.S_ISREG(kind):
            raise DataError(f"{path}: a device or a pipe, not a file; save its content to a file")
        file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
    except FileNotFoundError:
        if os.path.islink(path):
            raise DataError(
                f"{path}: a symbolic link to {os.readlink(path)}, which does not exist"
            ) from None
        raise DataError(f"{path}: {missing}") from None
    except OSError as error:  # no permission, circular links, a file in the path
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); name another file or fix its permissions"
        ) from None
    head = file.peek(_HEAD)[:_HEAD]
    problem = next((text for start, text in _FOREIGN.items() if head.startswith(start)), None)
    if problem is None and b"\0" in head[:2]:
        problem = "in UTF-16 or UTF-32, or not text; save it as UTF-8"
    if problem is not None:
        file.close()
        raise DataError(f"{path}: {problem}")
    return file


def decode(text: str) -> Any:
    """Return the JSON value that `text` consists of. Raises as `decode_from`."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def decode_from(text: str, start: int) -> tuple[Any, int]:
    """Return (the JSON value that begins at `start`, the index of its end).

    Raises:
      json.JSONDecodeError: there is no valid JSON value.
      ValueError: it repeats a key in an object, contains NaN or Infinity, or is nested too deeply.
    """
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def end_of(text: str, start: int) -> int:
    """Return the index of the end of the JSON value that begins at `start`. Raises ValueError."""
    try:
        return _LENIENT.raw_decode(text, start)[1]
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_type(value: object) -> str:
    """Return the name of a JSON value's type, with its article."""
    return _JSON_TYPES.get(type(value), type(value).__name__)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r:.80} occurs twice in one object")
    return unique


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique)
_LENIENT = json.JSONDecoder()
