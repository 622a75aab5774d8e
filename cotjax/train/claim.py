"""A folder belongs to one run: what trains in it is written there first, and another run is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cotjax.errors import UsageError
from cotjax.files import read_json, write_whole
from cotjax.settings import first_difference

# Settings of the `train` section that change no number: what is kept, and how one looks on. They may change when a run goes on.
FREE = ("keep_last", "keep_every", "keep_best", "tensorboard", "wandb_project", "profile_start", "profile_steps")


def binding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `train` section that a run cannot change."""
    return {name: value for name, value in settings.items() if name not in FREE}


def claim(folder: Path, run: dict) -> None:
    """Take `folder` for this run, or find that it is this run's already. Only one process is to call it.

    Raises UsageError, naming the first setting that differs, when it holds another run; DataError when its settings cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    mine = json.loads(json.dumps(run))
    if not file.exists():
        write_whole(file, json.dumps(mine, indent=2) + "\n")
        return
    theirs = read_json(file, "cotjax")
    if differs := first_difference(theirs, mine):
        difference = "{} is {!r} there, {!r} here".format(*differs)
        raise UsageError(f"{folder} holds another run ({difference}); choose another folder with --out")
