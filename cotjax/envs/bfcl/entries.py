"""The entries of BFCL v3 multi-turn, as the package bfcl-eval brings them.

The package calls its files v4 since it has other categories too; those of multi-turn are v3's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cotjax.errors import DataError, UsageError

TASK_TYPES = ("base", "long_context", "miss_func", "miss_param")
SPLITS = ("train", "test")
INSTALL = "BFCL is not installed: pip install --no-deps bfcl-eval mpmath"
# Numbers of entries with one scenario, or one first request, or one answer.
_ALIKE = ((40, 43), (63, 83), (66, 70, 74), (100, 104, 133), (120, 124))
_ONE_OF = {number: alike[0] for alike in _ALIKE for number in alike}
_TYPES = {"string": "str", "integer": "int", "boolean": "bool"}
# The file that describes a class of functions, and what a task calls it.
CLASSES = {
    "GorillaFileSystem": ("gorilla_file_system", "a file system"),
    "MathAPI": ("math_api", "arithmetic"),
    "MessageAPI": ("message_api", "messages"),
    "TwitterAPI": ("posting_api", "posts"),
    "TicketAPI": ("ticket_api", "support tickets"),
    "TradingBot": ("trading_bot", "stock trading"),
    "TravelAPI": ("travel_booking", "travel"),
    "VehicleControlAPI": ("vehicle_control", "a vehicle"),
}


@dataclass(frozen=True)
class Entry:
    """One entry.

    Attributes:
      id: the package's, such as "multi_turn_base_17".
      raw: the entry as its file has it.
      requests: what the user says, turn by turn; "" where functions arrive instead.
      answers: the calls that fulfil each request, as the package writes them.
      functions: name -> description, of all functions that there are.
      missing: name -> turn at which a function is shown that is not shown before.
    """

    id: str
    raw: dict[str, Any]
    requests: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    functions: dict[str, str]
    missing: dict[str, int]

    @property
    def task(self) -> str:
        """What the prompt calls the task: the same for all entries with these functions."""
        about = [CLASSES[name][1] for name in self.raw["involved_classes"]]
        return f"do what the user asks, with functions for {' and '.join(about)}"

    def shown_at(self, turn: int) -> list[str]:
        """Return the names of the functions that a turn shows for the first time."""
        return [name for name in self.functions if self.missing.get(name, 0) == turn]


def data_folder() -> Path:
    """Return the data of the installed package, without importing it. Raises UsageError."""
    package = find_spec("bfcl_eval")
    if package is None or package.origin is None:
        raise UsageError(INSTALL)
    return Path(package.origin).parent / "data"


def entries_file(folder: Path, task_type: str) -> Path:
    """Return the file with the entries of a task type. Raises UsageError if there is not one."""
    files = sorted(folder.glob(f"BFCL_v*_multi_turn_{task_type}.json"))
    if len(files) != 1:
        raise UsageError(
            f"{folder}: {len(files)} files BFCL_v*_multi_turn_{task_type}.json in it; give the "
            "data folder of bfcl-eval, or none for the installed one"
        )
    return files[0]


@cache
def read_entries(file: Path) -> dict[str, Entry]:
    """Return the entries of a file by id. Raises DataError for a broken file."""
    answers = {row["id"]: row for row in _rows(file.parent / "possible_answer" / file.name)}
    entries = {}
    for row in _rows(file):
        try:
            truth = tuple(map(tuple, answers[row["id"]]["ground_truth"]))
            requests = tuple(
                "\n".join(message["content"] for message in turn) for turn in row["question"]
            )
            functions: dict[str, str] = {}
            for name in row["involved_classes"]:
                functions |= _functions(file.parent, CLASSES[name][0])
            missing = {
                name: int(turn)
                for turn, names in row.get("missed_function", {}).items()
                for name in names
            }
            if len(requests) != len(truth):
                raise ValueError(f"{len(requests)} requests and {len(truth)} answers")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{file}: entry {row.get('id')!r} is not one of BFCL multi-turn "
                f"({type(error).__name__}: {error}); install bfcl-eval again"
            ) from error
        entries[row["id"]] = Entry(row["id"], row, requests, truth, functions, missing)
    return entries


@cache
def _functions(folder: Path, name: str) -> dict[str, str]:
    """Return function name -> one line that describes it."""
    docs = _rows(folder / "multi_turn_func_doc" / f"{name}.json")
    return {doc["name"]: _described(doc) for doc in docs}


def _described(doc: dict[str, Any]) -> str:
    """Return "name(parameter: type = default): what it does. parameter: what it is"."""
    about = doc["parameters"]
    signature, details = [], []
    for name, parameter in about["properties"].items():
        text = f"{name}: {_type(parameter)}"
        if name not in about["required"]:
            default = parameter.get("default")
            text += f" = {None if default == 'None' else default!r}"
        signature.append(text)
        keys = "".join(f" {key!r}" for key in parameter.get("properties", ()))
        detail = _sentence(parameter["description"]) + (f" Keys:{keys}." if keys else "")
        details.append(f"{name}: {detail}")
    what = doc["description"].partition("Tool description: ")[2] or doc["description"]
    returned = ", ".join(doc.get("response", {}).get("properties", ()))
    parts = [_sentence(what), *details, *([f"Returns {returned}."] if returned else [])]
    return " ".join(f"{doc['name']}({', '.join(signature)}): {' '.join(parts)}".split())


def _sentence(text: str) -> str:
    return f"{text.strip().rstrip('.')}."


def _type(parameter: dict[str, Any]) -> str:
    name = parameter["type"]
    if name == "array":
        return f"list[{_type(parameter['items'])}]"
    return _TYPES.get(name, name)


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file. Raises DataError."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({error.strerror}); install bfcl-eval again"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{file}:{number}: not JSON ({error}); install bfcl-eval again"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{file}:{number}: not a JSON object; install bfcl-eval again")
        yield row


def number_of(id_: str) -> int:
    """Return an entry's number. The entries of one number have one scenario in all task types."""
    return int(id_.rpartition("_")[2])


def split_of(id_: str) -> str:
    """Return the split of an entry: one number in three is of "test", by a hash.

    Numbers that are alike in scenario, first request or answer are in the same split.
    """
    number = number_of(id_)
    digest = hashlib.sha256(f"bfcl {_ONE_OF.get(number, number)}".encode()).hexdigest()
    return "test" if int(digest, 16) % 3 == 0 else "train"
