"""Atomic file writes (temporary file, fsync, rename), checks of outputs, and disk errors."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from cotjax.errors import DataError, UsageError

# Disk full, over the quota, file too large, I/O error, read-only.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_MARK_BYTES = 4096  # a file of ours has its mark within its first bytes, up to here
# A URL's scheme. pathlib shortens gs://a to gs:/a; a single letter is a Windows drive.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_path(text: str | Path) -> Path:
    """Return a local path, with `~` and environment variables (`$DATA`) expanded.

    Raises:
      UsageError: the text is a URL such as gs://bucket/run, which would become a folder `gs:`.
    """
    if _SCHEME.match(str(text)):
        raise UsageError(
            f"{re.sub(':/+', '://', str(text), count=1)}: only paths of this machine's "
            "file system can be read and written, not URLs; use a disk or a shared file system "
            "(NFS, Filestore), and copy from or to the bucket separately"
        )
    return Path(os.path.expanduser(os.path.expandvars(text)))


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file atomically, text as UTF-8. Raises as `atomic_file` does."""
    with atomic_file(path, "wb") as out:
        out.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(
    path: str | Path,
    mode: str = "w",
    *,
    mark: bytes | None = None,
    inputs: Iterable[str | Path] = (),
) -> Iterator[IO[Any]]:
    """Open a file for writing that appears under its name, complete, when the block ends.

    When the block raises, or the process is killed, a previous file of this name stays.

    Args:
      path: the file; its parent folders are made.
      mode: "w" (text, UTF-8, line ends as written) or "wb".
      mark, inputs: see `check_output`.

    Raises:
      UsageError, DataError: as `check_output` does.
      DataError: the disk is full, or nothing can be written there.
    """
    path = local_path(path)
    check_output(path, mark=mark, inputs=inputs)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with disk_errors(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _clear_up(path)
                out = partial.open(
                    mode,
                    encoding=None if "b" in mode else "utf-8",
                    newline=None if "b" in mode else "",
                )
            except OSError as error:
                raise _unwritable(path, error) from error
            with out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            os.replace(partial, path)
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def check_output(
    path: str | Path, *, mark: bytes | None = None, inputs: Iterable[str | Path] = ()
) -> None:
    """Check that a file may be written or replaced. Call it before the work that makes its content.

    Args:
      path: the file to be written.
      mark: bytes near the beginning of every such file that cotjax wrote; a file without them
        is not replaced. None: any regular file is.
      inputs: files that are read; none of them may be written.

    Raises:
      UsageError: the path is a URL, a folder, a symbolic link, a device or another special file,
        one of the inputs, or a file that cotjax did not write.
      DataError: it cannot be examined.
    """
    path = local_path(path)
    try:
        if path.is_symlink():
            raise UsageError(
                f"{path} is a symbolic link (to {os.readlink(path)}); name the file itself, or "
                "another one"
            )
        kind = path.stat().st_mode
        for other in inputs:
            if os.path.exists(other) and path.samefile(other):
                raise UsageError(
                    f"{path} is an input and cannot be written too; choose another file"
                )
        if stat.S_ISDIR(kind):
            raise UsageError(f"{path} is a folder; name a file to write")
        if not stat.S_ISREG(kind):
            raise UsageError(
                f"{path} is not a regular file (a device, a pipe or a socket); name a file to write"
            )
        if mark is not None:
            with path.open("rb") as file:
                start = file.read(_MARK_BYTES)
            if start and mark not in start:
                raise UsageError(
                    f"{path} exists and was not written by this command; choose another file, or "
                    "remove it"
                )
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unwritable(path, error) from error


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def check_output_folder(path: str | Path) -> Path:
    """Return the local path of a folder to make. Raises UsageError unless it is new or empty."""
    path = local_path(path)
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise UsageError(f"{path} is not empty; name a new folder, or an empty one")
    return path


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which appears under its name when the block ends.

    When the block raises, nothing appears. The remains of an interrupted call are removed.

    Raises:
      UsageError: the path exists and is no empty folder, or is a URL.
      DataError: the disk is full, or nothing can be written there.
    """
    path = check_output_folder(path)
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            yield partial
            os.replace(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to the disk; without this a crash may undo a rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(file: Path, author: str) -> dict[str, Any]:
    """Return the object in a JSON file. `author` writes such files, for the error's advice.

    Raises:
      DataError: the file is missing or holds no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{file}: there is no such file; name a folder that {author} wrote"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{file}: not a readable JSON file ({error}); restore it as {author} wrote it"
        ) from None
    if not isinstance(content, dict):
        raise DataError(
            f"{file}: holds a {type(content).__name__}; expected an object as {author} writes it"
        )
    return content


@contextlib.contextmanager
def disk_errors(path: str | Path | None = None) -> Iterator[None]:
    """Turn a disk error inside the block into a DataError for `path` (None: the error's file)."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        where, reason = path or error.filename or "a file", os.strerror(error.errno)
        raise DataError(
            f"{where}: could not be written ({reason}); free some space or choose another --out, "
            "then the same command resumes"
        ) from error


def _clear_up(path: Path) -> None:
    """Remove the temporary files that killed processes of this machine left for this file."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        pid = partial.name.split(".")[-2]
        if pid.isdecimal() and not is_running(int(pid)):
            partial.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Return whether a process of this machine exists; a zombie does."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _unwritable(path: Path, error: OSError) -> Exception:
    if error.errno in _DISK_FULL:
        return error
    return DataError(
        f"{path}: nothing can be written there ({error.strerror}); choose another place"
    )


def put_aside(path: Path) -> Path:
    """Rename a damaged file or folder to the first free `NAME.damaged-N`; return its new path."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    os.rename(path, aside)
    return aside
