"""The settings that bind an arm of a run, and what differs between two runs of one arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cotjax.runtime.older import with_later
from cotjax.runtime.settings import first_difference

# Settings of the `train` section that change results by rounding at most, so they may change when a
# run resumes. `steps` may too, as long as the learning rate's schedule stays: see `binding`.
FREE = {
    *("steps", "save_every", "keep_last", "keep_every", "keep_best"),
    *("tensorboard", "wandb_project", "profile_start", "profile_steps"),
    *("remat", "scan_layers", "attention", "accumulate"),
    "information_examples",
}


def binding(train: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a `train` section that a run cannot change.

    Their `schedule_steps` is the update at which the schedule ends, whichever setting gives it;
    None for a constant one.
    """
    bound = {name: value for name, value in train.items() if name not in FREE}
    ends = train.get("schedule_steps") or train.get("steps")
    return bound | {"schedule_steps": None if train.get("schedule") == "constant" else ends}


def difference(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str | None:
    """Say the first binding setting of an arm that differs; None when none does.

    A setting that `theirs` lacks is newer than that run, and is not compared.
    """
    before, now = ({**run, "train": binding(run.get("train", {}))} for run in (theirs, mine))
    if bool(before.get("rl")) != bool(now.get("rl")):
        return f"it is trained by `cotjax {'rl' if before.get('rl') else 'train'}`"
    sections = ("train", "masking", "model", "rl")
    for section in sections:
        known = before.get(section, {})
        if section == "rl" and known:
            known = before[section] = with_later(known)
        now[section] = {
            name: value for name, value in now.get(section, {}).items() if name in known
        }
    names = (*sections, "objective", "seed")
    compared = ({name: run.get(name) for name in names} for run in (before, now))
    differs = first_difference(*compared)
    return said(*differs, now["train"].get("schedule")) if differs else None


def said(name: str, there: Any, here: Any, schedule: Any) -> str:
    """Say that a setting differs, and for the length of a schedule what to do."""
    if name == "train.schedule_steps" and there is not None and here is not None:
        return (
            f"train.steps is {there} there, {here} here, where the {schedule} schedule ends; "
            f"--config.train.schedule_steps={there} keeps it, and lets the run be of any length"
        )
    return f"{name} is {there!r} there, {here!r} here"
