"""Fingerprints of what a run is made from: its data, its tokenizer and its base, by the SHA-256 of their content.

    made_from    {"data": {"file", "sha256", "examples"}, "tokenizer": {"file", "sha256"}, "base": {"file", "sha256"}}
                 a base of new weights has no file: {"recipe": "random", "recall_steps"}

`examples` names the dataset that was built of the data file: its settings and its tokenizer count too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cotjax.errors import DataError
from cotjax.runtime.files import write_whole
from cotjax.weights.convert import weight_files

_SETTLED_S = 2.0  # a younger file may change again within one tick of the file system's clock, and is not remembered
_SHOWN = 12  # hexadecimal digits in messages


class Fingerprints:
    """SHA-256 of files. Each is read once: `memory`, a JSON file, keeps the sum by path, size and times."""

    def __init__(self, memory: Path):
        self._memory = memory
        self._known: dict[str, list[Any]] = {}
        with contextlib.suppress(
            OSError, ValueError, TypeError
        ):  # not there, or spoilt: everything is read again
            self._known = dict(json.loads(memory.read_text(encoding="utf-8")))

    def of(self, file: Path) -> str:
        """Return the SHA-256 of a file's content. Raises DataError when it cannot be read."""
        name = str(file.resolve())
        try:
            status = file.stat()
            # The time of the last change of the inode too: a copy may keep the size and the modification time.
            seen = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            known = self._known.get(name)
            if isinstance(known, list) and known[:3] == seen:
                return known[3]
            with file.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
        except FileNotFoundError:
            raise DataError(f"{file}: no such file") from None
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from None
        if time.time_ns() - max(seen[1:]) > _SETTLED_S * 1e9:
            self._known[name] = [*seen, found]
        else:
            self._known.pop(name, None)
        return found

    def of_folder(self, folder: Path, files: Iterable[Path]) -> str:
        """Return one SHA-256 of several files in a folder: of their names and their content."""
        together = hashlib.sha256()
        for file in files:
            # Adapters count their base's files, which lie elsewhere.
            name = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name
            together.update(f"{name}\0{self.of(file)}\n".encode())
        return together.hexdigest()

    def of_base(self, folder: Path) -> str:
        """Return the SHA-256 of the weights in a model's folder of either kind; its sizes are the model's, and compared as such."""
        return self.of_folder(folder, weight_files(folder))

    def keep(self) -> None:
        """Write the memory."""
        write_whole(self._memory, json.dumps(self._known, indent=0, sort_keys=True) + "\n")


def contents(made_from: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`made_from` without the places where the files lay."""
    return {
        part: {name: value for name, value in about.items() if name != "file"}
        for part, about in made_from.items()
    }


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Say what is not what it was, naming the file; None where all is."""
    theirs, mine = contents(before), contents(now)
    for part in mine:
        was, found = theirs.get(part, {}), mine[part]
        if was == found:
            continue
        place = now[part].get("file", "the base of new weights")
        if (
            part == "data"
            and was.get("sha256") == found["sha256"]
            and theirs.get("tokenizer") == mine["tokenizer"]
        ):
            return f"{place} is what it was, but other examples are made of it: by other data settings, or another version of cotjax"
        if "sha256" in was and "sha256" in found and was["sha256"] != found["sha256"]:
            sums = f"sha256 {was['sha256'][:_SHOWN]}… there, {found['sha256'][:_SHOWN]}… here"
            return f"{_OF[part]}: the content of {place} changed ({sums})"
        if part != "data":
            return (
                f"{_OF[part]}: it was {_told(before.get(part, {}))}, and is {_told(now[part])} now"
            )
    return None


_OF = {"data": "the data", "tokenizer": "the tokenizer", "base": "the base model"}


def _told(about: Mapping[str, Any]) -> str:
    recipe = {name: value for name, value in about.items() if name not in ("file", "sha256")}
    return str(
        about.get("file")
        or ", ".join(f"{name} {value}" for name, value in recipe.items())
        or "not known"
    )
