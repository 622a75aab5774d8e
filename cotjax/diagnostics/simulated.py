"""Studies of policies of known rates: what an interval is worth, and what a study finds.

A state is won by an action where a normal number lies below the rate's quantile. The number adds up
what makes its game easy and the state itself, which both kinds of action, all checkpoints, arms and
seeds share; what makes the game easy for one policy; what a training seed did to it; and chance. So
each policy has exactly its rate over games and seeds, and everything is correlated as in a study.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cotjax.diagnostics.statistics import Term

# (arm, end, kind): "first" or "last", "cot" or "prompt". The base belongs to arm 0.
Policy = tuple[int, str, str]
# Standard deviation of a logistic number over that of a normal one with the same middle.
_LOGITS = 1.7


@dataclass(frozen=True)
class Truth:
    """What is planted.

    Attributes:
      rates: (CoT, prompt) at the base, and at the end of every arm.
      states: least and most states of a game; the same for all games where they are equal.
      seeds: training seeds; the base has none.
      seed_deviation: of a policy over seeds, in logits.
      game, state, policy: deviation of games, of states, and of games for one policy; chance has 1.
    """

    first: tuple[float, float]
    last: tuple[tuple[float, float], ...]
    games: int = 60
    states: tuple[int, int] = (1, 1)
    seeds: int = 1
    seed_deviation: float = 0.3
    game: float = 0.6
    state: float = 0.8
    policy: float = 0.4

    @property
    def rates(self) -> Mapping[Policy, float]:
        """The rate of every policy."""
        kinds = ("cot", "prompt")
        base = {(0, "first", kind): rate for kind, rate in zip(kinds, self.first, strict=True)}
        return base | {
            (arm, "last", kind): rate
            for arm, rates in enumerate(self.last)
            for kind, rate in zip(kinds, rates, strict=True)
        }

    def draw(self, rng: np.random.Generator) -> dict[Policy, tuple[np.ndarray, np.ndarray]]:
        """Return the totals and counts of one study, [seeds, games] of every policy."""
        low, high = self.states
        counts = rng.integers(low, high + 1, self.games)
        game_of = np.repeat(np.arange(self.games), counts)
        shared = self.game * rng.normal(size=self.games)[game_of]
        shared = shared + self.state * rng.normal(size=len(game_of))
        drawn = {}
        for policy, rate in self.rates.items():
            trained = policy[1] == "last"
            seeds, deviation = (self.seeds, self.seed_deviation / _LOGITS) if trained else (1, 0.0)
            number = shared + self.policy * rng.normal(size=self.games)[game_of]
            number = number + deviation * rng.normal(size=(seeds, 1))
            number = number + rng.normal(size=(seeds, len(game_of)))
            parts = self.game, self.state, self.policy, deviation, 1.0
            won = number / np.linalg.norm(parts) < stats.norm.ppf(rate)
            totals = [np.bincount(game_of, weights=each, minlength=self.games) for each in won]
            drawn[policy] = np.array(totals), np.broadcast_to(counts, (seeds, self.games))
        return drawn


def change_of(drawn: Mapping[Policy, tuple[np.ndarray, np.ndarray]], kind: str) -> list[Term]:
    """Return the terms of a kind's change from the base to the end of the first arm."""
    return [(1, *drawn[0, "last", kind]), (-1, *drawn[0, "first", kind])]


def gap_change_of(drawn: Mapping[Policy, tuple[np.ndarray, np.ndarray]]) -> list[Term]:
    """Return the terms of the change of the gap of the first arm."""
    prompt = change_of(drawn, "prompt")
    turned: list[Term] = [(-weight, totals, counts) for weight, totals, counts in prompt]
    return change_of(drawn, "cot") + turned
