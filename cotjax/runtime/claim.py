"""What binds a folder to a run: the settings and the content of what was already made in it.

    <run>/config.json                the run's config
    <run>/arms/<arm>/settings.json   the arm's train, masking, model, seed, made_from, saves
                                     (<arm>/seed-<seed>/ where the config names seeds)

A setting is bound by the first result that depends on it: games and collection by the collected
trajectories, training by the first update, playing by the first episode. Until then it may change,
so a start that failed binds nothing. A run with other settings or content is refused the folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from cotjax.errors import UsageError
from cotjax.runtime.binding import binding, difference, said
from cotjax.runtime.content import changed
from cotjax.runtime.files import read_json, write_atomic
from cotjax.runtime.members import member_folders, members_of
from cotjax.runtime.older import AXES, LATER, renamed
from cotjax.runtime.settings import first_difference, flatten

_RUN_FILE, _ARM_FILE = "config.json", "settings.json"

# Settings of a config that change results by rounding at most. A name ending in "." is a section.
_OF_MACHINE = (
    *("title", "workers", "cpu_devices", "mesh."),
    *("evaluate.slots", "evaluate.halves", "evaluate.tensor", "evaluate.env_retries"),
    *("evaluate.start_timeout", "evaluate.reset_timeout", "evaluate.step_timeout"),
)
_FREE_OF_RUN = (
    *_OF_MACHINE,
    # A kind of action, a checkpoint or a sample that is added later is played later.
    *("evaluate.elicitations", "evaluate.offline", "evaluate.episodes_at", "evaluate.samples"),
)
# Settings that concern some kinds of action alone, which bind where one of these was asked for.
_OF_KINDS = {
    "evaluate.constrained_by": {"cot_constrained", "prompt_constrained"},
    "evaluate.instruction": {"instructed"},
}
# What decides which games there are, and which of them are played.
_GAMES = ("world", "games.source", "games.root", "games.seed")
_BASE = ("model.", "train.", "masking.")
_PLAYED = ("games.eval_split", "games.in_domain", "games.ood", "games.ood_domains")
# The sections by which a run's config is recognized: a model's folder has a config.json too.
_SECTIONS = {"games", "data", "model", "train", "masking", "arms", "evaluate"}


# ---- an arm's folder


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of the finished checkpoints in a folder of checkpoints, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def begun(folder: Path) -> bool:
    """Return whether an update was made in an arm's folder."""
    file = folder / "metrics.jsonl"
    if file.exists():
        with file.open(encoding="utf-8") as rows:
            # The first row may be the held-out loss, or the episodes, of step 0, before any update.
            apart = ('"held_out"', '"evaluated"')
            if any(not any(name in row for name in apart) for row in islice(rows, 2)):
                return True
    return any(saved_steps(folder / "checkpoints"))


def check_arm(
    folder: Path, run: Mapping[str, Any], theirs: Mapping[str, Any] | None = None
) -> list[str]:
    """Check that `run` may resume in an arm's folder; return warnings. Nothing is written.

    Args:
      run: train, masking, model, seed, objective where it is not the supervised one, rl where it is
        trained by reinforcement learning, and made_from where it is known (`runtime.content`).
      theirs: the same of the run in the folder (None: as its settings.json says).

    Raises:
      UsageError: the folder holds a run of other settings or content, or of more updates.
      DataError: its settings cannot be read.
    """
    file = folder / _ARM_FILE
    if not begun(folder) or (theirs is None and not file.exists()):
        return []
    theirs = read_json(file, "cotjax") if theirs is None else theirs
    mine = _as_json(run)
    if differs := difference(theirs, mine):
        raise UsageError(
            f"{folder} holds another run ({differs}); choose another folder with --out"
        )
    reached = max(saved_steps(folder / "checkpoints"), default=0)
    if mine["train"]["steps"] < reached:
        raise UsageError(
            f"{folder} is trained to step {reached}, and train.steps is {mine['train']['steps']}; "
            "raise it, or choose another --out"
        )
    return _check_content(folder, theirs, mine.get("made_from"))


def check_arm_content(folder: Path, made_from: Mapping[str, Any], steps: int, known: bool) -> None:
    """Check the content alone, as `check_arm` does, before a dataset is built from it.

    Args:
      steps: updates of the run.
      known: whether these examples were built before. A run of a version that kept no fingerprints
        resumes with no others.
    """
    file = folder / _ARM_FILE
    if not begun(folder) or not file.exists():
        return
    theirs = read_json(file, "cotjax")
    _check_content(folder, theirs, made_from)
    unfinished = max(saved_steps(folder / "checkpoints"), default=0) < steps
    if not theirs.get("made_from") and not known and unfinished:
        raise UsageError(
            f"{folder}: begun by a version that kept no fingerprints, with other examples than "
            f"{made_from['data']['file']} gives now: the data changed, or how they are encoded; "
            "resume with that version, or choose another folder with --out"
        )


