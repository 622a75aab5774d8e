"""Files that are whole or not there: written beside their place, forced to the disk, then renamed; and what is said when they are not."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cotjax.errors import DataError

# What a disk says when it takes no more: full, over the quota, a file too large, broken, read-only.
_TAKES_NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file whole or not at all, whatever stops the process or the machine; text as UTF-8.

    Raises:
      DataError: the disk takes no more; what was there before stays.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with disk_errors(path), partial.open("wb") as out:
            out.write(content.encode() if isinstance(content, str) else content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk: a rename may otherwise be lost with the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(file: Path, author: str) -> dict[str, Any]:
    """The object that a JSON file holds. `author` is what writes such files, for the error. Raises DataError."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such file; name a folder that {author} wrote") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{file}: not a readable JSON file ({error}); bring it back as {author} wrote it") from None
    if not isinstance(read, dict):
        raise DataError(f"{file}: holds a {type(read).__name__}; expected an object as {author} writes it")
    return read


@contextlib.contextmanager
def disk_errors(path: str | Path | None = None) -> Iterator[None]:
    """Turn what a disk refuses inside into a DataError that names `path` (None: what the error names)."""
    try:
        yield
    except OSError as error:
        if error.errno not in _TAKES_NO_MORE:
            raise
        where, reason = path or error.filename or "a file", os.strerror(error.errno)
        raise DataError(
            f"{where}: could not be written ({reason}); make room or choose another --out, then the same command goes on"
        ) from error
