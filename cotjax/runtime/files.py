"""Atomic file writes: a temporary file, fsync, a rename. And what is said of places that cannot be written to."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from cotjax.errors import DataError, UsageError

# What a disk says when it takes no more: full, over the quota, a file too large, broken, read-only.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_MARK_BYTES = 4096  # within so many bytes of its beginning a file of ours shows its mark
_SCHEME = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]+:/"
)  # pathlib makes gs://a of gs:/a; one letter is a Windows drive


def local_path(text: str | Path) -> Path:
    """Return a path of this machine's file system, with `~` and variables of the environment (`$DATA`) expanded.

    Raises:
      UsageError: the text is a URL such as gs://bucket/run, which would become a local folder called `gs:`.
    """
    if _SCHEME.match(str(text)):
        raise UsageError(
            f"{re.sub(':/+', '://', str(text), count=1)}: only paths of this machine's file system can be read and written, "
            "not URLs; work on a disk or a shared file system (NFS, Filestore), and copy from or to the bucket apart"
        )
    return Path(os.path.expanduser(os.path.expandvars(text)))


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file whole or not at all, whatever stops the process or the machine; text as UTF-8. Raises as `whole`."""
    with whole(path, "wb") as out:
        out.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole(
    path: str | Path,
    mode: str = "w",
    *,
    mark: bytes | None = None,
    inputs: Iterable[str | Path] = (),
) -> Iterator[IO[Any]]:
    """Open a file for writing that appears under its name, whole, when the block ends; not at all when it raises.

    Args:
      path: where it appears; folders above it are made.
      mode: "w" (text, UTF-8, line ends as written) or "wb".
      mark, inputs: see `check_output`.

    Raises:
      UsageError, DataError: as `check_output`.
      DataError: the disk takes no more, or nothing can be written there; what was there before stays.
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
    """Refuse a place that a file must not replace. Call it before the work whose result goes there.

    Args:
      path: the file to be written.
      mark: what the beginning of such a file holds when cotjax wrote it; a file without it is somebody else's and
        stays. None: whatever regular file stands there is replaced.
      inputs: files that are read; none of them may be written.

    Raises:
      UsageError: the path is a URL, a folder, a symbolic link, a device or another special file, one of the inputs,
        or a file that cotjax did not write.
      DataError: it cannot be looked at.
    """
    path = local_path(path)
    try:
        if path.is_symlink():
            raise UsageError(
                f"{path} is a symbolic link (to {os.readlink(path)}); name the file itself, or another place"
            )
        kind = path.stat().st_mode
        for other in inputs:
            if os.path.exists(other) and path.samefile(other):
                raise UsageError(
                    f"{path} is read and cannot be written at the same time; choose another file to write"
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
                    f"{path} exists and was not written by this command; choose another file, or remove it"
                )
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unwritable(path, error) from error


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which appears under its name when the block ends; not at all when it raises.

    What an interrupted call left behind is removed.

    Raises:
      UsageError: something stands there that is not an empty folder, or the path is a URL.
      DataError: the disk takes no more, or nothing can be written there.
    """
    path = local_path(path)
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise UsageError(f"{path} is not empty; name a folder that is not there yet, or is empty")
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
    """Force the names in a folder to the disk: a rename may otherwise be lost with the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(file: Path, author: str) -> dict[str, Any]:
    """Return the object that a JSON file holds. `author` is what writes such files, for the error. Raises DataError."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{file}: there is no such file; name a folder that {author} wrote"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{file}: not a readable JSON file ({error}); bring it back as {author} wrote it"
        ) from None
    if not isinstance(read, dict):
        raise DataError(
            f"{file}: holds a {type(read).__name__}; expected an object as {author} writes it"
        )
    return read


@contextlib.contextmanager
def disk_errors(path: str | Path | None = None) -> Iterator[None]:
    """Turn what a disk refuses inside into a DataError that names `path` (None: what the error names)."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        where, reason = path or error.filename or "a file", os.strerror(error.errno)
        raise DataError(
            f"{where}: could not be written ({reason}); make room or choose another --out, then the same command goes on"
        ) from error


def _clear_up(path: Path) -> None:
    """Remove what killed processes of this machine had begun to write for this file."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        pid = left.name.split(".")[-2]
        if pid.isdecimal() and not is_running(int(pid)):
            left.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether a process of this machine is there, be it as a zombie."""
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
