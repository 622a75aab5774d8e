"""Intervals for rates and for their differences, when the games are the sample.

Everything here works on one number per game: `totals[g]` (hits, tokens, steps) out of `counts[g]`
(states or episodes of game g). The value is the ratio sum(totals) / sum(counts). States of one game
are not independent, so games are what is resampled. All intervals are 95 %.

Which interval is used where:

| quantity | interval |
|---|---|
| success rate, one episode per game | Wilson (1927) |
| share of states | Wilson with the effective number of states: n over the design effect (1) |
| mean over states or episodes | cluster bootstrap over games, expanded percentile (2) |
| difference on the same games, one episode per game | Bonett and Price (3) |
| difference on the same games, over states | the wider of (2), paired, and (3) over states |
| few games, or equal values in all games | rows one and four, with n = number of games |

(1) Kish 1965, with t for few games: Korn and Graubard 1998. (2) Hesterberg 2015. (3) Bonett and
Price 2012, for paired proportions.

The last row is needed because equal values have no spread to resample: 60 wins in 60 games do not
prove a rate of 1. The design effect in row two and the floor in row five are needed because a
bootstrap misses rare events that were not seen: 4 discordant games of 60, all one way, have an
exact p of 0.125, but a bootstrap's interval excludes 0. In simulations the intervals of rows one,
two, four and five held the true value 91 % of the time or more; the worst (86 to 90 %) were shares
of 1 to 2 % that occur in a handful of games.

Sources: Wilson 1927, JASA 22:209. Kish 1965, Survey Sampling. Korn and Graubard 1998, Survey
Methodology 24:193 (score intervals with an effective sample size and its t adjustment). Hesterberg
2015, The American Statistician 69:371. Bonett and Price 2012, J. Educational and Behavioral
Statistics 37:479. McNemar 1947, Psychometrika 12:153 (exact form: a sign test on the discordant
pairs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

Numbers = Sequence[float] | np.ndarray  # one per game

LEVEL = 0.95
RESAMPLES = 10_000
SEED = 0
_Z = float(stats.norm.ppf(0.5 + LEVEL / 2))


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
      value, low, high: None where nothing was measured; never nan.
      n: number of states or episodes.
      games: number of games that they come from.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    games: int

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


def bonett_price(net: float, discordant: float, n: float) -> tuple[float, float]:
    """Return the adjusted Wald interval of a paired difference `net / n`.

    `discordant`: sum of squares of the n paired differences. For paired binary outcomes `net` is
    b - c and `discordant` is b + c. The adjustment adds one pair of each discordant kind, so the
    interval has a width even when no pair differs. The same two pairs are added to differences
    beyond -1..1 (a change of a gap).
    """
    centre = net / (n + 2)
    variance = max((discordant + 2) / (n + 2) - centre**2, 0.0)
    half = _Z * np.sqrt(variance / (n + 2))
    return float(centre - half), float(centre + half)


def sign_test(differences: Numbers) -> float:
    """Return the two-sided exact p-value of "games go one way as often as the other".

    With one episode per game this is McNemar's exact test.
    """
    differences = np.asarray(differences, dtype=float)
    up, down = int((differences > 0).sum()), int((differences < 0).sum())
    return float(stats.binomtest(up, up + down, 0.5).pvalue) if up + down else 1.0


def rate(totals: Numbers, counts: Numbers) -> Estimate:
    """Return a proportion: `totals[g]` hits among the `counts[g]` states or episodes of game g.

    Games without a count are excluded.
    """
    totals, counts = _counted(totals, counts)
    games, n = len(counts), int(counts.sum())
    if not games:
        return NOTHING
    value = float(totals.sum() / n)
    size = (
        games
        if n == games or _too_uniform(totals / counts, 5)
        else _effective_size(value, totals, counts)
    )
    return Estimate(value, *wilson(value, size), n, games)


def mean(totals: Numbers, counts: Numbers, upper: float, low: float = 0.0) -> Estimate:
    """Return the mean of a quantity from `low` to `upper`, from totals and counts by game.

    Where the games' means are equal, or few, the interval is Wilson's of the place between both
    limits: as wide for a value on a limit, and for one in the middle, as a share's would be.
    """
    totals, counts = _counted(totals, counts)
    if not len(counts):
        return NOTHING
    value, by_game = float(totals.sum() / counts.sum()), totals / counts
    if _too_uniform(by_game):
        low = min(low, float(by_game.min()))
        span = max(upper - low, float(by_game.max()) - low, 1e-9)
        place = min(max((value - low) / span, 0.0), 1.0)
        ends = [low + span * edge for edge in wilson(place, len(counts))]
    else:
        ends = list(_bootstrap([(1, totals, counts)]))
    return Estimate(value, min(ends[0], value), max(ends[1], value), int(counts.sum()), len(counts))


def contrast(
    terms: Sequence[tuple[int, Numbers, Numbers]],
) -> Estimate:
    """Return a signed sum of proportions that were measured on the same games.

    Each term is (+1 or -1, totals by game, counts by game). Two terms are a paired difference (the
    gap; an arm against another), four are a change of a difference. A game without a count in any
    term is excluded. `n` is the smallest term's number of states.
    """
    signs = [sign for sign, _, _ in terms]
    totals = [np.asarray(t, dtype=float) for _, t, _ in terms]
    counts = [np.asarray(c, dtype=float) for _, _, c in terms]
    measured = np.all([c > 0 for c in counts], axis=0)
    if not measured.any():
        return NOTHING
    totals, counts = [t[measured] for t in totals], [c[measured] for c in counts]
    games = int(measured.sum())
    value = float(sum(s * t.sum() / c.sum() for s, t, c in zip(signs, totals, counts, strict=True)))
    differences = sum(s * t / c for s, t, c in zip(signs, totals, counts, strict=True))
    n = int(min(c.sum() for c in counts))
    if n == games or _too_uniform(differences):
        low, high = bonett_price(differences.sum(), (differences**2).sum(), games)
    else:
        states = np.min(counts, axis=0)
        # Of each game, the net number of states that differ.
        discordant = np.abs(differences * states).sum()
        floor = bonett_price(value * states.sum(), discordant, states.sum())
        low, high = _union(_bootstrap(list(zip(signs, totals, counts, strict=True))), floor)
    reach = len(terms) / 2
    return Estimate(value, max(min(low, value), -reach), min(max(high, value), reach), n, games)


def _counted(totals: Numbers, counts: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Return the games that have a count."""
    totals, counts = np.asarray(totals, dtype=float), np.asarray(counts, dtype=float)
    return totals[counts > 0], counts[counts > 0]


