"""A run's folder: whose it is."""

from __future__ import annotations

import json
from pathlib import Path

from cotjax.errors import UsageError
from cotjax.files import read_json, write_whole
from cotjax.train.claim import FREE

# Where work is done, how patiently, what is kept of it and how one looks on does not change what comes out of it.
_FREE_TO_CHANGE = {
    "workers",
    *(f"train.{name}" for name in FREE),
    *(f"evaluate.{name}" for name in ("start_timeout", "reset_timeout", "step_timeout", "env_retries")),
}


def claim(folder: Path, mine: dict) -> None:
    """Take `folder` for the run of this config, or find that it is this run's already.

    Raises UsageError when it holds something else or is no folder to write to, DataError when its config cannot be read.
    """
    file = folder / "config.json"
    try:
        if file.exists():
            _refuse_other_run(folder, read_json(file, "cotjax"), mine)
        elif folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty and holds no cotjax run; choose another folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(mine, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise UsageError(f"{folder}: nothing can be written there ({error.strerror}); choose another folder with --out") from None


def _refuse_other_run(folder: Path, theirs: dict, mine: dict) -> None:
    before, now = flatten(theirs), flatten(mine)
    for key in sorted({*before, *now} - _FREE_TO_CHANGE):
        if before.get(key) != now.get(key):
            difference = f"{key} is {before.get(key)!r} there, {now.get(key)!r} here"
            raise UsageError(f"{folder} holds another run ({difference}); choose another folder with --out, or remove it")


def flatten(tree: dict, prefix: str = "") -> dict:
    """A dict of dicts as one, with dotted names."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
