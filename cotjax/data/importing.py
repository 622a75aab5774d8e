"""Public agent data -> trajectories. What cannot be mapped is told, counted and kept apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from cotjax.data.digests import Digests
from cotjax.data.layouts import LAYOUTS, Unmapped, as_steps, environment_of, id_of, layout_of, outcome_of, task_type_of
from cotjax.data.trajectories import SCHEMA_VERSION, Trajectory, as_trajectory, write_trajectories
from cotjax.errors import DataError, UsageError


@dataclass
class Imported:
    """What an import came to. `rows` = `kept` + `rejected`; `reasons` counts the rejected by what is wrong; `messages` are the
    first of them, each with its place; `layouts` counts the kept."""

    rows: int = 0
    kept: int = 0
    rejected: int = 0
    reasons: Counter = field(default_factory=Counter)
    layouts: Counter = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)


def import_files(
    files: Sequence[Path],
    out: Path,
    *,
    layout: str = "auto",
    environment: str = "unknown",
    split: str = "train",
    rejected: Path | None = None,
    limit: int = 20,
    progress: Callable[[int, float], None] = lambda rows, share: None,
) -> Imported:
    """Write the trajectories of `files` (each a JSON array, or JSON Lines) to `out`, whole or not at all.

    Args:
      layout: one of `LAYOUTS`, or "auto": each row's fields tell.
      environment, split: of the rows that do not say.
      rejected: JSON Lines of what was not mapped: {"where", "reason", "row"}.
      limit: messages kept.
      progress: called with the rows read and the share of the files that is done, now and then.

    Raises:
      UsageError: an unknown layout.
      DataError: a file is missing or no JSON, or no row of any is a trajectory.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise UsageError(f"unknown layout {layout!r}; there are auto, {', '.join(LAYOUTS)}")
    found, ids = Imported(), Digests()
    facts = {"environment": environment, "split": split}

    def trajectories(apart: TextIO | None) -> Iterator[Trajectory]:
        for place, file in enumerate(files):
            for number, where, row, share in _rows(file):
                found.rows += 1
                try:
                    made, kind = _mapped(row, layout, f"{file.stem}/", number, where, facts, ids)
                except (Unmapped, DataError) as error:
                    _reject(found, error, where, row, limit, apart)
                else:
                    found.kept += 1
                    found.layouts[kind] += 1
                    yield made
                if found.rows % 100 == 0:
                    progress(found.rows, (place + share) / len(files))
        if not found.kept:
            why = found.messages[0] if found.messages else "there are no rows"
            raise DataError(f"none of {found.rows} rows is a trajectory: {why}")

    if rejected:
        rejected.parent.mkdir(parents=True, exist_ok=True)
    with rejected.open("w", encoding="utf-8") if rejected else nullcontext() as apart:
        write_trajectories(out, trajectories(apart))
    return found


def _mapped(row: Any, layout: str, stem: str, number: int, where: str, facts: dict, ids: Digests) -> tuple[Trajectory, str]:
    if isinstance(row, _Broken):
        raise Unmapped(row.reason)
    if not isinstance(row, dict):
        raise Unmapped("a row must be a JSON object")
    kind = layout_of(row) if layout == "auto" else layout
    task, steps = as_steps(LAYOUTS[kind](row))
    if not any(step["trained"] for step in steps):
        raise Unmapped("no step is to be trained on")
    task_type, game = task_type_of(row)
    success, reward = outcome_of(row)
    facts = facts | {"environment": environment_of(row) or facts["environment"]}
    said = {name: row[name] if isinstance(row.get(name), str) and row[name].strip() else value for name, value in facts.items()}
    name = stem + id_of(row, number)
    made = as_trajectory(
        {
            "schema_version": SCHEMA_VERSION, "id": name, **said, "task": task, "task_type": task_type, "game": game,
            "steps": steps, "success": success, "reward": reward, "seed": 0, "agent": "imported",
        },
        where,
    )  # fmt: skip
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Unmapped("half of a surrogate pair is no text") from None
    if ids.add(made.id, number) is not None:  # several episodes of one task: the row's number tells them apart
        made = replace(made, id=f"{made.id}/{number}")
        if ids.add(made.id, number) is not None:
            raise Unmapped("its id stands in an earlier row already")
    return made, kind


def _reject(found: Imported, error: Exception, where: str, row: Any, limit: int, apart: TextIO | None) -> None:
    # A fault that the schema found begins with the place already, and may hold the row's own words behind the colon.
    text = str(error) if isinstance(error, DataError) else f"{where}: {error}"
    found.rejected += 1
    found.reasons[error.kind if isinstance(error, Unmapped) else "it breaks a rule of the schema"] += 1
    if len(found.messages) < limit:
        found.messages.append(text)
    if apart is not None:
        kept = {"where": where, "reason": text.removeprefix(f"{where}: "), "row": row.text if isinstance(row, _Broken) else row}
        apart.write(json.dumps(kept) + "\n")


@dataclass(frozen=True)
class _Broken:
    """A line that is no JSON."""

    text: str
    reason: str


def _rows(file: Path) -> Iterator[tuple[int, str, Any, float]]:
    """(number, place, row, share of the file that is read) of every row; a line of JSON Lines that is no JSON is a `_Broken`."""
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    with file.open(encoding="utf-8-sig") as lines:
        try:
            if _first_character(lines) == "[":
                rows = json.load(lines)
                yield from ((number, f"{file}, row {number}", row, number / len(rows)) for number, row in enumerate(rows))
                return
            size = max(1, file.stat().st_size)
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, f"{file}:{number}", _parsed(line), lines.buffer.tell() / size
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{error.lineno}: no JSON ({error.msg} at column {error.colno}); the file is not whole") from None


def _first_character(lines: Any) -> str:
    while (character := lines.read(1)).isspace():
        pass
    lines.seek(0)
    return character


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return _Broken(line.rstrip("\n"), "the line is no JSON")
