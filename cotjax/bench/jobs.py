"""The jobs of a comparison: what every implementation ("side") trains, generates or plays."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cotjax.envs.alfworld.env import AlfworldEnv
from cotjax.envs.base import Game, Observation, TextEnv
from cotjax.envs.pool.pool import EnvPool
from cotjax.rl.groups import Stream
from cotjax.rollout.elicitation import Elicitation

# AdamW's settings on every side.
LEARNING_RATE, B1, B2, EPSILON, WEIGHT_DECAY = 3e-4, 0.9, 0.95, 1e-8, 0.1
# Tokens of an episode's prompt and response together, unless the model has fewer positions.
MAX_LENGTH = 2048
# Games that each environment process keeps loaded, so that timed resets find their game loaded.
_GAMES_KEPT = 4
ROWS = ("plain", "packed", "trees")
_BRANCH = 64  # tokens of a branch, and of the trunk before it


@dataclass(frozen=True, kw_only=True)
class Job:
    """The fields that all jobs share.

    Attributes:
      side: "cotjax", or how transformers runs (a compilation mode, a kind of cache).
      cpu_devices: devices that cotjax splits the CPU into; the baselines ignore it.
      weights: Hugging Face folder that cotjax writes and the baselines read; empty without a
        baseline.
    """

    side: str = "cotjax"
    cpu_devices: int = 1
    weights: str = ""

    @property
    def name(self) -> str:
        """The side's name in tables and messages."""
        return "cotjax" if self.side == "cotjax" else f"transformers, {self.side}"


