"""A run's folder: whose it is, and which settings can no longer change there.

A setting is bound by what was made with it: settings of the games and the collection by the collected trajectories, those of training
by the first update, those of playing by the first episode. Before that they may change, so a start that failed binds nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cotjax.config import ARM_FIELDS, default_config
from cotjax.errors import UsageError
from cotjax.runtime.files import read_json, write_whole
from cotjax.runtime.settings import first_difference, flatten
from cotjax.train.claim import begun, binding, told

CONFIG = "config.json"
# How a run is shown, where it is computed and how patiently changes no result, or by rounding alone. (train: see claim.FREE.)
_FREE = (
    "title", "workers", "cpu_devices", "mesh.",
    *(f"evaluate.{name}" for name in ("slots", "tensor", "start_timeout", "reset_timeout", "step_timeout", "env_retries")),
)  # fmt: skip
_SECTIONS = {
    "games",
    "data",
    "model",
    "train",
    "masking",
    "arms",
    "evaluate",
}  # by which a run's config is known
_OF_GAMES = ("games.source", "games.root", "games.seed")
_PLAYED_GAMES = ("games.eval_split", "games.in_domain", "games.ood")


def check(folder: Path, mine: Mapping[str, Any]) -> None:
    """Find whether the run of this config may use `folder`. Nothing is written.

    Raises UsageError when it holds something else, or what was made with other settings; DataError when its config cannot be read.
    """
    file = folder / CONFIG
    try:
        if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
            return  # not there, or with no more than a file that was being written
        theirs = read_json(file, "cotjax") if file.exists() else {}
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot be read ({error.strerror}); choose another folder with --out"
        ) from None
    if _SECTIONS - theirs.keys():  # a model's folder has a config.json too
        raise UsageError(
            f"{folder} is not empty and holds no cotjax run; choose another folder with --out"
        )
    before, now = _comparable(folder, theirs), _comparable(folder, mine)
    for made, bound in _made(folder):
        free = [name for name in {*before, *now} if _under(name, _FREE) or not _under(name, bound)]
        if differs := first_difference(before, now, free):
            difference = told(*differs, mine["train"]["schedule"])
            raise UsageError(
                f"{folder} holds another run ({difference}); {made}; choose another folder with --out, or remove it"
            )


def claim(folder: Path, mine: Mapping[str, Any]) -> None:
    """Write the config of a run that `check` let pass into its folder. Raises UsageError when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / CONFIG, json.dumps(mine, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise UsageError(
            f"{folder}: nothing can be written there ({error.strerror}); choose another folder with --out"
        ) from None


def bind_held_out(folder: Path, sha256: str) -> None:
    """Keep which expert's trajectories the games of a run are played beside. Raises UsageError when they are others than at first."""
    file = folder / "held_out.json"
    if (
        file.exists()
        and any((folder / "records").rglob("*.json"))
        and read_json(file, "cotjax").get("sha256") != sha256
    ):
        raise UsageError(
            f"{folder / 'trajectories' / 'held_out.jsonl'} changed since episodes were played; bring it back, or move "
            f"{folder / 'records'} away to play all again"
        )
    if not file.exists() or read_json(file, "cotjax").get("sha256") != sha256:
        write_whole(file, json.dumps({"sha256": sha256}) + "\n")


def arms_begun(folder: Path) -> list[str]:
    """Return the arms of a run that at least one update was made of."""
    arms = folder / "arms"
    return sorted(arm.name for arm in arms.iterdir() if begun(arm)) if arms.is_dir() else []


def _made(folder: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Return what was made in a run's folder, in words, each with the settings that it binds (a name that ends in "." is a section)."""
    made = []
    collected = ("seed", "task_types.", "collect.", *_OF_GAMES, "games.train")
    trained = ("seed", "task_types.", "data.", "model.", "train.", "masking.")
    arms = arms_begun(folder)
    if (folder / "trajectories" / "train.jsonl").exists():
        made.append(("trajectories were collected with it", collected))
    if arms:
        made.append(
            (f"{', '.join(arms)} trained with it", (*trained, *(f"arms.{arm}." for arm in arms)))
        )
    if (folder / "trajectories" / "held_out.jsonl").exists():
        made.append(
            (
                "the expert played games with it",
                ("seed", "task_types.", *_OF_GAMES, *_PLAYED_GAMES, "collect.max_steps"),
            )
        )
    if records := sum(1 for _ in (folder / "records").rglob("*.json")):
        kept = f"{records} episodes were played with it, and are not to be mixed: move {folder / 'records'} away to play all again"
        made.append((kept, (*trained, *_PLAYED_GAMES, "evaluate.")))
    return made


def _comparable(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's settings by their flat names; what an older version or an arm does not name has its default."""
    defaults = json.loads(default_config().to_json_best_effort())
    arms = config.get("arms", {})
    for part in ("arms", "out"):
        defaults.pop(part)
    filled = flatten(defaults) | flatten(
        {name: value for name, value in config.items() if name not in ("arms", "out")}
    )
    train = {
        name.removeprefix("train."): value
        for name, value in filled.items()
        if name.startswith("train.")
    }
    others = {name: value for name, value in filled.items() if not name.startswith("train.")}
    by_arm = {arm: ARM_FIELDS | own for arm, own in arms.items()}
    for own in by_arm.values():
        own.pop("label")
    return others | flatten({"train": binding(train), "arms": by_arm})


def _under(name: str, names: tuple[str, ...]) -> bool:
    return any(name == each or (each.endswith(".") and name.startswith(each)) for each in names)
