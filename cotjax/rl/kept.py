"""Episodes of a step that was being played when a run was killed (`rl.resume` "fast").

    rollouts/.step-000123-0.jsonl    of each process: a line that says whose it is, then an episode
                                     a line, as soon as it is over

They are there until the step's file is. A last line that was being written is left out. What is
kept was decoded in slots that it shared with others than a repetition would, so the step may differ
by rounding from one that nothing interrupted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cotjax.envs.base import Play
from cotjax.rollout.record import Episode
from cotjax.runtime import distributed
from cotjax.runtime.files import write_atomic


class Kept:
    """The file of a step that this process plays; what is there of the same step is read."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        """`about`: step, begin and policy (`About`); episodes of another one are dropped."""
        self._path = folder / f".step-{about['step']:06}-{distributed.own_process()}.jsonl"
        first = json.dumps(about, sort_keys=True)
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        self._episodes: dict[tuple[str, int], Episode] = {}
        whole = [first]
        for line in lines[1:] if lines[:1] == [first] else ():
            try:
                episode = Episode.model_validate_json(line)
            except ValidationError:
                break
            whole.append(line)
            self._episodes[episode.game.id, episode.sample] = episode
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path, "".join(f"{line}\n" for line in whole))

    def of(self, play: Play) -> Episode | None:
        """Return a play's episode; None where it was not over."""
        return self._episodes.get((play.game.id, play.sample))

    def add(self, episode: Episode) -> None:
        """Keep an episode that is over, unless its environment failed."""
        if episode.env_error:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(episode.model_dump()) + "\n")


def remove_kept(rollouts: Path) -> None:
    """Remove the kept episodes of a step whose file, `rollouts`, is there; all processes may."""
    for path in rollouts.parent.glob(f".{rollouts.stem}-*.jsonl"):
        path.unlink(missing_ok=True)
