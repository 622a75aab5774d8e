"""What binds a training run: its settings, and the content that it is made from. Another run is refused its folder.

A folder is bound from its first update on. Before that nothing is lost, so a start that failed binds nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from cotjax.errors import UsageError
from cotjax.runtime.files import read_json, write_whole
from cotjax.runtime.settings import first_difference
from cotjax.train.checkpoint import whole_steps
from cotjax.train.fingerprints import changed

# Settings of the `train` section that change no number but by rounding: they may change when a run goes on. `steps` may too, as long as
# the learning rate's schedule stays what it was (see `binding`).
FREE = (
    "steps", "save_every", "keep_last", "keep_every", "keep_best", "tensorboard", "wandb_project", "profile_start", "profile_steps",
    "remat", "scan_layers", "attention", "accumulate",
)  # fmt: skip


def binding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `train` section that a run cannot change.

    `schedule_steps` among them is the update at which the schedule ends, whatever set it; None where it is constant.
    """
    bound = {name: value for name, value in settings.items() if name not in FREE}
    ends = settings.get("schedule_steps") or settings.get("steps")
    return bound | {"schedule_steps": None if settings.get("schedule") == "constant" else ends}


def difference(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str | None:
    """Say the first setting of a run that differs in what binds it; None where none does.

    Both have the sections train, masking, model and seed. A setting that `theirs` does not know is newer than that run.
    """
    before, now = ({**run, "train": binding(run.get("train", {}))} for run in (theirs, mine))
    parts = ("train", "masking", "model")
    for part in parts:
        now[part] = {
            name: value for name, value in now[part].items() if name in before.get(part, {})
        }
    differs = first_difference(
        *({name: run.get(name) for name in (*parts, "seed")} for run in (before, now))
    )
    return None if differs is None else told(*differs, now["train"].get("schedule"))


def told(name: str, there: Any, here: Any, schedule: Any = None) -> str:
    """Say that a setting differs, and for the length of a schedule what to do."""
    if name == "train.schedule_steps" and there is not None and here is not None:
        keep = f"--config.train.schedule_steps={there} keeps it, and lets the run be of any length"
        return (
            f"train.steps is {there} there, {here} here, where the {schedule} schedule ends; {keep}"
        )
    return f"{name} is {there!r} there, {here!r} here"


def begun(folder: Path) -> bool:
    """Whether an update was made in an arm's folder."""
    file = folder / "metrics.jsonl"
    if file.exists():
        with file.open(encoding="utf-8") as rows:
            # The held-out loss of step 0 has a row before the first update has one.
            if any('"held_out"' not in row for row in islice(rows, 2)):
                return True
    return any(whole_steps(folder / "checkpoints"))


def check(
    folder: Path, run: Mapping[str, Any], theirs: Mapping[str, Any] | None = None
) -> list[str]:
    """Find whether `run` may go on in an arm's folder; return what the user should read. Nothing is written.

    Args:
      run: train, masking, model, seed, and made_from where it is known (see `cotjax.train.fingerprints`).
      theirs: the same as it was (None: as the folder's settings.json says).

    Raises:
      UsageError: the folder holds another run, of other settings or content, or one that has more updates.
      DataError: its settings cannot be read.
    """
    file = folder / "settings.json"
    if not begun(folder) or (theirs is None and not file.exists()):
        return []
    theirs = read_json(file, "cotjax") if theirs is None else theirs
    mine = _as_json(run)
    if differs := difference(theirs, mine):
        raise UsageError(
            f"{folder} holds another run ({differs}); choose another folder with --out"
        )
    reached = max(whole_steps(folder / "checkpoints"), default=0)
    if mine["train"]["steps"] < reached:
        raise UsageError(
            f"{folder} is trained to step {reached}, and train.steps is {mine['train']['steps']}; raise it, or choose another --out"
        )
    return _check_content(folder, theirs, mine.get("made_from"))


def check_content(folder: Path, made_from: Mapping[str, Any], steps: int, known: bool) -> None:
    """As `check`, of what the run is made from alone: before a dataset is built of it.

    Args:
      steps: updates that the run is to have.
      known: whether these examples were made before. A run of a version that kept no fingerprints goes on with no others.
    """
    file = folder / "settings.json"
    if not begun(folder) or not file.exists():
        return
    theirs = read_json(file, "cotjax")
    _check_content(folder, theirs, made_from)
    if (
        not theirs.get("made_from")
        and not known
        and max(whole_steps(folder / "checkpoints"), default=0) < steps
    ):
        raise UsageError(
            f"{folder}: begun by a version that kept no fingerprints, and of other examples than {made_from['data']['file']} gives "
            "now: the data changed, or how they are encoded; go on with that version, or choose another folder with --out"
        )


def made_from_of(folder: Path) -> dict[str, Any] | None:
    """Return what the run in an arm's folder is made from; None where that was not kept."""
    file = folder / "settings.json"
    return read_json(file, "cotjax").get("made_from") if file.exists() else None


def _check_content(
    folder: Path, theirs: Mapping[str, Any], made_from: Mapping[str, Any] | None
) -> list[str]:
    if made_from is None:
        return []
    if not theirs.get("made_from"):
        return [
            f"{folder}: no fingerprint of its data, tokenizer and base was kept; they are taken to be what they were"
        ]
    if said := changed(theirs["made_from"], made_from):
        raise UsageError(
            f"{folder} holds another run ({said}); bring back what it was begun with, or choose another folder with --out"
        )
    return []


def claim(folder: Path, run: Mapping[str, Any]) -> list[int]:
    """Take a folder for a run that `check` let pass; return the steps at which the run saves. Only one process is to call it."""
    file = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    mine = _as_json(run)
    saves = checkpoint_steps(mine["train"]["steps"], mine["train"]["save_every"])
    if begun(folder):
        saves = (
            _continued(folder, read_json(file, "cotjax"), mine["train"], saves)
            if file.exists()
            else saves
        )
    elif not file.exists() or _bound(read_json(file, "cotjax")) != _bound(mine):
        shutil.rmtree(
            folder / "checkpoints", ignore_errors=True
        )  # of a start that failed: what it would have begun from
    text = json.dumps({**mine, "saves": saves}, indent=2) + "\n"
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        write_whole(file, text)
    return saves


def checkpoint_steps(steps: int, save_every: int) -> list[int]:
    """The steps at which a run saves: 0 (what it starts from), every `save_every`, and the last."""
    return sorted({*range(0, steps + 1, save_every), steps})


def planned_steps(folder: Path) -> list[int]:
    """The steps at which the run in an arm's folder saves, and saved before its length or `save_every` changed."""
    file = folder / "settings.json"
    if not file.exists():
        return []
    theirs = read_json(file, "cotjax")
    return theirs.get("saves") or checkpoint_steps(
        theirs["train"]["steps"], theirs["train"]["save_every"]
    )


def _continued(
    folder: Path, theirs: dict[str, Any], settings: Mapping[str, Any], saves: list[int]
) -> list[int]:
    """The steps at which a run saves that goes on: those that it saved stay, whatever its settings are now."""
    before = planned_steps(folder)
    if all(theirs["train"].get(name) == settings[name] for name in ("steps", "save_every")):
        return before
    there = whole_steps(folder / "checkpoints")
    return sorted(
        {
            *(step for step in before if step in there),
            *(step for step in saves if step > max(there, default=-1)),
        }
    )


def _bound(run: Mapping[str, Any]) -> dict[str, Any]:
    return {**run, "train": binding(run.get("train", {})), "saves": None}


def _as_json(run: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(run))