def _check_content(
    folder: Path, theirs: Mapping[str, Any], made_from: Mapping[str, Any] | None
) -> list[str]:
    if made_from is None:
        return []
    if not theirs.get("made_from"):
        return [
            f"{folder}: no fingerprint of its data, tokenizer and base was kept; "
            "they are assumed to be unchanged"
        ]
    if difference := changed(theirs["made_from"], made_from):
        raise UsageError(
            f"{folder} holds another run ({difference}); restore what it was begun with, or "
            "choose another folder with --out"
        )
    return []


def claim_arm(folder: Path, run: Mapping[str, Any]) -> list[int]:
    """Take a folder for a run that `check_arm` accepted; return the steps at which the run saves.

    Only one process may call it.
    """
    file = folder / _ARM_FILE
    folder.mkdir(parents=True, exist_ok=True)
    mine = _as_json(run)
    saves = checkpoint_steps(mine["train"]["steps"], mine["train"]["save_every"])
    if begun(folder):
        if file.exists():
            saves = _continued(folder, read_json(file, "cotjax"), mine["train"], saves)
    elif not file.exists() or _bound(read_json(file, "cotjax")) != _bound(mine):
        # The start state of a start that failed.
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    text = json.dumps({**mine, "saves": saves}, indent=2) + "\n"
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        write_atomic(file, text)
    return saves


def content_of_arm(folder: Path) -> dict[str, Any] | None:
    """Return what the run in an arm's folder is made from; None where that was not kept."""
    file = folder / _ARM_FILE
    return read_json(file, "cotjax").get("made_from") if file.exists() else None


def checkpoint_steps(steps: int, save_every: int) -> list[int]:
    """Return the steps at which a run saves: 0 (its start), every `save_every`, and the last."""
    return sorted({*range(0, steps + 1, save_every), steps})


def planned_steps(folder: Path) -> list[int]:
    """Return the steps at which an arm's run saves, or saved before its settings changed."""
    file = folder / _ARM_FILE
    if not file.exists():
        return []
    theirs = read_json(file, "cotjax")
    return theirs.get("saves") or checkpoint_steps(
        theirs["train"]["steps"], theirs["train"]["save_every"]
    )


def _continued(
    folder: Path, theirs: dict[str, Any], train: Mapping[str, Any], saves: list[int]
) -> list[int]:
    """Return the steps at which a resumed run saves: its saved ones, then those of its settings."""
    before = planned_steps(folder)
    if all(theirs["train"].get(name) == train[name] for name in ("steps", "save_every")):
        return before
    saved = saved_steps(folder / "checkpoints")
    later = (step for step in saves if step > max(saved, default=-1))
    return sorted({*(step for step in before if step in saved), *later})


def _bound(run: Mapping[str, Any]) -> dict[str, Any]:
    return {**run, "train": binding(run.get("train", {})), "saves": None}


def _as_json(run: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(run))


# ---- a run's folder


def check_run(
    folder: Path,
    mine: Mapping[str, Any],
    defaults: Mapping[str, Any],
    arm_defaults: Mapping[str, Any],
) -> None:
    """Check that the run of a config may use `folder`. Nothing is written.

    Args:
      mine: the config.
      defaults, arm_defaults: values of the fields that a config, or an arm, does not name: those of
        an older version, for one.

    Raises:
      UsageError: it holds something else, or results of other settings.
      DataError: its config cannot be read.
    """
    file = folder / _RUN_FILE
    try:
        # A hidden file may be one that was being written when a start was killed.
        if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
            return
        theirs = read_json(file, "cotjax") if file.exists() else {}
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot be read ({error.strerror}); choose another folder with --out"
        ) from None
    if _SECTIONS - theirs.keys():
        raise UsageError(
            f"{folder} is not empty and holds no cotjax run; choose another folder with --out"
        )
    results = _results(folder)
    if results and bool(theirs["arms"]) != bool(mine["arms"]):
        holds = "a run that trains arms" if theirs["arms"] else "the evaluation of a model alone"
        raise UsageError(f"{folder} holds {holds}; choose another folder with --out")
    _check_members(folder, mine)
    before, now = (_comparable(config, defaults, arm_defaults) for config in (theirs, mine))
    asked = {*before["evaluate.elicitations"], *before["evaluate.offline"]}
    unasked = tuple(name for name, kinds in _OF_KINDS.items() if not kinds & asked)
    for result, bound in results:
        names = {*before, *now}
        free = [
            name for name in names if _in(name, (*_FREE_OF_RUN, *unasked)) or not _in(name, bound)
        ]
        if differs := first_difference(before, now, free):
            raise UsageError(
                f"{folder} holds another run ({said(*differs, mine['train']['schedule'])}); "
                f"{result}; choose another folder with --out, or remove it"
            )


