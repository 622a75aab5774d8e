"""Public agent data -> trajectories. What cannot be mapped is told, counted and kept apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from cotjax.data.importing.layouts import LAYOUTS, episode_of, facts_of, id_of, unread_fields
from cotjax.data.importing.rows import Broken, read_rows
from cotjax.data.importing.turns import Unmapped
from cotjax.data.json_text import open_json
from cotjax.data.trajectories import (
    MARK,
    SCHEMA_VERSION,
    Trajectory,
    as_trajectory,
    id_digest,
    write_trajectories,
)
from cotjax.errors import DataError, UsageError
from cotjax.runtime.files import check_output, local_path, whole

_KEPT = 100  # things left out that are told apart; a row's field may have another name in every row
_OTHERS = "other fields"
_REJECTED_MARK = b'{"where": '  # how a file of rejected rows begins


@dataclass
class Imported:
    """What an import came to.

    rows: `kept` + `rejected`
    reasons: of the rejected, by what is wrong
    layouts: of the kept
    left_out: what of the kept rows has no place in a trajectory, in rows and messages
    messages: the first of the rejected, each with its place
    """

    rows: int = 0
    kept: int = 0
    rejected: int = 0
    reasons: Counter = field(default_factory=Counter)
    layouts: Counter = field(default_factory=Counter)
    left_out: Counter = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)


class _NothingKept(DataError):
    """No row is a trajectory; the rejected rows are worth keeping all the same."""


def import_files(
    files: Sequence[Path],
    out: Path,
    *,
    layout: str = "auto",
    environment: str = "unknown",
    split: str = "train",
    rejected: Path | None = None,
    instructions: bool = False,
    limit: int = 20,
    progress: Callable[[int, float], None] = lambda rows, share: None,
) -> Imported:
    """Write the trajectories of `files` (see `cotjax.data.importing.rows`) to `out`, whole or not at all.

    Args:
      layout: one of `LAYOUTS`, or "auto": each row's fields tell.
      environment, split: of the rows that do not say.
      rejected: JSON Lines of what was not mapped: {"where", "reason", "row"}; written whole too,
        also where no row is mapped.
      instructions: system messages, lists of tools and instructions begin the first observation;
        they are left out otherwise.
      limit: messages kept.
      progress: called with the rows read and the share of the files that is done, now and then.

    Raises:
      UsageError: an unknown layout; `out` or `rejected` is one of `files`, the other, a folder, a
        symbolic link, a device, or a file that an import did not write.
      DataError: a file is missing or no JSON, no row is a trajectory, or nothing can be written.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise UsageError(f"unknown layout {layout!r}; there are auto, {', '.join(LAYOUTS)}")
    for file in files:
        open_json(file).close()
    check_output(out, mark=MARK, inputs=files)
    if rejected is not None:
        check_output(rejected, mark=_REJECTED_MARK, inputs=files)
        if local_path(out).resolve() == local_path(rejected).resolve():
            raise UsageError(
                f"{out} cannot hold both the trajectories and the rejected rows; name two files"
            )
    found = Imported()
    ids: set[bytes] = set()  # digests of the ids so far
    facts = {"environment": environment, "split": split}

    def trajectories(apart: TextIO | None) -> Iterator[Trajectory]:
        for place, file in enumerate(files):
            for number, where, row, share in read_rows(file):
                found.rows += 1
                try:
                    made, kind, left_out = _mapped(
                        row, layout, f"{file.stem}/", number, where, facts, ids, instructions
                    )
                except (Unmapped, DataError) as error:
                    _reject(found, error, where, row, limit, apart)
                else:
                    found.kept += 1
                    found.layouts[kind] += 1
                    for what in left_out:
                        found.left_out[
                            what
                            if what in found.left_out or len(found.left_out) < _KEPT
                            else _OTHERS
                        ] += 1
                    yield made
                if found.rows % 100 == 0:
                    progress(found.rows, (place + share) / len(files))
        if not found.kept:
            why = found.messages[0] if found.messages else "there are no rows"
            raise _NothingKept(f"none of {found.rows} rows is a trajectory: {why}")

    nothing = None
    with whole(rejected, mark=_REJECTED_MARK, inputs=files) if rejected else nullcontext() as apart:
        try:
            write_trajectories(out, trajectories(apart), inputs=files)
        except _NothingKept as error:
            nothing = error
    if nothing:
        raise nothing
    return found


def _mapped(
    row: Any,
    layout: str,
    stem: str,
    number: int,
    where: str,
    defaults: dict[str, str],
    ids: set[bytes],
    instructions: bool,
) -> tuple[Trajectory, str, list[str]]:
    if isinstance(row, Broken):
        raise Unmapped(row.reason)
    if not isinstance(row, dict):
        raise Unmapped("a row must be a JSON object")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Unmapped("half of a surrogate pair is no text") from None
    except RecursionError:
        raise Unmapped("nested too deeply") from None
    episode, kind, environment = episode_of(row, layout)
    if not any(step["trained"] for step in episode.steps):
        raise Unmapped("no step is to be trained on")
    left_out = episode.left_out + unread_fields(row)
    if instructions:
        first = episode.steps[0]
        first["observation"] = "\n\n".join(
            [*(text for _, text in episode.instructions), first["observation"]]
        ).rstrip()
    else:
        left_out += [what for what, _ in episode.instructions]
    made = as_trajectory(
        facts_of(row, environment, defaults)
        | {
            "schema_version": SCHEMA_VERSION, "id": stem + id_of(row, number), "task": episode.task, "steps": episode.steps, "seed": 0,
            "agent": "imported",
        },
        where,
    )  # fmt: skip
    if id_digest(made.id) in ids:  # several episodes of one task: the row's number tells them apart
        made = replace(made, id=f"{made.id}/{number}")
        if id_digest(made.id) in ids:
            raise Unmapped("its id occurs in an earlier row")
    ids.add(id_digest(made.id))
    return made, kind, left_out


def _reject(
    found: Imported, error: Exception, where: str, row: Any, limit: int, apart: TextIO | None
) -> None:
    # A fault that the schema found begins with the place already, and may hold words of the row.
    text = str(error) if isinstance(error, DataError) else f"{where}: {error}"
    found.rejected += 1
    found.reasons[
        error.kind if isinstance(error, Unmapped) else "it breaks a rule of the schema"
    ] += 1
    if len(found.messages) < limit:
        found.messages.append(text)
    if apart is not None:
        kept = {
            "where": where,
            "reason": text.removeprefix(f"{where}: "),
            "row": row.text if isinstance(row, Broken) else row,
        }
        apart.write(json.dumps(kept) + "\n")