def rows_of(kind: str, batch: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return segment ids, branches and positions of rows of a kind of ROWS, int32 [batch, length].

    "packed": four examples a row, of a half, a quarter and two eighths of it. "trees": the same, in
    which every other 64 tokens are a branch.
    """
    segments, branches, positions = (np.zeros((batch, length), np.int32) for _ in range(3))
    parts = (length // 2, length // 4, length // 8) if kind != "plain" else ()
    starts = np.cumsum([0, *parts])
    for segment, (start, end) in enumerate(zip(starts, [*starts[1:], length], strict=True), 1):
        segments[:, start:end] = segment
        index = np.arange(end - start)
        block, within = index // _BRANCH, index % _BRANCH
        branch = np.where((kind == "trees") & (block % 2 == 1), block // 2 + 1, 0)
        branches[:, start:end] = branch
        trunk = (block + 1) // 2 * _BRANCH + within if kind == "trees" else index
        positions[:, start:end] = trunk
    return segments, branches, positions


@dataclass(frozen=True, kw_only=True)
class TrainJob(Job):
    """A batch to train on. `side` of a baseline: "compile" or "eager".

    Attributes:
      model: the fields of ModelConfig.
      batch, length: rows a step, tokens a row.
      accumulate: micro-batches a step.
      remat, attention, scan, mesh: of cotjax alone; see `decoder.hidden_states` and
        `sharding.make_mesh`.
      rows: one of ROWS, what a row holds; of cotjax alone.
    """

    model: dict[str, Any]
    batch: int
    length: int
    accumulate: int = 1
    remat: str = "none"
    attention: str = "auto"
    scan: bool = False
    mesh: tuple[int, int, int] = (-1, 1, 1)
    rows: str = "plain"

    def ids(self) -> np.ndarray:
        """Return the batch, the same on every side: random ids, int32 [batch, length]."""
        return _random_ids(self.model["vocab_size"], (self.batch, self.length))


@dataclass(frozen=True, kw_only=True)
class SampleJob(Job):
    """Prompts to continue greedily. `side` of a baseline: its cache, "dynamic" or "static".

    Attributes:
      model: the fields of ModelConfig.
      slots, prompt, new: prompts, tokens of each, new tokens of each.
    """

    model: dict[str, Any]
    slots: int
    prompt: int
    new: int

    def ids(self) -> np.ndarray:
        """Return the prompts, the same on every side: random ids, int32 [slots, prompt]."""
        return _random_ids(self.model["vocab_size"], (self.slots, self.prompt))


@dataclass(frozen=True, kw_only=True)
class RolloutJob(Job):
    """Games to play greedily. `side` of the baseline: "transformers".

    Attributes:
      model, template: folder of the model with its tokenizer; name of its turn template.
      games: the fields of each Game.
      folder: cache of translated games.
      slots, steps, new: concurrent episodes, most steps an episode, most tokens a CoT response.
      halves: whether cotjax also plays in two halves of the slots (see `our_rollouts`).
      latency: seconds that each environment sleeps before each answer.
    """

    model: str
    template: str
    games: tuple[dict[str, Any], ...]
    folder: str
    slots: int = 32
    steps: int = 30
    new: int = 64
    seed: int = 0
    halves: bool = False
    latency: float = 0.0

    @property
    def name(self) -> str:
        return self.side

    @property
    def elicitation(self) -> Elicitation:
        """How every side draws actions: greedily."""
        return Elicitation(max_new_tokens=self.new, max_steps=self.steps)

    def played(self) -> list[Game]:
        """Return the games."""
        return [Game(**fields) for fields in self.games]

    def pool(self, slots: int | None = None) -> EnvPool:
        """Return environments for all slots, or for so many, each in its own process."""
        slots = slots or self.slots
        factory: Callable[[], TextEnv] = partial(
            AlfworldEnv, max_steps=self.steps, cache_dir=self.folder, games_kept=_GAMES_KEPT
        )
        if self.latency:
            factory = partial(Late, factory, self.latency)
        return EnvPool(factory, slots, slots)


class Late:
    """An environment that sleeps before each answer, like one behind a network."""

    def __init__(self, factory: Callable[[], TextEnv], seconds: float):
        self._env, self._seconds = factory(), seconds

    def reset(self, game: Game) -> tuple[str, Observation]:
        """Sleep, and reset the environment."""
        time.sleep(self._seconds)
        return self._env.reset(game)

    def step(self, action: str) -> Observation:
        """Sleep, and step the environment."""
        time.sleep(self._seconds)
        return self._env.step(action)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


# What TRL trains on: a row for each step, behind the prompt that it was drawn after; or one text an
# episode, in which each step stands behind the thoughts of all before it, which it was not drawn
# after.
TRL_ROWS = {"steps": "a row for each step", "episodes": "one text an episode"}


@dataclass(frozen=True, kw_only=True)
class RLJob(RolloutJob):
    """Steps of GRPO by CoT actions at temperature 1. `side` of the baseline: "trl".

    Attributes:
      tasks, group: games a step, plays of each; `slots` is their product.
      batch, row_length: rows of a micro-batch, and the tokens of each, of cotjax alone.
      rows: what the baseline trains on, one of TRL_ROWS.
    """

    tasks: int = 4
    group: int = 8
    batch: int = 8
    row_length: int = 1024
    rows: str = "steps"

    @property
    def elicitation(self) -> Elicitation:
        """How every side draws actions."""
        return replace(super().elicitation, temperature=1.0)

    def games_of(self, step: int) -> list[Game]:
        """Return the games that every side plays in a step, from 0 on."""
        stream = Stream(self.played(), self.seed)
        return [stream[step * self.tasks + place] for place in range(self.tasks)]


def _random_ids(vocab_size: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(vocab_size, size=shape, dtype=np.int32)


_KINDS: dict[str, type[Job]] = {
    "train": TrainJob,
    "sample": SampleJob,
    "rollout": RolloutJob,
    "rl": RLJob,
}


def to_line(job: Job) -> str:
    """Return the job as one line of JSON."""
    kind = next(name for name, kind in _KINDS.items() if type(job) is kind)
    return json.dumps({"kind": kind, **asdict(job)})


def from_line(line: str) -> Job:
    """Return the job that `to_line` wrote."""
    fields = json.loads(line)
    # JSON has lists where a job has tuples.
    fields |= {key: tuple(fields[key]) for key in ("mesh", "games") if key in fields}
    return _KINDS[fields.pop("kind")](**fields)
