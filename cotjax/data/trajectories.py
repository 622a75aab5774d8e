"""Agent trajectories: their schema, and reading and writing them as JSON Lines.

A line of a data file becomes a loss weight on this way through `cotjax.data`:

    line -> JSON object -> Trajectory   trajectories
    Trajectory -> chosen steps          selection
    chosen steps -> examples            tokens (text becomes ids in codec)
    examples -> dataset on disk         tfds_agent
    dataset -> packed rows -> batches   packing, pipeline

The words mean one thing each in this package:

    line         a line of a trajectory file
    trajectory   one episode of an agent in an environment
    step         one observation, thought and action of a trajectory
    turn         a step in ids: the user's message and the agent's response
    segment      consecutive ids of one role
    example      one sequence (or tree) of tokens to train on
    packed row   several examples in a row of fixed length
    row          in `cotjax.data.importing`: one element of a public data set

One line holds one trajectory:

    {"schema_version": 1, "id": "household/train/0/0", "environment": "alfworld",
     "split": "train", "task": "put a plate in fridge",
     "task_type": "pick_and_place_simple", "game": "pick_…/trial_…",
     "steps": [{"observation": "…", "thought": "…", "action": "go to fridge 1",
                "provenance": "scripted, before the action",
                "admissible_commands": ["go to fridge 1", "look", …]}, …],
     "success": true, "reward": 1.0, "seed": 0, "agent": "expert"}

docs/data.md describes every field and rule.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import AfterValidator, Field, Strict, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from cotjax.data.json_lines import MAX_LINE_BYTES, parse_line, raw_lines
from cotjax.data.json_text import json_type, open_json
from cotjax.errors import DataError
from cotjax.formats import TAGS
from cotjax.runtime.files import atomic_file

SCHEMA_VERSION = 1
UNKNOWN = "unknown"  # the environment, task type or game of imported data that names none
SCRIPTED_BEFORE = "scripted, before the action"
MARK = b'"schema_version"'  # occurs near the beginning of every trajectory file


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("contains a NUL character (\\u0000); remove it")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return _no_nul(text)


def _no_tag(text: str) -> str:
    if "<" in text:
        for tag in TAGS:
            if tag in text:
                raise ValueError(f"contains {tag!r}, a tag of the response format; remove it")
    return _no_nul(text)


def _task(text: str) -> str:
    return _no_tag(_not_blank(text))


def _thought(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; use null for a step without reasoning")
    return _no_tag(text)


def _action(text: str) -> str:
    if "\r" in text:
        raise ValueError("contains a carriage return; remove it")
    if text.strip("\n") != text and text.strip():
        raise ValueError("begins or ends with an empty line; remove it")
    return _no_tag(_not_blank(text))


def _finite(value: int | float) -> int | float:
    if not abs(value) <= sys.float_info.max:
        raise ValueError(
            f"is {value!s:.40}; it must be a finite number, or null where it is unknown"
        )
    return value


# Strict: JSON's true is not the number 1, and "1" is not a number either.
_Bool = Annotated[bool, Strict()]
_Text = Annotated[str, Strict(), AfterValidator(_no_nul)]
_Name = Annotated[str, Strict(), AfterValidator(_not_blank)]
_Reward = Annotated[Annotated[int, Strict()] | Annotated[float, Strict()], AfterValidator(_finite)]
# Not blank (as str.strip() has it), and without NUL. A pattern is faster than a function here.
_Command = Annotated[
    str, StringConstraints(strict=True, pattern=r"^[^\x00]*[^\s\x00\x1c-\x1f][^\x00]*$")
]


@dataclass(frozen=True)
class Step:
    """What the agent saw, thought and did.

    observation: what the agent saw before it acted. That of the first step may be "", where the
      task is all that the agent was shown.
    thought: None where the agent acted without reasoning; `provenance` is None too then.
    provenance: where the thought comes from, and whether it was written before the action.
    admissible_commands: empty where the environment does not list them.
    trained: False for a step that is not trained on (a mistake of the expert's, say); later
      prompts show it all the same.
    """

    observation: Annotated[str, Strict(), AfterValidator(_no_tag)]
    thought: Annotated[str, Strict(), AfterValidator(_thought)] | None
    action: Annotated[str, Strict(), AfterValidator(_action)]
    provenance: _Text | None
    admissible_commands: tuple[_Command, ...]
    trained: _Bool = True


@dataclass(frozen=True)
class Trajectory:
    """One episode.

    success, reward: the environment's verdict (ALFWorld's reward is 1.0 for a won episode); None
      where it is unknown.
    """

    id: _Name
    environment: _Name
    split: _Name
    task: Annotated[str, Strict(), AfterValidator(_task)]
    task_type: _Text
    game: _Text
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    success: _Bool | None
    reward: _Reward | None
    seed: Annotated[int, Strict()]
    agent: _Text


KNOWN_FIELDS = frozenset({"schema_version", *(field.name for field in fields(Trajectory))})
KNOWN_STEP_FIELDS = frozenset(field.name for field in fields(Step))

_SCHEMA = TypeAdapter(Trajectory)
_NULLABLE = frozenset(
    name
    for schema in (Step, Trajectory)
    for name, kind in get_type_hints(schema).items()
    if type(None) in get_args(kind)
)
_EXPECTED = {
    "string_type": "a string",
    "string_unicode": "a string without half of a surrogate pair",
    "bool_type": "true or false",
    "int_type": "an integer",
    "float_type": "a number",
    "tuple_type": "an array",
}


@dataclass(frozen=True)
class Line:
    """A valid line: its JSON object, unknown fields included, and its trajectory."""

    size: int  # bytes
    fields: dict[str, Any]
    trajectory: Trajectory


@dataclass(frozen=True)
class BadLine:
    """A line that is not a trajectory, and why."""

    size: int  # bytes
    error: DataError


def read_trajectories(path: str | Path) -> Iterator[Trajectory]:
    """Yield the file's trajectories in order.

    Raises:
      DataError: the file is missing or empty, or a line is not a trajectory; the message begins
        with `file:line:`.
    """
    for line in read_lines(path):
        if isinstance(line, BadLine):
            raise line.error
        yield line.trajectory


def read_lines(path: str | Path) -> Iterator[Line | BadLine]:
    """Yield every line of the file, valid or not, except blank lines at its end.

    Holds one line at a time, and a digest of every id.

    Raises:
      DataError: the file is missing, empty, not a regular file, or not JSON Lines.
    """
    path, number = Path(path), 0
    first_lines: dict[bytes, int] = {}  # digest of an id -> the line that it first occurred in
    blank: list[tuple[int, int]] = []  # (line number, size) of blank lines not yet reported
    with open_json(path, "no such trajectory file; `cotjax collect` makes one") as file:
        for number, (raw, size) in enumerate(raw_lines(file), start=1):
            if len(raw) == size and not raw.strip():
                blank.append((number, size))
                continue
            for blank_number, blank_size in blank:
                problem = f"{path}:{blank_number}: invalid JSON (the line is blank); delete it"
                yield BadLine(blank_size, DataError(problem))
            blank.clear()
            where = f"{path}:{number}"
            try:
                row = parse_line(raw, size, where, first=number == 1)
                if number == 1:
                    _check_layout(row, where)
                trajectory = as_trajectory(row, where)
                first_line = first_lines.setdefault(id_digest(trajectory.id), number)
                if first_line != number:
                    raise DataError(
                        f"{where}: the id {trajectory.id!r:.80} occurs in line {first_line} "
                        "already; ids must be unique"
                    )
            except DataError as error:
                yield BadLine(size, error)
            else:
                yield Line(size, row, trajectory)
    if number == len(blank):
        raise DataError(f"{path}: the trajectory file is empty; `cotjax collect` makes one")


def id_digest(id: str) -> bytes:
    """Return 8 bytes that stand for an id of any length.

    Two of a million ids share a digest once in 37 million files.
    """
    return hashlib.blake2b(id.encode(), digest_size=8).digest()


def write_trajectories(
    path: str | Path, trajectories: Iterable[Trajectory], inputs: Iterable[str | Path] = ()
) -> int:
    """Write `trajectories` atomically and return how many there were.

    They are written as they are: `refusal` says whether they can be read again.

    Args:
      inputs: files that `trajectories` are read from; `path` must be none of them.

    Raises:
      UsageError: `path` is one of `inputs`, a file that does not hold trajectories, a folder, a
        symbolic link or a device.
      DataError: the file cannot be written.
    """
    count = 0
    with atomic_file(path, mark=MARK, inputs=inputs) as out:
        for trajectory in trajectories:
            row = {"schema_version": SCHEMA_VERSION} | asdict(trajectory)
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def as_trajectory(row: dict[str, Any], where: str) -> Trajectory:
    """Return the trajectory that a JSON object describes; unknown fields are ignored.

    Raises:
      DataError: it breaks a rule of the schema; the message begins with `where`.
    """
    version = row.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:  # true and 1.0 equal 1
        raise DataError(
            f"{where}: schema_version is {version!r}; this version of cotjax reads {SCHEMA_VERSION}"
        )
    try:
        trajectory = _SCHEMA.validate_python(row)
    except ValidationError as error:
        raise DataError(f"{where}: {_explain(error.errors()[0])}") from None
    for number, step in enumerate(trajectory.steps):
        # The first observation is "" where the task is all there is, as for a question.
        if not step.observation.strip() and (number or step.observation):
            raise DataError(f"{where}: step {number}: the observation is empty")
        if step.thought is None and step.provenance is not None:
            raise DataError(
                f"{where}: step {number}: the provenance is {step.provenance!r:.60} but the "
                "thought is null; the provenance must be null too"
            )
    return trajectory


def refusal(trajectory: Trajectory, name: str) -> str | None:
    """Return why `read_trajectories` would refuse a trajectory; None where it would not.

    `name`: of the trajectory, for the message. What an environment says may be anything, a tag of
    the response format or an empty answer among it.
    """
    row = {"schema_version": SCHEMA_VERSION} | asdict(trajectory)
    try:
        as_trajectory(row, name)
        size = len(json.dumps(row, ensure_ascii=False).encode())
    except DataError as error:
        return str(error)
    except UnicodeEncodeError:
        return f"{name}: it contains half of a surrogate pair, which no file can hold"
    if size >= MAX_LINE_BYTES:
        return f"{name}: its line has {size:,} bytes, and at most {MAX_LINE_BYTES:,} are read"
    return None


def _explain(error: ErrorDetails) -> str:
    """Return a sentence for one of pydantic's validation errors."""
    location, kind, value = error["loc"], error["type"], error["input"]
    at = ""
    if location[0] == "steps" and len(location) > 1:
        if len(location) == 2:
            return f"step {location[1]} is {json_type(value)}; it must be an object"
        at, location = f"step {location[1]}: ", location[2:]
    name = str(location[0])
    if kind == "missing":
        return f"{at}the field {name!r} is missing; see docs/data.md for the schema"
    if kind == "too_short":
        return "the trajectory has no steps; delete this line"
    if kind == "value_error":
        return f"{at}the {name} {error['ctx']['error']}"
    if name == "admissible_commands" and len(location) > 1:
        command = f"admissible_commands[{location[1]}]"
        return f"{at}{command} is {value!r:.40}; it must be a string that is not blank"
    if location[-1] == "int":
        kind = "float_type"  # the reward: an integer or another number
    expected = _EXPECTED.get(kind, "valid") + (" or null" if name in _NULLABLE else "")
    return f"{at}the field {name!r} is {json_type(value)}; it must be {expected}"


def _check_layout(row: dict[str, Any], where: str) -> None:
    """Raise DataError for the first line of a file in another layout."""
    lists = [name for name, value in row.items() if isinstance(value, list)]
    if "schema_version" not in row and lists and "steps" not in row:
        raise DataError(
            f"{where}: schema_version is missing and {lists[0]!r:.60} is an array, so this is not "
            "a trajectory; convert public data with `cotjax data import`, and write rows that are "
            "inside an array one a line"
        )
