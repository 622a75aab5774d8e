"""The viewer: every episode of one or more runs, as a folder that opens without a server.

    viewer/
      index.html, *.css, *.js    the page; the same for all runs
      data/index.js              a row for each episode
      data/<hash>.js             chunks of episodes, which the page reads when it needs them

A browser lets a page from a disk run scripts beside it, but not read files. So each file of data is
a script with one call, whose argument is JSON, compressed by gzip and written in base64. The same
records give the same bytes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cotjax.errors import UsageError
from cotjax.masking import Dropping
from cotjax.report.arms import find_arms
from cotjax.report.elicitations import DRIVERS, FIELDS
from cotjax.report.labels import domain_label
from cotjax.report.viewer.episodes import MARKS, Pieces, episode_entry, marks_of
from cotjax.report.viewer.measured import Measured
from cotjax.report.viewer.tokens import TokenTexts, dropping_of_arm
from cotjax.rollout.record import Record, read_record, record_files
from cotjax.runtime.files import read_json, write_atomic

FOLDER = "viewer"
_PAGE = Path(__file__).parent / "page"
# Every index.html of a viewer has this, so that no other folder is written over.
_MARK = b'content="cotjax viewer"'
_CHUNK_BYTES = 1 << 20  # of JSON, before it is compressed
_TEXTS = ("run", "arm", "driver", "domain", "game", "task_type", "task", "ended")
_NUMBERS = ("checkpoint", "sample", "seed", "steps", "marks", "elicitation", "chunk", "place")


@dataclass(frozen=True)
class Viewer:
    """What `make_viewer` wrote. `data_bytes`: of the files in data/."""

    index: Path
    episodes: int
    chunks: int
    data_bytes: int


def make_viewer(
    run_folders: Sequence[str | Path],
    out: str | Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Viewer:
    """Write the viewer of these runs' records to `out`, in place of one that is there.

    `progress`: called with (records done, records in all).

    Raises:
      DataError: records are missing or malformed; the message names the file.
      UsageError: `out` holds something else.
    """
    runs, out = [Path(folder) for folder in run_folders], Path(out)
    _check_out(out)
    files = [record_files(run / "records") for run in runs]
    # First of all index.html, by which an interrupted viewer is known again.
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(_PAGE.iterdir(), key=lambda file: file.name != "index.html"):
        write_atomic(out / file.name, file.read_bytes())
    writer = _Writer(out / "data")
    total, done = sum(map(len, files)), 0
    described = []
    for name, run, paths in zip(run_names(runs), runs, files, strict=True):
        about = read_json(run / "run.json", "cotjax") if (run / "run.json").is_file() else {}
        texts, measured = TokenTexts(run, about), Measured(run)
        dropped: dict[str, Dropping | None] = {}
        for path in paths:
            record = read_record(path)
            arm = record.member
            if arm not in dropped:
                dropped[arm] = dropping_of_arm(about, arm)
            entry = episode_entry(
                record,
                texts,
                dropped[arm],
                measured.at(arm, record.checkpoint),
                writer.pieces,
            )
            writer.add(name, record, entry)
            progress(done := done + 1, total)
        described.append(_described(name, run, about, set(dropped), out))
    writer.finish({"runs": described})
    return Viewer(out / "index.html", total, writer.chunks, writer.bytes)


def run_names(runs: Sequence[Path]) -> list[str]:
    """Return a name for each run: that of its folder, with a number where another run has it."""
    names: list[str] = []
    for run in runs:
        name = base = run.resolve().name
        number = 1
        while name in names:
            number += 1
            name = f"{base}-{number}"
        names.append(name)
    return names


def address(run: str, record: Record, turn: int = 0) -> str:
    """Return the part of the viewer's address, from "#" on, that opens a step of an episode."""
    place = (
        run, record.member, record.checkpoint, record.driver, record.game.id, record.sample, turn,
    )  # fmt: skip
    return "#" + "/".join(quote(str(part), safe="") for part in place)


