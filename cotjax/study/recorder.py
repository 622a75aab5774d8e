"""Writes the records of what is played, and says how far it has come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cotjax.envs.base import Play
from cotjax.rollout.record import Ended, Episode, Record, write_record
from cotjax.study.games import GameSets
from cotjax.study.jobs import Job


@dataclass
class Recorder:
    """Writes records and reports progress.

    Attributes:
      records: folder of the records.
      total: episodes of this process, with those that had a record before.
      done: how many of them have a record.
      ended: how episodes ended -> their number.
    """

    records: Path
    games: GameSets
    total: int
    done: int
    report: Callable[[int, int, str], None]
    warn: Callable[[str], None]
    ended: Counter[Ended] = field(default_factory=Counter)

    def keep(self, job: Job, play: Play, episode: Episode) -> None:
        """Write the record of a finished episode."""
        self.ended[episode.ended] += 1
        if episode.env_error:
            self.warn(f"environment error, excluded from all rates: {episode.env_error}")
        heading = job.heading(self.games.hash, self.games.domain_of(play.game))
        write_record(job.path(self.records, play), Record.of(heading, episode))
        self.done += 1
        self.report(self.done, self.total, f"episodes, {job}")

    def warn_of_endings(self, max_length: int) -> None:
        """Warn of episodes that ended for a reason outside the game."""
        if broken := self.ended["env_error"]:
            self.warn(
                f"{broken} episodes broke in their environment: they are excluded from all rates, "
                "and counted in the report"
            )
        if outgrown := self.ended["length"]:
            self.warn(
                f"{outgrown} episodes ended, not won, because their prompt outgrew "
                f"evaluate.max_length={max_length}"
            )
