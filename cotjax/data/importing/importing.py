"""Import public agent data as trajectories; count the rows that cannot be mapped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from cotjax.data.importing.facts import facts_of, id_of, world_of
from cotjax.data.importing.layouts import LAYOUTS, episode_of, unread_fields
from cotjax.data.importing.rows import Broken, Row, read_rows
from cotjax.data.importing.steps import Episode
from cotjax.data.importing.unmapped import Unmapped
from cotjax.data.json_text import open_json
from cotjax.data.trajectories import (
    MARK,
    SCHEMA_VERSION,
    UNKNOWN,
    Trajectory,
    as_trajectory,
    id_digest,
    write_trajectories,
)
from cotjax.envs.worlds import World
from cotjax.errors import DataError, UsageError
from cotjax.runtime.files import atomic_file, check_output, local_path

_MAX_KINDS = 100  # kinds of content left out that are counted apart
_OTHERS = "other fields"
_REJECTED_MARK = b'{"where": '  # how a file of rejected rows begins
_PROGRESS_ROWS = 100  # between two calls of `progress`


@dataclass
class Imported:
    """The result of an import.

    rows: `kept` + `rejected`
    reasons: the number of rejected rows by reason
    layouts: the number of kept rows by layout
    left_out: the content of kept rows, and of their messages, that has no place in a trajectory
    messages: the first rejections, each with its place
    """

    rows: int = 0
    kept: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    layouts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)


class _NothingKept(DataError):
    """No row is a trajectory; the file of rejected rows is written nevertheless."""


def import_files(
    files: Sequence[Path],
    out: Path,
    *,
    layout: str = "auto",
    environment: str = UNKNOWN,
    split: str = "train",
    rejected: Path | None = None,
    instructions: bool = False,
    limit: int = 20,
    progress: Callable[[int, float], None] = lambda rows, share: None,
) -> Imported:
    """Write the trajectories of `files` (see `cotjax.data.importing.rows`) to `out`, atomically.

    Args:
      layout: one of `LAYOUTS`, or "auto" to choose by each row's fields.
      environment, split: for rows that do not name theirs. `UNKNOWN`: of a row whose game a world
        knows by its path, that world.
      rejected: JSON Lines file for rows that cannot be mapped: {"where", "reason", "row"}; also
        written where no row can be mapped.
      instructions: begin the first observation with system messages, lists of tools and
        instructions, which are left out otherwise.
      limit: number of rejections whose message is kept.
      progress: called now and then with (rows read, share of the files read).

    Raises:
      UsageError: an unknown layout; `out` or `rejected` is one of `files`, the other one, a folder,
        a symbolic link, a device, or a file that an import did not write.
      DataError: a file is missing or not JSON, no row is a trajectory, or a file cannot be written.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise UsageError(f"unknown layout {layout!r}; it must be one of auto, {', '.join(LAYOUTS)}")
    _check_paths(files, out, rejected)
    defaults = {"environment": environment, "split": split}
    run = _Import(layout, defaults, instructions, limit)
    nothing = None
    opened = atomic_file(rejected, mark=_REJECTED_MARK, inputs=files) if rejected else nullcontext()
    with opened as rejects:
        try:
            write_trajectories(out, run.trajectories(files, rejects, progress), inputs=files)
        except _NothingKept as error:
            nothing = error
    if nothing:
        raise nothing
    return run.result


def _check_paths(files: Sequence[Path], out: Path, rejected: Path | None) -> None:
    for file in files:
        open_json(file).close()
    check_output(out, mark=MARK, inputs=files)
    if rejected is not None:
        check_output(rejected, mark=_REJECTED_MARK, inputs=files)
        if local_path(out).resolve() == local_path(rejected).resolve():
            raise UsageError(
                f"{out} cannot hold both the trajectories and the rejected rows; name two files"
            )


