"""Files that are whole or not there: written beside their place, forced to the disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

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
        with partial.open("wb") as out:
            out.write(content.encode() if isinstance(content, str) else content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise disk_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk: a rename may otherwise be lost with the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def plain_disk_errors() -> Iterator[None]:
    """Turn what a disk refuses inside into a DataError."""
    try:
        yield
    except OSError as error:
        raise disk_error(error.filename or "a file", error) from error


def disk_error(path: str | Path, error: OSError) -> Exception:
    """The DataError that says what the disk refused; `error` itself where it says something else."""
    if error.errno not in _TAKES_NO_MORE:
        return error
    reason = os.strerror(error.errno or 0)
    return DataError(f"{path}: could not be written ({reason}); make room or choose another --out, then the same command goes on")
