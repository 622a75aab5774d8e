"""What a step played, as one unit: a file that is there, whole, before anything is trained on it.

    rollouts/step-000123.npz
      about      JSON: step, begin and end (positions of the stream), policy (a hash of the weights
                 that played), broken (messages of the environments), refills
      positions  int64 [plays], the group of each play
      rewards    float64 [plays], without format penalties
      won        bool [plays]
      lengths    int32 [plays], steps of each episode
      episodes   uint8, the episodes as JSON lines (docs/records.md), without their timing

The same command that was killed while it trained reads the file. Killed while it played, it plays
the whole step again: an episode's rounding depends on who shares the slots, so kept and repeated
episodes must not be mixed.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from cotjax.errors import DataError
from cotjax.rl.advantages import Played
from cotjax.rl.rewards import as_played
from cotjax.rollout.record import Episode, Timing
from cotjax.runtime.files import write_atomic

_UNTIMED = Timing(environment_s=0.0, waited_s=0.0, sampler_s=0.0, total_s=0.0)


@dataclass(frozen=True)
class About:
    """What is known of a step's rollouts beside the episodes.

    begin, end: the stream's positions before and after the step.
    policy: hash of the weights that played.
    broken: of each group that was dropped because an environment failed, the message.
    refills: how often further groups were played in the place of flat or broken ones.
    """

    step: int
    begin: int
    end: int
    policy: str
    broken: tuple[str, ...]
    refills: int


@dataclass(frozen=True)
class Rollouts:
    """All that a step played, but for groups that broke.

    positions: of each episode's group; episodes of a group are neighbours.
    plays: what advantages need to know of each episode.
    """

    about: About
    positions: tuple[int, ...]
    episodes: tuple[Episode, ...]
    plays: tuple[Played, ...]

    @classmethod
    def of(
        cls, about: About, positions: Sequence[int], episodes: Sequence[Episode], settings: Any
    ) -> Rollouts:
        """Return the rollouts of these episodes. `settings`: `config.rl`, for the rewards."""
        plays = tuple(
            as_played(episode, position, settings)
            for episode, position in zip(episodes, positions, strict=True)
        )
        return cls(about, tuple(positions), tuple(episodes), plays)


def rollouts_file(folder: Path, step: int) -> Path:
    """Return the path of a step's file in an arm's folder."""
    return folder / "rollouts" / f"step-{step:06}.npz"


def untimed(episode: Episode) -> Episode:
    """Return an episode without what differs each time that it is played."""
    return episode.model_copy(update={"timing": _UNTIMED})


def write_rollouts(path: Path, rollouts: Rollouts) -> None:
    """Write a step's file atomically; the same rollouts give the same bytes."""
    lines = "".join(
        json.dumps(episode.model_dump(), ensure_ascii=True, allow_nan=False) + "\n"
        for episode in rollouts.episodes
    )
    packed = io.BytesIO()
    np.savez_compressed(
        packed,
        about=np.array(json.dumps(asdict(rollouts.about), sort_keys=True)),
        positions=np.array(rollouts.positions, np.int64),
        rewards=np.array([play.reward for play in rollouts.plays], np.float64),
        won=np.array([episode.success for episode in rollouts.episodes], bool),
        lengths=np.array([len(episode.steps) for episode in rollouts.episodes], np.int32),
        episodes=np.frombuffer(lines.encode(), np.uint8),
    )
    write_atomic(path, packed.getvalue())


def read_rollouts(path: Path, settings: Any) -> Rollouts:
    """Return the rollouts of a step's file. `settings`: `config.rl`, for the rewards.

    Raises:
      DataError: the file is damaged.
    """
    try:
        # From memory: numpy leaves the file of a damaged archive open.
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            about: dict[str, Any] = json.loads(str(arrays["about"]))
            positions: Sequence[int] = arrays["positions"].tolist()
            lines = arrays["episodes"].tobytes().decode().splitlines()
        episodes = [Episode.model_validate_json(line) for line in lines]
        about["broken"] = tuple(about["broken"])
        return Rollouts.of(About(**about), positions, episodes, settings)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: not the rollouts of a step ({reason}); delete it, and the same command "
            "plays the step again"
        ) from None
