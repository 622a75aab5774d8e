"""Fingerprints of files: the SHA-256 of their content, each file read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cotjax.errors import DataError
from cotjax.runtime.files import sha256_of, write_atomic
from cotjax.weights.convert import weight_files

# A younger file may change again within one tick of the file system's clock: not remembered.
_SETTLED_S = 2.0


class Fingerprints:
    """SHA-256 of files. `memory`, a JSON file, keeps each by the file's path, size and times."""

    def __init__(self, memory: Path):
        self._memory = memory
        self._known: dict[str, list[Any]] = {}
        # A memory that is missing or malformed is empty: every file is read again.
        with contextlib.suppress(OSError, ValueError, TypeError):
            self._known = dict(json.loads(memory.read_text(encoding="utf-8")))

    def of(self, file: Path) -> str:
        """Return the SHA-256 of a file's content. Raises DataError when it cannot be read."""
        name = str(file.resolve())
        try:
            status = file.stat()
            # The inode's change time too: a copy may keep the size and the modification time.
            seen = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            known = self._known.get(name)
            if isinstance(known, list) and known[:3] == seen:
                return known[3]
            digest = sha256_of(file)
        except FileNotFoundError:
            raise DataError(f"{file}: no such file") from None
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from None
        if time.time_ns() - max(seen[1:]) > _SETTLED_S * 1e9:
            self._known[name] = [*seen, digest]
        else:
            self._known.pop(name, None)
        return digest

    def of_folder(self, folder: Path, files: Iterable[Path]) -> str:
        """Return one SHA-256 of several files: of their names in `folder` and their content."""
        together = hashlib.sha256()
        for file in files:
            # Adapters include their base's files, which are in another folder.
            name = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name
            together.update(f"{name}\0{self.of(file)}\n".encode())
        return together.hexdigest()

    def of_base(self, folder: Path) -> str:
        """Return the SHA-256 of the weights in a model's folder, of any kind."""
        return self.of_folder(folder, weight_files(folder))

    def keep(self) -> None:
        """Write the memory."""
        write_atomic(self._memory, json.dumps(self._known, indent=0, sort_keys=True) + "\n")