def _too_uniform(by_game: np.ndarray, fewest: int = 10) -> bool:
    return len(by_game) < fewest or float(np.ptp(by_game)) < 1e-9


def _effective_size(value: float, totals: np.ndarray, counts: np.ndarray) -> float:
    """Return how many independent states would give this ratio its variance over games.

    At most the number of states.
    """
    games, n = len(counts), counts.sum()
    variance = ((totals - value * counts) ** 2).sum() * games / (games - 1) / n**2
    widening = (stats.t.ppf(0.5 + LEVEL / 2, games - 1) / _Z) ** 2
    return float(min(n, value * (1 - value) / (variance * widening)))


def _union(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    return min(first[0], second[0]), max(first[1], second[1])


def _bootstrap(terms: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Return the expanded percentile interval of sum_i sign_i * ratio_i.

    The games of all terms are resampled together, RESAMPLES times with a fixed seed. The
    percentiles are those of a t with games - 1 degrees of freedom, times
    sqrt(games / (games - 1)): a plain percentile interval is too narrow for few games (Hesterberg
    2015, section 4.3).
    """
    games = len(terms[0][1])
    weights = _resamples(games)
    sums = weights @ np.stack(
        [column for _, totals, counts in terms for column in (totals, counts)], axis=1
    )
    values = sum(sign * sums[:, 2 * i] / sums[:, 2 * i + 1] for i, (sign, _, _) in enumerate(terms))
    tail = stats.norm.cdf(-np.sqrt(games / (games - 1)) * stats.t.ppf(0.5 + LEVEL / 2, games - 1))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


@lru_cache(maxsize=2)
def _resamples(games: int) -> np.ndarray:
    """Return [RESAMPLES, games]: how often each game is drawn."""
    drawn = np.random.default_rng(SEED).multinomial(
        games, np.full(games, 1 / games), size=RESAMPLES
    )
    return drawn.astype(float)
