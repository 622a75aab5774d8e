"""Agent trajectories: the schema, and JSON Lines in and out.

One line is one episode:

    {"schema_version": 1, "id": "household/train/0/0", "environment": "alfworld", "split": "train",
     "task": "put a plate in fridge", "task_type": "pick_and_place_simple", "game": "pick_…/trial_…",
     "steps": [{"observation": "…", "thought": "…", "action": "go to fridge 1", "provenance": "scripted, before the action",
                "admissible_commands": ["go to fridge 1", "look", …]}, …],
     "success": true, "reward": 1.0, "seed": 0, "agent": "expert"}

`thought` may be null (a step played without reasoning; then `provenance` is null too). A step's thought was there before its
action, or its provenance says otherwise. A step may have `"trained": false`: it happened, so it is in the history of later steps,
but it is nobody's to learn from (a slip of the expert's).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cotjax.errors import DataError

SCHEMA_VERSION = 1
SCRIPTED_BEFORE = "scripted, before the action"


@dataclass(frozen=True)
class Step:
    """One turn: what the agent saw, what it thought, what it did."""

    observation: str
    thought: str | None
    action: str
    provenance: str | None
    admissible_commands: tuple[str, ...] = ()
    trained: bool = True


@dataclass(frozen=True)
class Trajectory:
    """One episode. `reward` is the environment's own (ALFWorld: 1.0 when won)."""

    id: str
    environment: str
    split: str
    task: str
    task_type: str
    game: str
    steps: tuple[Step, ...]
    success: bool
    reward: float
    seed: int
    agent: str


_STEP_FIELDS = {
    "observation": str,
    "thought": (str, type(None)),
    "action": str,
    "provenance": (str, type(None)),
    "admissible_commands": list,
}
_FIELDS = {
    "id": str, "environment": str, "split": str, "task": str, "task_type": str, "game": str, "steps": list,
    "success": bool, "reward": (int, float), "seed": int, "agent": str,
}  # fmt: skip


def read_trajectories(path: str | Path) -> Iterator[Trajectory]:
    """Yield the file's trajectories in order.

    Raises:
      DataError: the file is missing, empty, or a line is not a trajectory; the message is `file:line: what`.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such trajectory file; `cotjax collect` makes one")
    line_number, seen = 0, {}
    with path.open("rb") as lines:
        for line_number, raw in enumerate(lines, start=1):
            where = f"{path}:{line_number}"
            trajectory = _parse_line(raw, where)
            if trajectory.id in seen:
                raise DataError(f"{where}: id {trajectory.id!r} stands at line {seen[trajectory.id]} already; ids must be unique")
            seen[trajectory.id] = line_number
            yield trajectory
    if line_number == 0:
        raise DataError(f"{path}: the trajectory file is empty; `cotjax collect` makes one")


def write_trajectories(path: str | Path, trajectories: Iterable[Trajectory]) -> int:
    """Write `trajectories` whole or not at all (a temporary file, then a rename); return how many."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    count = 0
    with partial.open("w", encoding="utf-8") as out:
        for trajectory in trajectories:
            out.write(json.dumps({"schema_version": SCHEMA_VERSION} | asdict(trajectory), ensure_ascii=False) + "\n")
            count += 1
    os.replace(partial, path)
    return count


def _parse_line(raw: bytes, where: str) -> Trajectory:
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: no JSON ({error.msg} at column {error.colno}); mend or remove this line") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a trajectory is a JSON object, this is a {type(row).__name__}")
    version = row.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(f"{where}: schema_version is {version!r}, this cotjax reads {SCHEMA_VERSION}")
    _check_fields(row, _FIELDS, where)
    if not row["steps"]:
        raise DataError(f"{where}: the trajectory has no steps; remove this line")
    steps = []
    for number, step in enumerate(row["steps"]):
        at = f"{where}: step {number}"
        if not isinstance(step, dict):
            raise DataError(f"{at} is a {type(step).__name__}, not an object")
        _check_fields(step, _STEP_FIELDS, at)
        if not step["action"].strip():
            raise DataError(f"{at}: the action is empty")
        if step["thought"] is not None and not step["thought"].strip():
            raise DataError(f"{at}: the thought is empty; use null for a step without reasoning")
        trained = step.get("trained", True)
        if not isinstance(trained, bool):
            raise DataError(f"{at}: the field 'trained' is a {type(trained).__name__}, it must be bool")
        fields = {key: step[key] for key in _STEP_FIELDS}
        steps.append(Step(**fields | {"admissible_commands": tuple(step["admissible_commands"]), "trained": trained}))
    return Trajectory(**{key: row[key] for key in _FIELDS} | {"steps": tuple(steps)})


def _check_fields(row: dict, fields: dict, where: str) -> None:
    for name, kinds in fields.items():
        if name not in row:
            raise DataError(f"{where}: the field {name!r} is missing; see cotjax/data/trajectories.py for the schema")
        value = row[name]
        # bool is an int to Python; a seed or reward of `true` is still a mistake.
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            wanted = kinds.__name__ if isinstance(kinds, type) else " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
            raise DataError(f"{where}: the field {name!r} is a {type(value).__name__}, it must be {wanted}")
