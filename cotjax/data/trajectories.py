"""Agent trajectories: the schema, and JSON Lines in and out.

One line is one episode:

    {"schema_version": 1, "id": "household/train/0/0", "environment": "alfworld", "split": "train",
     "task": "put a plate in fridge", "task_type": "pick_and_place_simple", "game": "pick_…/trial_…",
     "steps": [{"observation": "…", "thought": "…", "action": "go to fridge 1", "provenance": "scripted, before the action",
                "admissible_commands": ["go to fridge 1", "look", …]}, …],
     "success": true, "reward": 1.0, "seed": 0, "agent": "expert"}

`thought` may be null (a step played without reasoning; then `provenance` is null too). The first observation may be "", where
the task is all that the agent was shown. A step's thought was there before its
action, or its provenance says otherwise. A step may have `"trained": false`: it happened, so it is in the history of later steps,
but it is nobody's to learn from (a slip of the expert's). `success` and `reward` may be null: nobody knows. docs/data.md has every
field and every rule.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cotjax.data.digests import Digests
from cotjax.data.json_text import decode, open_json
from cotjax.errors import DataError
from cotjax.formats import TAGS
from cotjax.runtime.files import whole

SCHEMA_VERSION = 1
SCRIPTED_BEFORE = "scripted, before the action"
MAX_LINE_BYTES = 16 * 2**20  # a longer line is an error; it is passed over without being held
MARK = b'"schema_version"'  # what the beginning of a trajectory file holds


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
    """One episode. `reward` is the environment's own (ALFWorld: 1.0 when won); None, as with `success`: not known."""

    id: str
    environment: str
    split: str
    task: str
    task_type: str
    game: str
    steps: tuple[Step, ...]
    success: bool | None
    reward: float | None
    seed: int
    agent: str


_TEXT_OR_NULL = (str, type(None))
_STEP_FIELDS = {
    "observation": str, "thought": _TEXT_OR_NULL, "action": str, "provenance": _TEXT_OR_NULL, "admissible_commands": list,
}  # fmt: skip
_FIELDS = {
    "id": str, "environment": str, "split": str, "task": str, "task_type": str, "game": str, "steps": list,
    "success": (bool, type(None)), "reward": (int, float, type(None)), "seed": int, "agent": str,
}  # fmt: skip
KNOWN_FIELDS = frozenset({"schema_version", *_FIELDS})
KNOWN_STEP_FIELDS = frozenset({"trained", *_STEP_FIELDS})


def read_trajectories(path: str | Path) -> Iterator[Trajectory]:
    """Yield the file's trajectories in order.

    Raises:
      DataError: the file is missing, empty, or a line is not a trajectory; the message is `file:line: what`.
    """
    for line in read_lines(path):
        if line.error is not None:
            raise line.error
        yield line.trajectory


@dataclass(frozen=True)
class Line:
    """A line of a trajectory file: a trajectory with the JSON object it was read from, or what is wrong with the line."""

    size: int  # bytes
    row: dict | None = None
    trajectory: Trajectory | None = None
    error: DataError | None = None


def read_lines(path: str | Path) -> Iterator[Line]:
    """Yield every line of the file, good or bad, without blank lines at the end. Memory grows with the ids alone, 12 bytes each.

    Raises:
      DataError: the file is missing, empty, no file, or none that holds JSON Lines.
    """
    path = Path(path)
    number, ids, blank = 0, Digests(), []
    with open_json(path, "no such trajectory file; `cotjax collect` makes one") as file:
        for number, (raw, size) in enumerate(_raw_lines(file), start=1):
            if len(raw) == size and not raw.strip():
                blank.append((number, size))
                continue
            for before, length in blank:
                yield Line(
                    length,
                    error=DataError(
                        f"{path}:{before}: no JSON (the line is blank); remove this line"
                    ),
                )
            blank.clear()
            where = f"{path}:{number}"
            try:
                row = _parse_line(raw, size, where, first=number == 1)
                trajectory = as_trajectory(row, where)
                before = ids.add(trajectory.id, number)
                if before is not None:
                    raise DataError(
                        f"{where}: id {trajectory.id!r:.80} stands at line {before} already; ids must be unique"
                    )
            except DataError as error:
                yield Line(size, error=error)
            else:
                yield Line(size, row, trajectory)
    if number == len(blank):
        raise DataError(f"{path}: the trajectory file is empty; `cotjax collect` makes one")


def _raw_lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """(line, its length in bytes); of a line that is too long, the length alone."""
    while raw := file.readline(MAX_LINE_BYTES + 1):
        size, whole = len(raw), len(raw) <= MAX_LINE_BYTES or raw.endswith(b"\n")
        if not whole:
            raw = b""
        while not whole and (part := file.readline(MAX_LINE_BYTES)):
            size, whole = size + len(part), part.endswith(b"\n")
            del part
        yield raw, size


def write_trajectories(
    path: str | Path, trajectories: Iterable[Trajectory], inputs: Iterable[str | Path] = ()
) -> int:
    """Write `trajectories` whole or not at all; return how many.

    Args:
      inputs: files that `trajectories` are read from; `path` must be none of them.

    Raises:
      UsageError: `path` is one of `inputs`, a file that holds no trajectories, a folder, a symbolic link or a device.
      DataError: nothing can be written there.
    """
    count = 0
    with whole(path, mark=MARK, inputs=inputs) as out:
        for trajectory in trajectories:
            out.write(
                json.dumps(
                    {"schema_version": SCHEMA_VERSION} | asdict(trajectory), ensure_ascii=False
                )
                + "\n"
            )
            count += 1
    return count


