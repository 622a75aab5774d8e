"""A run's records, rows of probes and report numbers in one compressed file, to publish them.

    run.json  config.json  summary.json
    records/<arm>/<checkpoint>/<driver>/*.json     without token ids and their probabilities
    arms/<arm>/settings.json  information.jsonl  metrics.jsonl (without rows of updates)
    probes/…

Records stay records of the schema: `cotjax study --check FILE` recomputes the report from them, and
unpacked (`tar -xf FILE -C FOLDER`) they are a run that `cotjax report FOLDER` reports. In a record
ids are empty, their probabilities null and the seeds that they were drawn with 0; scores of
admissible actions have two decimals. No file names a folder outside the run.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cotjax.errors import DataError
from cotjax.rollout.record import record_files
from cotjax.runtime.files import atomic_file, read_json
from cotjax.runtime.members import member_folders

_OF_RUN = ("run.json", "config.json", "summary.json")
_OF_ARM = ("settings.json", "information.jsonl")
_OF_ROWS = ('"held_out"', '"evaluated"', '"success"')  # those of updates alone are left out
_DECIMALS = 2


def export_archive(run: Path, out: Path) -> int:
    """Write a finished run's archive; return its number of records.

    The same files give the same bytes.

    Raises:
      DataError: there is no report, or a record is not readable; the message names the file.
    """
    if not (run / "summary.json").exists():
        raise DataError(f"{run / 'summary.json'}: there is none; write it with `cotjax report`")
    number = 0
    with (
        atomic_file(out, "wb") as file,
        tarfile.open(fileobj=file, mode="w:xz", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path, content in _contents(run):
            number += path.startswith("records/")
            data = content.encode()
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return number


def _contents(run: Path) -> Iterator[tuple[str, str]]:
    """Yield (path, text) of each file of an archive."""
    for name in _OF_RUN:
        if (run / name).exists():
            yield name, _named_alone(run / name, run)
    for member, folder in member_folders(run / "arms").items():
        for name in _OF_ARM:
            if (folder / name).exists():
                yield f"arms/{member}/{name}", _named_alone(folder / name, run)
        if (metrics := folder / "metrics.jsonl").exists():
            lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if any(name in line for name in _OF_ROWS)]
            yield f"arms/{member}/metrics.jsonl", "".join(kept)
    for path in sorted((run / "probes").rglob("*.jsonl")):
        yield str(path.relative_to(run)), path.read_text(encoding="utf-8")
    for path in record_files(run / "records"):
        record = read_json(path, "cotjax")
        _without_ids(record, path)
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        yield str(path.relative_to(run)), text + "\n"


def _named_alone(path: Path, run: Path) -> str:
    """Return a file's text, in which a file of this machine is named within the run, or alone."""
    text = path.read_text(encoding="utf-8")
    roots = "|".join(re.escape(f"{folder}/") for folder in {run, run.resolve()})
    return re.sub(rf'"(?:{roots}|/(?:[^"/\\]+/)+)(?=[^"/\\])', '"', text)


def _without_ids(record: dict[str, Any], path: Path) -> None:
    """Empty the fields of a record that hold ids, or their probabilities."""
    try:
        for turn in record["steps"]:
            turn["prompt_ids"] = []
            for kind in ("cot", "prompt", "instructed"):
                if turn.get(kind):
                    turn[kind] |= {"ids": [], "logprobs": None, "logprob": None, "seed": 0}
            for kind in ("cot_constrained", "prompt_constrained"):
                if chosen := turn.get(kind):
                    scores = [round(score, _DECIMALS) for score in chosen["logprobs"]]
                    chosen |= {"ids": [], "prefix_ids": [], "logprobs": scores}
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: not an episode record; restore it from the run") from None