def _check_members(folder: Path, mine: Mapping[str, Any]) -> None:
    """Raise UsageError where a folder holds arms, or seeds, that a config does not have."""
    names = [name for arm in mine["arms"] for name in members_of(arm, mine.get("seeds", ()))]
    if lost := [name for name in arms_begun(folder) if name not in names]:
        raise UsageError(
            f"{folder} holds another run: {', '.join(lost)} trained there, and this config has "
            f"{', '.join(names) or 'no arms'}; name these arms and seeds too, or choose another "
            "folder with --out"
        )


def protocol_hash(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a config's settings, but for those of the machine and the folder.

    It is the same before a run, by `cotjax study --power`, and in its report: a study whose hash
    was published beforehand was not changed after its results were seen.
    """
    settings = {
        name: value
        for name, value in flatten(_as_json(config)).items()
        if name != "out"
        and not _in(name, _OF_MACHINE)
        # A field that came later, and is not used.
        and (name not in LATER or value != LATER[name])
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def claim_run(folder: Path, mine: Mapping[str, Any]) -> None:
    """Write the config of a run that `check_run` accepted into its folder. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / _RUN_FILE, json.dumps(mine, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise UsageError(
            f"{folder}: nothing can be written there ({error.strerror}); "
            "choose another folder with --out"
        ) from None


def bind_held_out(folder: Path, sha256: str) -> None:
    """Keep the fingerprint of the expert's trajectories that evaluations compare with.

    Raises UsageError when episodes were played with other ones.
    """
    file = folder / "held_out.json"
    if file.exists() and read_json(file, "cotjax").get("sha256") == sha256:
        return
    if file.exists() and any((folder / "records").rglob("*.json")):
        raise UsageError(
            f"{folder / 'trajectories' / 'held_out.jsonl'} changed since episodes were played; "
            f"restore it, or move {folder / 'records'} away to play all again"
        )
    write_atomic(file, json.dumps({"sha256": sha256}) + "\n")


def arms_begun(folder: Path) -> list[str]:
    """Return the names of the arms' members in which at least one update was made."""
    return [name for name, arm in member_folders(folder / "arms").items() if begun(arm)]


def plays(folder: Path) -> bool:
    """Return whether the arm in a folder is trained on what it plays."""
    return (folder / "rollouts").exists()


def reinforced(folder: Path) -> bool:
    """Return whether an arm of a run is trained on what it plays."""
    return any(map(plays, member_folders(folder / "arms").values()))


def _results(folder: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Return the results in a run's folder, in words, each with the settings that it binds."""
    results: list[tuple[str, tuple[str, ...]]] = []
    of_data = ("seed", "world", "task_types.", "data.", "prompt.", "preference.")
    trained: tuple[str, ...] = (*of_data, *_BASE)
    if any((folder / "trajectories").glob("train*.jsonl")):
        collected = ("seed", "task_types.", "collect.", *_GAMES, AXES, "games.train")
        results.append(("trajectories were collected with it", collected))
    if arms := arms_begun(folder):
        of_arms = tuple(f"arms.{arm}." for arm in arms)
        if reinforced(folder):
            trained = (*trained, "rl.", *_GAMES, AXES, "games.train")
        results.append((f"{', '.join(arms)} trained with it", (*trained, *of_arms)))
    if (folder / "trajectories" / "held_out.jsonl").exists():
        played = ("seed", "task_types.", *_GAMES, *_PLAYED, "collect.max_steps")
        results.append(("the expert played games with it", played))
    if records := sum(1 for _ in (folder / "records").rglob("*.json")):
        result = (
            f"{records} episodes were played with it, and must not be mixed with others: "
            f"move {folder / 'records'} away to play all again"
        )
        results.append((result, (*trained, *_PLAYED, "evaluate.")))
    return results


def _comparable(
    config: Mapping[str, Any], defaults: Mapping[str, Any], arm_defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of a config by their flat names, defaults filled in."""
    # The arms are added below; `out` may change, for a folder may be moved.
    apart = ("arms", "out")
    filled: dict[str, Any] = {}
    for tree in (defaults, config):
        filled |= flatten({name: value for name, value in tree.items() if name not in apart})
    filled = renamed(filled, config)
    train = {
        name.removeprefix("train."): value
        for name, value in filled.items()
        if name.startswith("train.")
    }
    others = {name: value for name, value in filled.items() if not name.startswith("train.")}
    by_arm = {
        member: {**arm_defaults, **own, **({} if seed is None else {"seed": seed})}
        for arm, own in config.get("arms", {}).items()
        for member, seed in members_of(arm, config.get("seeds", ())).items()
    }
    for own in by_arm.values():
        own.pop("label")
    return others | flatten({"train": binding(train), "arms": by_arm})


def _in(name: str, names: tuple[str, ...]) -> bool:
    return any(name == each or (each.endswith(".") and name.startswith(each)) for each in names)
