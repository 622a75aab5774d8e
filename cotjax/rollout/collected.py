"""Episodes of a collection that was interrupted, kept beside its file for the next call.

The file of trajectories appears when it is complete. Until then each finished episode is a line of
`.<name>.begun`, whose first line says what the collection depends on. Lines are in the order of
jobs, so the next call goes on after the last whole one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cotjax.data.trajectories import SCHEMA_VERSION, Trajectory, as_trajectory
from cotjax.errors import DataError
from cotjax.runtime.files import local_path


@dataclass(frozen=True)
class Collected:
    """What became of one episode.

    Attributes:
      trajectory: to be kept; None where the episode is left out.
      won: it ended in the goal.
      left_out: why it is left out, one of the counts of `CollectSummary`; "" where it is kept, or
        was lost.
      fault: a message about it.
    """

    trajectory: Trajectory | None = None
    won: bool = False
    left_out: str = ""
    fault: str | None = None


class Begun:
    """The episodes of an unfinished collection.

    Args:
      out: the file of trajectories that they will be in.
      about: all that the episodes depend on. Episodes of another collection are dropped.
    """

    def __init__(self, out: Path, about: dict[str, Any]):
        out = local_path(out)
        self.path = out.with_name(f".{out.name}.begun")
        self._first = json.dumps(about) + "\n"
        self._size = 0  # bytes of the whole lines
        self.done = sum(1 for _ in self._whole())

    def followed_by(self, played: Iterable[Collected]) -> Iterator[Collected]:
        """Yield the episodes that are there, then those that are played now, which are kept too."""
        if self.done:
            yield from self._whole()
        with self.path.open("ab") as file:
            file.truncate(self._size)  # without half a line, and without another collection
            if not self._size:
                file.write(self._first.encode())
            for job, each in enumerate(played, start=self.done):
                file.write(_line(job, each))
                file.flush()
                yield each

    def remove(self) -> None:
        """Remove the file, once the trajectories are written."""
        self.path.unlink(missing_ok=True)

    def _whole(self) -> Iterator[Collected]:
        """Yield the episodes up to the first line that is not whole, and note where that begins."""
        self._size = 0
        try:
            with self.path.open("rb") as file:
                for number, raw in enumerate(file):
                    if not number:
                        if raw.decode(errors="replace") != self._first:
                            return
                    elif (each := _read(raw, number - 1)) is None:
                        return
                    else:
                        yield each
                    self._size += len(raw)
        except OSError:
            return


def _line(job: int, each: Collected) -> bytes:
    row: dict[str, Any] = asdict(each)
    if each.trajectory is not None:
        row["trajectory"] |= {"schema_version": SCHEMA_VERSION}
    return json.dumps({"job": job} | row).encode() + b"\n"


def _read(raw: bytes, job: int) -> Collected | None:
    """Return the episode of a job's line; None of another line, or half a line of a killed call."""
    try:
        row = json.loads(raw)
        if row.pop("job") != job:
            return None
        trajectory = row["trajectory"] and as_trajectory(row["trajectory"], "")
        return Collected(**row | {"trajectory": trajectory})
    except (ValueError, KeyError, TypeError, AttributeError, DataError):
        return None
