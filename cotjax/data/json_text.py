"""Strict JSON, and what a file is when it is not JSON in UTF-8."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from cotjax.errors import DataError

# The first bytes of what people take for JSON, and what to do about it.
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


def open_json(path: str | Path, missing: str = "no such file") -> BinaryIO:
    """Open a file of JSON text for reading. `missing` is what is said of a file that is not there.

    Raises:
      DataError: it is not there, is a folder or a device, cannot be read, is compressed, or is not in UTF-8; the message
        says which.
    """
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISDIR(kind):
            raise DataError(f"{path}: a folder, not a file; name a file in it")
        if not stat.S_ISREG(kind):
            raise DataError(f"{path}: a device or a pipe, not a file; save what it holds to a file")
        file = open(path, "rb")  # noqa: SIM115 the caller closes it
    except FileNotFoundError:
        if os.path.islink(path):
            raise DataError(
                f"{path}: a symbolic link to {os.readlink(path)}, which is not there"
            ) from None
        raise DataError(f"{path}: {missing}") from None
    except OSError as error:  # no permission, links in a circle, a file in place of a folder
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); name another file or mend its permissions"
        ) from None
    head = file.peek(_HEAD)[:_HEAD]
    what = next((what for start, what in _FOREIGN.items() if head.startswith(start)), None)
    if what is None and b"\0" in head[:2]:
        what = "in UTF-16 or UTF-32, or not text at all; save it as UTF-8"
    if what is not None:
        file.close()
        raise DataError(f"{path}: {what}")
    return file


def decode(text: str) -> Any:
    """Return the one JSON value that `text` is. Raises as `decode_from`."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def decode_from(text: str, start: int) -> tuple[Any, int]:
    """Return the JSON value that begins at `start`, and where it ends.

    Raises:
      json.JSONDecodeError: there is no JSON value.
      ValueError: there is one with a key twice in an object, with NaN or Infinity, or nested too
        deeply.
    """
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def end_of(text: str, start: int) -> int:
    """Return where the JSON value that begins at `start` ends. Raises ValueError where there is none."""
    try:
        return _LENIENT.raw_decode(text, start)[1]
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is none of its numbers")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r:.80} comes twice in one object")
    return made


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique)
_LENIENT = json.JSONDecoder()
