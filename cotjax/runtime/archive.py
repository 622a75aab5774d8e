"""Runs in an archive, unpacked for as long as they are read."""

from __future__ import annotations

import lzma
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cotjax.errors import DataError


def read_text(run: Path, name: str) -> str:
    """Return a file of a run's folder or archive, of which no more than needed is read.

    Raises DataError where it is not there.
    """
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
    """Yield a run's folder: the path itself, or where it is an archive, that archive unpacked.

    Raises DataError where the archive is damaged.
    """
    if not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="cotjax-") as folder:
        with _damage(path), tarfile.open(path) as archive:
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