class _Writer:
    """Gathers episodes to chunks, and the index.

    Attributes:
      pieces: of the chunk that is being gathered.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._size = folder, 0
        self._entries: list[str] = []
        self._names: list[str] = []
        self._tables: dict[str, dict[str, int]] = {name: {} for name in _TEXTS}
        self._columns: dict[str, list[int]] = {name: [] for name in (*_TEXTS, *_NUMBERS)}
        self._elicitations: dict[str, int] = {}
        self._probes: set[str] = set()
        self.pieces = Pieces()
        self.bytes = 0

    @property
    def chunks(self) -> int:
        """Number of chunks so far."""
        return len(self._names)

    def add(self, run: str, record: Record, entry: Mapping[str, Any]) -> None:
        """Add an episode, and write the chunk when it is large enough."""
        elicitation = _json(record.elicitation)
        row: dict[str, str | int] = {
            "run": run,
            "arm": record.member,
            "driver": record.driver,
            "domain": record.domain,
            "game": record.game.id,
            "task_type": record.game.task_type,
            "task": record.task,
            "ended": record.ended,
            "checkpoint": record.checkpoint,
            "sample": record.sample,
            "seed": record.seed,
            "steps": len(record.steps),
            "marks": marks_of(entry),
            "elicitation": self._elicitations.setdefault(elicitation, len(self._elicitations)),
            "chunk": len(self._names),
            "place": len(self._entries),
        }
        for name, value in row.items():
            if isinstance(value, str):
                table = self._tables[name]
                value = table.setdefault(value, len(table))
            self._columns[name].append(value)
        self._probes.update(name for step in entry["steps"] for name in step["probes"])
        text = _json(entry)
        self._entries.append(text)
        self._size += len(text)
        if self._size >= _CHUNK_BYTES:
            self._flush()

    def finish(self, head: Mapping[str, Any]) -> None:
        """Write the last chunk and the index, and remove what an earlier viewer left."""
        self._flush()
        index = {
            **head,
            "chunks": self._names,
            "marks": MARKS,
            "drivers": DRIVERS,
            "domains": {name: domain_label(name) for name in self._tables["domain"]},
            "probes": sorted(self._probes),
            "elicitation_fields": FIELDS,
            "elicitations": [json.loads(each) for each in self._elicitations],
            "tables": {name: list(values) for name, values in self._tables.items()},
            "columns": self._columns,
        }
        self._write("index", _json(index))
        kept = {f"{name}.js" for name in (*self._names, "index")}
        for file in self._folder.glob("*.js"):
            if file.name not in kept:
                file.unlink()

    def _flush(self) -> None:
        if not self._entries:
            return
        text = f'{{"pieces":{_json(self.pieces.texts())},"episodes":[{",".join(self._entries)}]}}'
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._write(name, text)
        self._names.append(name)
        self._entries, self._size, self.pieces = [], 0, Pieces()

    def _write(self, name: str, text: str) -> None:
        packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
        script = f'viewer.arrived("{name}", "{packed}");\n'
        write_atomic(self._folder / f"{name}.js", script)
        self.bytes += len(script)


def _described(
    name: str, run: Path, about: Mapping[str, Any], seen: set[str], out: Path
) -> dict[str, Any]:
    """Return what the page says about a run, with the labels and seeds of its arms."""
    arms: dict[str, dict[str, Any]] = {}
    for cell, arm in find_arms(about, seen).items():
        for member, seed in arm.seeds.items():
            arms[member] = {"cell": cell, "label": arm.label, "seed": seed}
    if "base" in seen:
        arms["base"] = {"cell": "base", "label": "base model", "seed": None}
    beside = out.resolve().parent == run.resolve() and (run / "report.html").is_file()
    return {
        "name": name,
        "title": str(about.get("title") or name),
        "arms": arms,
        "report": "../report.html" if beside else None,
    }


def _check_out(out: Path) -> None:
    """Raise UsageError unless `out` is a viewer, empty, or not there."""
    if not out.exists():
        return
    index = out / "index.html"
    if not out.is_dir() or (
        any(out.iterdir()) and not (index.is_file() and _MARK in index.read_bytes())
    ):
        raise UsageError(f"{out} holds something other than a viewer; name another folder")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
