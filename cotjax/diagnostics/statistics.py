"""Intervals for rates, means and their differences, where games and training seeds are the sample.

Everything here works on one number per seed and game: `totals[s, g]` (hits, tokens, steps) out of
`counts[s, g]` (states or episodes of game g under seed s). The value is the ratio
sum(totals) / sum(counts). What has no seed (the base model) has one row. All intervals are 95 %,
and all are formulas: the same numbers give the same interval, with no random draw.

| quantity | interval |
|---|---|
| rate, one episode per game, one seed | Wilson (1927) |
| rate otherwise | Wilson with the effective number of states: n over the design effect (1) |
| mean | t, as if one more state were at each of its limits (2) |
| signed sum of ratios on the same games (gap, change, difference) | t, with added pairs (3) |

The spread is that of `cotjax.diagnostics.crossed`: over games with one seed, over games and seeds
with more.

(1) Kish 1965; with t for few games: Korn and Graubard 1998. (2) As Agresti and Coull 1998 do for a
rate. (3) Agresti and Min 2005: two more states, half of each of the four pairs of answers, so one
that moves, as often up as down. Where the states of a game move together, so do the added ones.

60 wins in 60 games do not prove a rate of 1, and no difference does not prove that two arms are
equal: the spread that is seen cannot be all that counts. So what is seen is weighed against an
assumption, by the number of events, without a jump: the first failure never narrows an interval.
Assumed is that states of a game agree a little (LIKENESS), which matters where events are few.

Sources: Wilson 1927, JASA 22:209. Kish 1965, Survey Sampling. Korn and Graubard 1998, Survey
Methodology 24:193 (score intervals with an effective sample size and its t adjustment). Agresti and
Coull 1998, The American Statistician 52:119. Agresti and Min 2005, Statistics in Medicine 24:729.
McNemar 1947, Psychometrika 12:153 (exact form: a sign test on the discordant
pairs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cotjax.diagnostics.crossed import Spread, crossed_spread

# One per game, or [seeds, games].
Numbers = Sequence[float] | np.ndarray
# Weight, totals and counts of one ratio of a sum.
Term = tuple[float, Numbers, Numbers]

LEVEL = 0.95
# Correlation of two states of a game that is assumed where no events show it.
LIKENESS = 0.1
_Z = float(stats.norm.ppf(0.5 + LEVEL / 2))
# Numbers of games within this are equal.
_SAME = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
      value, low, high: None where nothing was measured; never nan.
      n: number of states or episodes.
      games: number of games that they come from.
      seeds: number of training seeds that they come from; 1 for what has none.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    games: int
    seeds: int = 1

    @property
    def measured(self) -> bool:
        """Whether there is a value."""
        return self.value is not None

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes 0; else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


NOTHING = Estimate(None, None, None, 0, 0)


@dataclass(frozen=True)
class Combination:
    """A weighted sum of ratios, and what its interval and its tests follow from.

    Attributes:
      value: the sum.
      centre: middle of its interval: the value with the added pairs, nearer to 0.
      spread: of the centre.
      reach: the sum is within -reach..reach. Where data exceed the limits of what is averaged, this
        holds the value too, as in `mean`.
      n, games, seeds: as in `Estimate`.
    """

    value: float
    centre: float
    spread: Spread
    reach: float
    n: int
    games: int
    seeds: int

    def estimate(self) -> Estimate:
        """Return the value with its 95 % interval."""
        half = self.spread.half()
        low = max(min(self.centre - half, self.value), -self.reach)
        high = min(max(self.centre + half, self.value), self.reach)
        return Estimate(self.value, low, high, self.n, self.games, self.seeds)

    def p_above(self, bound: float) -> float:
        """Return the one-sided p-value of a sum above `bound`."""
        return self.spread.p_above(self.centre - bound)

    @property
    def p(self) -> float:
        """Two-sided p-value of a sum other than 0: below 0.05 where the interval excludes 0."""
        return 2 * self.spread.p_above(abs(self.centre))


def wilson(value: float, n: float) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion `value` over `n` trials.

    `value * n` need not be an integer (n may be an effective size). Where it is, this equals
    `scipy.stats.binomtest(k, n).proportion_ci(method="wilson")`.
    """
    centre = value + _Z**2 / (2 * n)
    half = _Z * np.sqrt(value * (1 - value) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    low = 0.0 if value <= 0 else (centre - half) / scale
    high = 1.0 if value >= 1 else (centre + half) / scale
    return float(low), float(high)


def sign_test(differences: Numbers) -> float:
    """Return the two-sided exact p-value of "games go one way as often as the other".

    With one episode per game this is McNemar's exact test.
    """
    differences = np.asarray(differences, dtype=float)
    # Sums of shares of samples: 1 - 2/3 - 1/3 is 0, but 6e-17 in floating point.
    up, down = int((differences > _SAME).sum()), int((differences < -_SAME).sum())
    return float(stats.binomtest(up, up + down, 0.5).pvalue) if up + down else 1.0


def rate(totals: Numbers, counts: Numbers) -> Estimate:
    """Return a proportion: `totals` hits among `counts` states or episodes, by (seed and) game.

    Games without a count are excluded.
    """
    totals, counts = _counted(totals, counts)
    if not counts.size:
        return NOTHING
    (seeds, games), n = counts.shape, float(counts.sum())
    value = float(totals.sum() / n)
    low, high = wilson(value, _effective_size(value, totals, counts))
    return Estimate(value, min(low, value), max(high, value), int(n), games, seeds)


def mean(totals: Numbers, counts: Numbers, upper: float, low: float = 0.0) -> Estimate:
    """Return the mean of a quantity from `low` to `upper`, from totals and counts."""
    totals, counts = _counted(totals, counts)
    if not counts.size:
        return NOTHING
    (seeds, games), n = counts.shape, float(counts.sum())
    value = float(totals.sum() / n)
    low, upper = min(low, value), max(upper, value)
    most = _most_together(counts.sum(0))
    units = n / (most if games == 1 else _assumed(most))
    kept = float(units / (units + 2))
    added = ((upper - value) ** 2 + (value - low) ** 2) / (units + 2) ** 2
    centre = kept * value + (low + upper) / (units + 2)
    half = crossed_spread((totals - value * counts) / n).times(kept).plus(added).half()
    ends = max(centre - half, low), min(centre + half, upper)
    return Estimate(value, min(ends[0], value), max(ends[1], value), int(n), games, seeds)


def contrast(terms: Sequence[Term], span: float = 1.0) -> Estimate:
    """Return a signed sum of ratios that were measured on the same games.

    Each term is (+1 or -1, totals, counts). Two terms are a paired difference (the gap; an arm
    against another), four are a change of a difference. `n` is the number of states of the smallest
    term.

    Args:
      span: upper limit minus lower limit of what is averaged; 1 for rates.
    """
    combined = combine(terms, span)
    return NOTHING if combined is None else combined.estimate()


def combine(terms: Sequence[Term], span: float = 1.0) -> Combination | None:
    """Return a weighted sum of ratios; None where no game was measured in every term."""
    ratios = Ratios([(totals, counts) for _, totals, counts in terms], span)
    return ratios.combine([weight for weight, _, _ in terms])


class Ratios:
    """Ratios on the same games, of which weighted sums are estimated.

    What has one row has no seed, and goes with every seed of the others. A game under a seed
    without a count in any of them is excluded.

    Args:
      sums: totals and counts of each.
      span: upper limit minus lower limit of what is averaged; 1 for rates.
    """

    def __init__(self, sums: Sequence[tuple[Numbers, Numbers]], span: float = 1.0) -> None:
        arrays = [np.atleast_2d(each).astype(float) for both in sums for each in both]
        # [2 ratios, seeds, games], totals and counts in turn
        stacked = np.stack(np.broadcast_arrays(*arrays))
        totals, counts = stacked[0::2] / span, stacked[1::2]
        measured = np.asarray((counts > 0).all(0))
        seen = np.ix_(np.arange(len(sums)), measured.any(1), measured.any(0))
        totals, counts = (
            np.where(measured, totals, 0.0)[seen],
            np.where(measured, counts, 0.0)[seen],
        )
        self._span = span
        self.seeds, self.games = counts.shape[1:]
        if self.games:
            whole = counts.sum((1, 2), keepdims=True)
            rates = totals.sum((1, 2), keepdims=True) / whole
            self._rates = rates[:, 0, 0]
            self._influence = (totals - rates * counts) / whole
            self._by_game = totals.sum(1) / counts.sum(1)
            self._states = counts.min(0).sum(0)
            self._n = int(whole.min())

    def combine(self, weights: Sequence[float]) -> Combination | None:
        """Return the sum with these weights; None where there is no game."""
        if not self.games:
            return None
        weighing = np.asarray(weights, dtype=float)
        spread = crossed_spread(np.tensordot(weighing, self._influence, 1))
        moved = weighing @ self._by_game * self._states / max(np.abs(weighing).max(), 1e-300)
        units = self._states.sum() / _move_together(moved, self._states)
        kept = float(units / (units + 2))
        # Half a state up and half a state down, of the term that weighs most.
        pairs = float(np.square(weighing).max()) / (units + 2) ** 2
        value = float(weighing @ self._rates) * self._span
        up, down = weighing.clip(0).sum(), -weighing.clip(None, 0).sum()
        return Combination(
            value=value,
            centre=value * kept,
            spread=spread.times(kept).plus(pairs).times(self._span),
            reach=max(float(max(up, down)) * self._span, abs(value)),
            n=self._n,
            games=self.games,
            seeds=self.seeds,
        )


def _counted(totals: Numbers, counts: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Return [seeds, games] of both, without the games and seeds that have no count."""
    totals, counts = np.atleast_2d(totals).astype(float), np.atleast_2d(counts).astype(float)
    games, seeds = (counts > 0).any(0), (counts > 0).any(1)
    return totals[seeds][:, games], counts[seeds][:, games]


def _effective_size(value: float, totals: np.ndarray, counts: np.ndarray) -> float:
    """Return how many independent states would give this rate its variance."""
    n, most = counts.sum(), _most_together(counts.sum(0))
    if most == 1 or counts.shape[1] == 1:
        return float(n / most)
    events = n * min(value, 1 - value)
    seen = 1.0
    if events > 0:
        reach = crossed_spread((totals - value * counts) / n).half()
        seen = (reach / _Z) ** 2 / (value * (1 - value) / n)
    if len(counts) == 1:
        seen = min(seen, most)
    assumed = _assumed(most)
    weight = 3 * (assumed - 1) + 1
    effect = (events * max(seen, 1.0) + weight * assumed) / (events + weight)
    return float(n / effect)


def _move_together(moved: np.ndarray, states: np.ndarray) -> float:
    """Return how many states move as one: of each game, those that `moved` are known.

    It is the variance of what moved in a game over what it is where states move by themselves: a
    gain that all games share is no sign that states of a game move together.
    """
    most = _most_together(states)
    if len(states) == 1:
        return most
    assumed = _assumed(most)
    # At half of this weight, one state that moves would not narrow the interval either.
    weight = 8 * assumed * (assumed - 1) + 1
    varied = moved - moved.sum() / states.sum() * states
    together = ((varied**2).sum() + weight * assumed) / (np.abs(moved).sum() + weight)
    return float(min(max(together, 1.0), max(most, 1.0)))


def _most_together(states: np.ndarray) -> float:
    """Return how many states of a game move as one where all of them do (Kish)."""
    return float((states**2).sum() / states.sum())


def _assumed(most: float) -> float:
    return 1 + (most - 1) * LIKENESS
