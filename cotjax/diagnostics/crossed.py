"""The spread of an estimate over games and over training seeds, which a study crosses.

A study plays the same games under every seed. Its numbers would be others with other games, and
others with other seeds, and an interval has to say both. With the influences `D[s, g]` (what game g
under seed s adds to the estimate's error; they add up to 0) there are three mean squares, each
divided by the number of cells:

    games   G / (G-1) * sum_g (sum_s D)^2               rest included
    seeds   S / (S-1) * sum_s (sum_g D)^2               rest included
    rest    S G / ((S-1) (G-1)) * sum_sg (D - mean of its game - mean of its seed)^2

The variance is games + seeds - rest, for what is left counts once. A 95 % interval reaches

    (t(G-1) * games + t(S-1) * part) / sqrt(games + part)   with part = max(seeds - 3/4 rest, 0)

to either side: the standard error times a quantile that is the mean of both, weighed by variance
(Cochran and Cox). It is nearly the interval over games where seeds do not matter, and nearly t over
seeds where they are all that matters. With all of rest subtracted, three seeds would be too sure
where seeds are most of the variance; with none of it, far too unsure where they do not matter.
docs/statistics.md compares it with other rules.

Sources: Cornfield and Tukey 1956, Annals of Mathematical Statistics 27:907 (mean squares of crossed
factors). Cochran and Cox 1950, Experimental Designs (the quantile). Hillis 2007, Statistics in
Medicine 26:596 (the same design with readers for seeds and cases for games).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

# 95 % intervals leave this much on either side.
TAIL = 0.025
_LEAST = 1e-12
# What of the rest is taken off the part of seeds.
_TAKEN_OFF = 0.75


@dataclass(frozen=True)
class Spread:
    """The variance of an estimate in independent parts.

    Attributes:
      parts: (variance, degrees of freedom) of each.
    """

    parts: tuple[tuple[float, float], ...]

    @property
    def variance(self) -> float:
        """The variance of the estimate."""
        return sum(variance for variance, _ in self.parts)

    def half(self, tail: float = TAIL) -> float:
        """Return how far an interval reaches that leaves `tail` on either side."""
        if not self.variance:
            return 0.0
        weighed = sum(variance * quantile(freedom, tail) for variance, freedom in self.parts)
        return float(weighed / np.sqrt(self.variance))

    def p_above(self, distance: float) -> float:
        """Return the one-sided p-value of an estimate this far above a hypothesis.

        It is the tail of the interval that ends at the hypothesis.
        """
        if distance <= 0:
            return 0.5 if distance == 0 else 1 - self.p_above(-distance)
        if self.half(_LEAST) <= distance:
            return _LEAST
        # Tails are sought by their logarithm, for small ones matter too.
        log_tail = optimize.brentq(
            lambda x: self.half(float(np.exp(x))) - distance, np.log(_LEAST), np.log(0.5)
        )
        return float(np.exp(log_tail))

    def times(self, factor: float) -> Spread:
        """Return the spread of the estimate times a factor."""
        return Spread(tuple((factor**2 * variance, free) for variance, free in self.parts))

    def plus(self, variance: float) -> Spread:
        """Return the spread with a part of known variance."""
        return Spread((*self.parts, (variance, np.inf)))


def quantile(freedom: float, tail: float = TAIL) -> float:
    """Return the quantile of t that leaves `tail` above it."""
    below = special.ndtri(tail) if np.isinf(freedom) else special.stdtrit(freedom, tail)
    return -float(below)


def crossed_spread(influence: np.ndarray) -> Spread:
    """Return the spread of an estimate over games, and over seeds where there are several.

    One game shows none.

    Args:
      influence: [seeds, games], adding up to 0.
    """
    seeds, games = influence.shape
    if games < 2:
        return Spread(())
    of_games, of_seeds = influence.sum(0), influence.sum(1)
    over_games = float((of_games**2).sum() * games / (games - 1)), games - 1.0
    if seeds < 2:
        return Spread((over_games,))
    left = influence - of_games / seeds - of_seeds[:, None] / games
    rest = float((left**2).sum() * seeds * games / ((seeds - 1) * (games - 1)))
    by_seed = float((of_seeds**2).sum() * seeds / (seeds - 1))
    return Spread((over_games, (max(by_seed - _TAKEN_OFF * rest, 0.0), seeds - 1.0)))