class _Import:
    """One import: its settings, and its result so far."""

    def __init__(self, layout: str, defaults: dict[str, str], instructions: bool, limit: int):
        self.result = Imported()
        self._layout = layout
        self._defaults = defaults
        self._instructions = instructions
        self._limit = limit
        self._ids: set[bytes] = set()  # digests of the ids so far

    def trajectories(
        self,
        files: Sequence[Path],
        rejects: IO[str] | None,
        progress: Callable[[int, float], None],
    ) -> Iterator[Trajectory]:
        """Yield the trajectories of the files; write the rejected rows to `rejects`."""
        result = self.result
        for index, file in enumerate(files):
            for row in read_rows(file):
                result.rows += 1
                try:
                    trajectory = self._map(row, file.stem)
                except (Unmapped, DataError) as error:
                    self._reject(row, error, rejects)
                else:
                    result.kept += 1
                    yield trajectory
                if result.rows % _PROGRESS_ROWS == 0:
                    progress(result.rows, (index + row.share) / len(files))
        if not result.kept:
            why = result.messages[0] if result.messages else "there are no rows"
            raise _NothingKept(f"none of {result.rows} rows is a trajectory: {why}")

    def _map(self, row: Row, file_stem: str) -> Trajectory:
        """Return the trajectory of a row, and count its layout and what it leaves out."""
        fields = _checked_fields(row.value)
        episode, layout, environment = episode_of(fields, self._layout)
        if not any(step.trained for step in episode.steps):
            raise Unmapped("no step is trained on")
        left_out = episode.left_out + unread_fields(fields)
        facts = facts_of(fields, environment, self._defaults)
        if world := world_of(fields, facts["environment"]):
            played = _as_played(episode, world)
            if played != episode:
                left_out.append(f"what {world.title or world.name} does not show in play")
            episode = played
            if facts["environment"] == UNKNOWN:  # the path of its game names the world
                facts["environment"] = world.name
        if self._instructions:
            episode = _with_instructions(episode)
        else:
            left_out += [kind for kind, _ in episode.instructions]
        trajectory = as_trajectory(
            facts
            | {
                "schema_version": SCHEMA_VERSION,
                "id": f"{file_stem}/{id_of(fields, row.number)}",
                "task": episode.task,
                "steps": [asdict(step) for step in episode.steps],
                "seed": 0,
                "agent": "imported",
            },
            row.where,
        )
        trajectory = self._with_unique_id(trajectory, row.number)
        self.result.layouts[layout] += 1
        counts = self.result.left_out
        for kind in left_out:
            # A field may have another name in every row.
            counts[kind if kind in counts or len(counts) < _MAX_KINDS else _OTHERS] += 1
        return trajectory

    def _with_unique_id(self, trajectory: Trajectory, number: int) -> Trajectory:
        # Several episodes of one task have one id; the row's number tells them apart.
        if id_digest(trajectory.id) in self._ids:
            trajectory = replace(trajectory, id=f"{trajectory.id}/{number}")
            if id_digest(trajectory.id) in self._ids:
                raise Unmapped("its id occurs in an earlier row")
        self._ids.add(id_digest(trajectory.id))
        return trajectory

    def _reject(self, row: Row, error: Unmapped | DataError, rejects: IO[str] | None) -> None:
        # An error of the schema begins with the place already, and may quote the row.
        text = str(error) if isinstance(error, DataError) else f"{row.where}: {error}"
        kind = error.kind if isinstance(error, Unmapped) else "it breaks a rule of the schema"
        self.result.rejected += 1
        self.result.reasons[kind] += 1
        if len(self.result.messages) < self._limit:
            self.result.messages.append(text)
        if rejects is not None:
            value = row.value.text if isinstance(row.value, Broken) else row.value
            reason = text.removeprefix(f"{row.where}: ")
            line = {"where": row.where, "reason": reason, "row": value}
            rejects.write(json.dumps(line) + "\n")


def _checked_fields(value: Any) -> dict[str, Any]:
    """Return a row's fields. Raises Unmapped where it is not an object of proper text."""
    if isinstance(value, Broken):
        raise Unmapped(value.reason)
    if not isinstance(value, dict):
        raise Unmapped("a row must be a JSON object")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Unmapped("it contains half of a surrogate pair") from None
    except RecursionError:
        raise Unmapped("nested too deeply") from None
    return value


def _as_played(episode: Episode, world: World) -> Episode:
    """Return the episode with the texts and commands that the world's environment gives."""
    steps = [
        replace(step, observation=observation, admissible_commands=commands)
        for step in episode.steps
        for observation, commands in [world.as_played(step.observation, step.admissible_commands)]
    ]
    return replace(episode, steps=steps)


def _with_instructions(episode: Episode) -> Episode:
    """Return the episode with its instructions at the beginning of the first observation."""
    first, *rest = episode.steps
    texts = [*(text for _, text in episode.instructions), first.observation]
    first = replace(first, observation="\n\n".join(texts).rstrip())
    return replace(episode, steps=[first, *rest])