def as_trajectory(row: dict, where: str) -> Trajectory:
    """One JSON object -> the trajectory. Unknown fields are passed over.

    Raises:
      DataError: it breaks a rule of the schema; the message begins with `where`.
    """
    version = row.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:  # true and 1.0 are equal to 1
        raise DataError(
            f"{where}: schema_version is {version!r}, this cotjax reads {SCHEMA_VERSION}"
        )
    _check_fields(row, _FIELDS, where)
    for name in ("id", "environment", "split", "task"):
        if not row[name].strip():
            raise DataError(f"{where}: the field {name!r} is empty")
    _refuse_tags(row["task"], "task", where)
    if row["reward"] is not None and not abs(row["reward"]) <= sys.float_info.max:
        raise DataError(
            f"{where}: the reward is {row['reward']}, it must be a finite number, or null where it is not known"
        )
    if not row["steps"]:
        raise DataError(f"{where}: the trajectory has no steps; remove this line")
    steps = tuple(
        _as_step(step, f"{where}: step {number}", first=not number)
        for number, step in enumerate(row["steps"])
    )
    return Trajectory(**{key: row[key] for key in _FIELDS} | {"steps": steps})


def _as_step(step: Any, at: str, first: bool) -> Step:
    if not isinstance(step, dict):
        raise DataError(f"{at} is a {type(step).__name__}, not an object")
    _check_fields(step, _STEP_FIELDS, at)
    for name in ("observation", "action"):
        # Where the task is all there is, as with a question to be answered, the first observation is "".
        if not step[name].strip() and not (first and name == "observation" and step[name] == ""):
            raise DataError(f"{at}: the {name} is empty")
        _refuse_tags(step[name], name, at)
    if "\r" in step["action"] or step["action"].strip("\n") != step["action"]:
        found = (
            "holds a carriage return"
            if "\r" in step["action"]
            else "begins or ends with an empty line"
        )
        raise DataError(f"{at}: the action {found}, which no environment was sent; remove it")
    thought, trained = step["thought"], step.get("trained", True)
    if thought is not None:
        if not thought.strip():
            raise DataError(f"{at}: the thought is empty; use null for a step without reasoning")
        _refuse_tags(thought, "thought", at)
    elif step["provenance"] is not None:
        raise DataError(
            f"{at}: the provenance is {step['provenance']!r:.60} but there is no thought; it must be null, as the thought is"
        )
    if not isinstance(trained, bool):
        raise DataError(f"{at}: the field 'trained' is a {type(trained).__name__}, it must be bool")
    commands = step["admissible_commands"]
    for place, command in enumerate(commands):
        if not isinstance(command, str) or not command.strip() or "\0" in command:
            raise DataError(
                f"{at}: admissible_commands[{place}] is {command!r:.40}; each must be a text that is not empty"
            )
    return Step(
        step["observation"], thought, step["action"], step["provenance"], tuple(commands), trained
    )


def _parse_line(raw: bytes, size: int, where: str, first: bool) -> dict:
    if len(raw) != size:
        raise DataError(
            f"{where}: the line has {size:,} bytes, at most {MAX_LINE_BYTES:,} are read; split or remove this episode"
        )
    try:
        text = raw.decode("utf-8-sig" if first else "utf-8")
        row = decode(text)
        if "\\u" in text:
            json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from None
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: half of a surrogate pair (\\ud800 to \\udfff) is no text; mend or remove this line"
        ) from None
    except json.JSONDecodeError as error:
        if first and error.pos >= len(text.rstrip()):  # the line is fine as far as it goes
            raise DataError(
                f"{where}: one JSON value over several lines, or a line cut short; a trajectory file has one object a line "
                "(`jq -c .`, or `jq -c .[]` of an array, writes it so)"
            ) from None
        raise DataError(
            f"{where}: no JSON ({error.msg} at column {error.colno}); mend or remove this line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: no JSON ({error}); mend or remove this line") from None
    if not isinstance(row, dict):
        more = "; write one object a line (`jq -c .[]`)" if isinstance(row, list) else ""
        raise DataError(
            f"{where}: a trajectory is a JSON object, this is a {type(row).__name__}{more}"
        )
    lists = [name for name, value in row.items() if isinstance(value, list)]
    if first and "schema_version" not in row and lists and "steps" not in row:
        raise DataError(
            f"{where}: schema_version is missing, and {lists[0]!r:.60} is a list: no trajectory. `cotjax data import` reads public "
            "layouts; rows inside a list go on lines of their own"
        )
    return row


def _refuse_tags(text: str, what: str, where: str) -> None:
    if "<" in text:
        for tag in TAGS:
            if tag in text:
                raise DataError(
                    f"{where}: the {what} holds {tag!r}, which would be read as a tag of the response; remove it"
                )


def _check_fields(row: dict, fields: dict, where: str) -> None:
    for name, kinds in fields.items():
        if name not in row:
            raise DataError(
                f"{where}: the field {name!r} is missing; see docs/data.md for the schema"
            )
        value = row[name]
        # bool is an int to Python; a seed or reward of `true` is still a mistake.
        if not isinstance(value, kinds) or (isinstance(value, bool) and not _takes_bool(kinds)):
            wanted = (
                kinds.__name__
                if isinstance(kinds, type)
                else " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
            )
            raise DataError(
                f"{where}: the field {name!r} is a {type(value).__name__}, it must be {wanted}"
            )
        if isinstance(value, str) and "\0" in value:
            raise DataError(
                f"{where}: the field {name!r} holds a NUL character (\\u0000), which is no text; remove it"
            )


def _takes_bool(kinds: type | tuple[type, ...]) -> bool:
    return bool in (kinds if isinstance(kinds, tuple) else (kinds,))
