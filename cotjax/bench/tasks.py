"""What a side does in its process: warm up, then repeat its task and time it.

`ours`, `our_rollouts` and `peers` implement the tasks, with cotjax and with transformers.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

# Updates before the first timed one. The first compiles.
_WARM_UP = 3
# Steps of GRPO before the first timed one, at most, and how many of them in a row compile nothing.
_MOST_WARM_UP, _QUIET = 12, 2


class Task(ABC):
    """One side's implementation of a job. All answers can be written as JSON."""

    @abstractmethod
    def warm_up(self) -> dict[str, Any]:
        """Do the task until nothing is left to compile.

        Returns "first_s", the seconds of the first repetition, and what sides are compared by.
        """

    @abstractmethod
    def measure(self, count: int) -> dict[str, Any]:
        """Do the task `count` times; returns "seconds", a list, and further figures."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the platform, the devices and the library versions."""

    def close(self) -> None:  # noqa: B027
        """End what the task has started. Most have started nothing."""


class TrainTask(Task):
    """Updates of one model on one batch."""

    @abstractmethod
    def step(self) -> float:
        """Do one update; returns its loss in nats when the device has finished."""

    @abstractmethod
    def peak_bytes(self) -> int:
        """Return the most memory held so far."""

    def warm_up(self) -> dict[str, Any]:
        """Return "first_s" and the first "losses"."""
        seconds, losses = zip(*(_timed(self.step) for _ in range(_WARM_UP)), strict=True)
        return {"first_s": seconds[0], "losses": losses}

    def measure(self, count: int) -> dict[str, Any]:
        """Return "seconds" of each update and "peak_bytes"."""
        seconds = [_timed(self.step)[0] for _ in range(count)]
        return {"seconds": seconds, "peak_bytes": self.peak_bytes()}


class SampleTask(Task):
    """Greedy continuations of all prompts; `new`: tokens of each."""

    new: int

    @abstractmethod
    def generate(self, new: int) -> list[list[int]]:
        """Return `new` ids for each prompt."""

    @abstractmethod
    def peak_bytes(self) -> int:
        """Return the most memory held so far."""

    def warm_up(self) -> dict[str, Any]:
        """Return "first_s" and the greedy "ids"."""
        first_s, ids = _timed(lambda: self.generate(self.new))
        self.generate(1)
        self.generate(self.new)
        return {"first_s": first_s, "ids": ids}

    def measure(self, count: int) -> dict[str, Any]:
        """Return "seconds" and "first_token" of each generation, and "peak_bytes"."""
        pairs = [
            (_timed(lambda: self.generate(1))[0], _timed(lambda: self.generate(self.new))[0])
            for _ in range(count)
        ]
        first_token, seconds = zip(*pairs, strict=True)
        return {"seconds": seconds, "first_token": first_token, "peak_bytes": self.peak_bytes()}


@dataclass
class Rollout:
    """All games, played once. Times are summed over episodes, each with its share of a turn.

    Attributes:
      seconds: wall-clock time.
      acted: game -> its CoT actions; of an invalid response, the text.
      won, new_tokens: counts.
      environment_s, waited_s: time in environments, and the part in which nothing was decoded.
      sampler_s: time in the sampler.
    """

    seconds: float = 0.0
    acted: dict[str, list[str]] = field(default_factory=dict)
    won: int = 0
    new_tokens: int = 0
    environment_s: float = 0.0
    waited_s: float = 0.0
    sampler_s: float = 0.0


class RolloutTask(Task):
    """Episodes of all games."""

    @abstractmethod
    def play(self) -> dict[str, Rollout]:
        """Play all games; "both": by CoT actions, with the prompt action drawn at every state."""

    def warm_up(self) -> dict[str, Any]:
        """Return "first_s" and the rollouts."""
        first_s, rollouts = _timed(self.play)
        return {"first_s": first_s, **_as_dicts(rollouts)}

    def measure(self, count: int) -> dict[str, Any]:
        """Return "seconds" of each rollout, the last rollouts, and `describe`."""
        rollouts = [self.play() for _ in range(count)]
        seconds = [each["both"].seconds for each in rollouts]
        return {"seconds": seconds, **_as_dicts(rollouts[-1]), **self.describe()}


@dataclass
class RLStep:
    """One step of GRPO.

    Attributes:
      seconds: wall-clock time; play_s: of it until every episode was over; transfer_s: of that
        until the weights were where they play (0 where they are shared).
      reward: mean of the episodes.
      sampled, trained: tokens drawn; tokens of the rows, without padding.
      steps: actions of all episodes.
    """

    seconds: float = 0.0
    play_s: float = 0.0
    transfer_s: float = 0.0
    reward: float = 0.0
    sampled: int = 0
    trained: int = 0
    steps: int = 0


class RLTask(Task):
    """Steps of GRPO, one after the other: play, advantages, one update."""

    @property
    def compiled(self) -> int:
        """Programs that were compiled so far; 0 where nothing is."""
        return 0

    @abstractmethod
    def step(self) -> RLStep:
        """Do the next step."""

    @abstractmethod
    def greedy(self) -> dict[str, list[str]]:
        """Return the greedy actions of the first step's games, by game; "" for an invalid one."""

    def warm_up(self) -> dict[str, Any]:
        """Return "first_s" and the greedy actions, "acted"."""
        acted = self.greedy()
        first_s, quiet = _timed(self.step)[0], 0
        # Programs for texts of another length are compiled when one is met.
        for _ in range(_MOST_WARM_UP):
            compiled = self.compiled
            self.step()
            quiet = quiet + 1 if compiled == self.compiled else 0
            if quiet == _QUIET or not self.compiled:
                break
        return {"first_s": first_s, "acted": acted}

    def measure(self, count: int) -> dict[str, Any]:
        """Return "seconds" of each step, and the "steps"."""
        steps = [self.step() for _ in range(count)]
        return {"seconds": [each.seconds for each in steps], "steps": [asdict(x) for x in steps]}


def _as_dicts(rollouts: dict[str, Rollout]) -> dict[str, Any]:
    return {name: asdict(rollout) for name, rollout in rollouts.items()}


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return (seconds, result)."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result
