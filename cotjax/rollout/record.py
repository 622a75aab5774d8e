"""Episode records: one JSON file an episode, written whole or not at all. docs/records.md explains every field.

    {"schema_version": 2, "arm": "sft", "checkpoint": 100, "driver": "cot", "domain": "in_domain",
     "games_hash": "…", "checkpoint_hash": "…", "game": {"id": …, "task_type": …, "split": …}, "seed": 0, "sample": 0,
     "task": "put a plate in fridge", "success": true, "ended": "won" | "step_limit" | "length" | "env_error",
     "env_error": null, "env_faults": [], "elicitation": {…}, "final_observation": "…",
     "steps": [{"observation": …, "admissible_commands": […], "executed": "go to fridge 1", "reference": null,
                "nothing_happens": false, "prompt_length": 214, "prompt_ids": […],
                "cot": {"text": …, "thought": …, "action": …, "valid": true, "reason": null, "problem": null, "admissible": true,
                        "ids": […], "new_tokens": 31, "stopped": true, "seed": 7, "logprob": -3.1, "logprobs": […]},
                "prompt": {… the same keys …}}, …],
     "timing": {"environment_s": 0.1, "waited_s": 0.0, "sampler_s": 2.0, "total_s": 9.5}}

`driver` says whose action the environment got: the CoT action ("cot"), the prompt action ("prompt"), or the recorded one of an
expert's trajectory ("reference"). A kind of action that was not decoded is null. `sample` numbers the episodes of one game by one
driver; a record without it is of sample 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from cotjax.errors import DataError, InternalError
from cotjax.runtime.files import write_whole

SCHEMA_VERSION = 2
_HALF_PAIR = re.compile("[\ud800-\udfff]")


def record_path(
    folder: str | Path, *, arm: str, checkpoint: int, driver: str, game_id: str, sample: int = 0
) -> Path:
    """Where an episode's record stands: a readable start of the game's id, a hash that keeps two games apart, and the number of a
    sample after the first."""
    digest = hashlib.sha256(game_id.encode(errors="surrogatepass")).hexdigest()[:12]
    start = "".join(c if c.isalnum() or c in "-_" else "_" for c in game_id)[:60]
    number = f"-sample{sample}" if sample else ""
    return Path(folder) / arm / str(checkpoint) / driver / f"{start}-{digest}{number}.json"


def write_record(path: Path, record: dict) -> None:
    """Write a record, whole or not at all. Half of a surrogate pair, which no UTF-8 file can hold, becomes U+FFFD.

    Raises InternalError for a number that is not finite: JSON has none.
    """
    try:
        text = json.dumps(
            {"schema_version": SCHEMA_VERSION} | record, ensure_ascii=False, allow_nan=False
        )
    except ValueError as error:
        raise InternalError(f"{path}: the record holds what JSON cannot ({error})") from None
    if _HALF_PAIR.search(text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    write_whole(path, text)


def read_record(path: Path) -> dict:
    """Raises DataError, naming the file, when it does not hold a record."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not a whole record ({error}); delete it and evaluate again"
        ) from None
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{path}: not a record of schema {SCHEMA_VERSION}; delete it and evaluate again"
        )
    return record


def set_aside(path: Path) -> Path:
    """Rename what is not a whole record, so that its episode is played again and nothing is lost; returns the new path."""
    aside = path.with_suffix(".json.damaged")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_suffix(f".json.damaged-{number}")
    os.replace(path, aside)
    return aside


def read_records(folder: str | Path) -> Iterator[dict]:
    """Every record under `folder`, in the order of its path.

    Raises:
      DataError: there is none, or a file does not hold one.
    """
    paths = sorted(Path(folder).rglob("*.json"))
    if not paths:
        raise DataError(f"{folder}: no episode records; `cotjax evaluate` makes them")
    for path in paths:
        yield read_record(path)
