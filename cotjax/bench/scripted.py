"""A policy without a model, for tests of the rollout loop with real environments."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from cotjax.data.codec import Codec
from cotjax.envs.base import Game, Observation
from cotjax.errors import EnvError
from cotjax.formats import ACTION_CLOSE
from cotjax.rollout.contracts import Environments


class ScriptedPolicy:
    """Takes a random admissible command: the same one for the same game, turn and seed.

    `commands`: what is admissible in each slot now; see `Observed`.
    """

    max_length = 1 << 30

    def __init__(self, codec: Codec, slots: int) -> None:
        self.slots, self._codec = slots, codec
        self._ids: list[list[int]] = [[] for _ in range(slots)]
        self.commands: dict[int, tuple[str, ...]] = {}

    @property
    def lengths(self) -> np.ndarray:
        """The number of ids in each slot."""
        return np.array([len(ids) for ids in self._ids])

    def prompt(self, slot: int) -> list[int]:
        """Return the slot's ids."""
        return self._ids[slot]

    def reset(self, slots: Iterable[int]) -> None:
        """Empty these slots."""
        for slot in slots:
            self._ids[slot] = []

    def extend(self, pieces: Mapping[int, Sequence[int]]) -> None:
        """Append ids to each slot."""
        for slot, ids in pieces.items():
            self._ids[slot] += ids

    def score_branches(
        self,
        prefixes: Mapping[int, Sequence[int]],
        branches: Mapping[int, Sequence[Sequence[int]]],
    ) -> dict[int, list[list[float]]]:
        """Find all branches equally likely."""
        return {slot: [[-1.0] * len(ids) for ids in each] for slot, each in branches.items()}

    def sample(
        self,
        prefixes: Mapping[int, Sequence[int]],
        *,
        max_new: int,
        seeds: Mapping[int, int],
        **how: Any,
    ) -> dict[int, SimpleNamespace]:
        """Return a response for each slot, as a sampler does."""
        responses = {}
        for slot in prefixes:
            rng = random.Random(seeds[slot])
            commands = self.commands[slot]
            # The verb is drawn first, since nine commands of ten are "go to".
            verb = rng.choice(sorted({command.split()[0] for command in commands}))
            action = rng.choice([command for command in commands if command.split()[0] == verb])
            ids = self._codec.encode(action) + self._codec.encode(ACTION_CLOSE)
            responses[slot] = SimpleNamespace(
                ids=ids, logprobs=None, stopped=True, new_tokens=len(ids)
            )
        return responses


class Observed:
    """Environments whose admissible commands are passed on to a scripted policy."""

    def __init__(self, environments: Environments, policy: ScriptedPolicy):
        self._environments, self._policy = environments, policy

    def reset(self, games: dict[int, Game]) -> Mapping[int, tuple[str, Observation] | EnvError]:
        """Reset, and note the commands."""
        answers = self._environments.reset(games)
        for slot, answer in answers.items():
            if not isinstance(answer, EnvError):
                self._note(slot, answer[1])
        return answers

    def step(self, actions: dict[int, str]) -> Mapping[int, Observation | EnvError]:
        """Step, and note the commands."""
        answers = self._environments.step(actions)
        for slot, answer in answers.items():
            if not isinstance(answer, EnvError):
                self._note(slot, answer)
        return answers

    def faults(self, slot: int) -> Sequence[str]:
        """Return the slot's faults."""
        return self._environments.faults(slot)

    def _note(self, slot: int, seen: Observation) -> None:
        self._policy.commands[slot] = seen.admissible_commands or ()
