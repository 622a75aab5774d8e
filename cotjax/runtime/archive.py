"""Runs in an archive, unpacked for as long as they are read."""

from __future__ import annotations

import lzma
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cotjax.errors import DataError


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield a run's folder: the path itself, or where it is an archive, that archive unpacked.

    Raises DataError where the archive is damaged.
    """
    if not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="cotjax-") as folder:
        try:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            raise DataError(
                f"{path}: no readable archive ({error}); fetch it again, or write it with `cotjax "
                "export archive`"
            ) from None
        yield Path(folder)
