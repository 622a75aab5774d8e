"""What probes measured at the states of a checkpoint's episodes, as the viewer shows it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from cotjax.diagnostics.probe_rows import FOLDER, ProbeRow, read_probe
from cotjax.diagnostics.probes import PROBE_ROWS

Key = tuple[str, str, int, int]  # driver, game, sample, turn: as `ProbeRow.key`
_PLACE = frozenset(ProbeRow.model_fields)


class Measured:
    """The rows of a run's probes, by arm and checkpoint."""

    def __init__(self, run_folder: Path):
        self._run = run_folder
        self.at = lru_cache(maxsize=4)(self._read)

    def _read(self, arm: str, checkpoint: int) -> Mapping[Key, dict[str, dict[str, Any]]]:
        """Return the key of a state -> probe -> the fields that it measured there.

        Raises:
          DataError: a file is malformed; the message names the line.
        """
        found: dict[Key, dict[str, dict[str, Any]]] = {}
        for probe, model in PROBE_ROWS.items():
            path = self._run / FOLDER / probe / arm / f"{checkpoint}.jsonl"
            if not path.is_file():
                continue
            for row in read_probe(path, model)[1]:
                fields = row.model_dump(mode="json", exclude=set(_PLACE))
                found.setdefault(row.key, {})[probe] = fields
        return found
