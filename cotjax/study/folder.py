"""A run's folder: whose it is."""

from __future__ import annotations

import json
from pathlib import Path

from cotjax.errors import UsageError
from cotjax.files import read_json, write_whole
from cotjax.settings import first_difference
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
            if differs := first_difference(read_json(file, "cotjax"), mine, _FREE_TO_CHANGE):
                difference = "{} is {!r} there, {!r} here".format(*differs)
                raise UsageError(f"{folder} holds another run ({difference}); choose another folder with --out, or remove it")
        elif folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty and holds no cotjax run; choose another folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(mine, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise UsageError(f"{folder}: nothing can be written there ({error.strerror}); choose another folder with --out") from None
