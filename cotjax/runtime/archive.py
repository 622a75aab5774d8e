"""Runs in archives, unpacked for as long as they are read.

A run is a folder, an archive of it (`cotjax export archive`), or a folder with an archive for each
part of it and one, `run.tar.xz`, of what is the whole run's.
"""

from __future__ import annotations

import lzma
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cotjax.errors import DataError

_WHOLE = "run.tar.xz"


def read_text(run: Path, name: str) -> str:
    """Return a file of a run's folder or archive, of which no more than needed is read.

    Raises DataError where it is not there.
    """
    if (whole := run / _WHOLE).is_file():
        run = whole
    if not run.is_file():
        if not (run / name).is_file():
            raise DataError(f"{run / name}: there is none; name a finished run, or its archive")
        return (run / name).read_text(encoding="utf-8")
    with _damage(run), tarfile.open(run) as archive:
        for entry in archive:
            if entry.name == name and (content := archive.extractfile(entry)):
                return content.read().decode()
    raise DataError(f"{run}: has no {name}; write it with `cotjax export archive`")


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield a run's folder: the path itself, or where it is archives, these unpacked.

    Raises DataError where an archive is damaged.
    """
    archives = [path] if path.is_file() else []
    if (path / _WHOLE).is_file():
        archives = sorted(path.glob("*.tar.xz"))
    if not archives:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="cotjax-") as folder:
        for each in archives:
            with _damage(each), tarfile.open(each) as archive:
                archive.extractall(folder, filter="data")
        yield Path(folder)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise DataError(
            f"{path}: no readable archive ({error}); fetch it again, or write it with `cotjax "
            "export archive`"
        ) from None
