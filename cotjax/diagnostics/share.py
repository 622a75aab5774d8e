"""Where a gain landed: the part of it that the prompt action alone already shows.

The estimand is Δprompt / Δtotal: the change of the prompt action over the change of the CoT action,
from the base to a checkpoint, on the same games. What is left of 1 is the share of the gap, the CoT
advantage. A share below 0 says that the prompt action got worse, one above 1 that the gap narrowed.

Its interval is Fieller's: every share s for which Δprompt - s·Δtotal is not clearly different from
0, so it needs no bootstrap and has no seed. The variances are those of ratios over games
(linearised), plus Bonett and Price's pair of discordant states for each change, and the quantile is
that of t with games - 1 degrees of freedom. Where Δtotal itself is not clearly above 0 no interval
is bounded, and there is no gain to place.

A verdict follows from the interval alone: it names the place with more than half of the gain, or
"in both" where each clearly has a part and neither clearly most of it. Two comparisons with 0, of
Δprompt and of the change of the gap, would not do: "significant" beside "not significant" is no
difference.

Sources: Fieller 1954, J. Royal Statistical Society B 16:175. Bonett and Price 2012, J. Educational
and Behavioral Statistics 37:479. Gelman and Stern 2006, The American Statistician 60:328.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats

from cotjax.diagnostics.metrics import Point, by_game, contrast, shared_keys
from cotjax.diagnostics.statistics import LEVEL, NOTHING, Estimate

# Most of a gain is in one place where the other has less than this share of it.
HALF = 1 / 2
# A rate below FLOOR at both ends, or above 1 - FLOOR at both, says nothing about a change.
FLOOR = 0.05


class Verdict(StrEnum):
    """Where most of a gain landed."""

    ADVANTAGE = "in the CoT advantage"
    PROMPT = "in the prompt action"
    BOTH = "in both"
    UNPLACED = "not placed"
    NO_GAIN = "no clear gain"
    FLOOR = "not measurable"
    MISSING = "not measured"


@dataclass(frozen=True)
class Placement:
    """The verdict on one change of a CoT action, and what it follows from.

    Attributes:
      share: Δprompt / Δtotal; its ends are None where no interval is bounded.
      total, prompt, gap: the three changes; total = prompt + gap.
      floor: names of the metrics that are on the floor or ceiling at both ends.
    """

    verdict: Verdict
    share: Estimate
    total: Estimate
    prompt: Estimate
    gap: Estimate
    floor: tuple[str, ...] = ()


MISSING = Placement(Verdict.MISSING, NOTHING, NOTHING, NOTHING, NOTHING)


def place_gain(first: Point, last: Point, total: str, prompt: str, gap: str) -> Placement:
    """Place the gain from `first` to `last` in the prompt action or in the gap.

    `total`, `prompt`, `gap`: names of the metrics of the CoT action, of the prompt action, and of
    their difference.
    """
    moved, by_prompt, by_gap = (
        contrast([(1, last, name), (-1, first, name)]) for name in (total, prompt, gap)
    )
    if not (moved.measured and by_prompt.measured and by_gap.measured):
        return MISSING
    share = share_of_gain(first, last, total, prompt)
    floor = tuple(name for name in (total, prompt) if on_the_floor(first, last, name))
    return Placement(_verdict(share, moved, floor), share, moved, by_prompt, by_gap, floor)


def on_the_floor(first: Point, last: Point, metric: str) -> bool:
    """Whether a rate is below FLOOR, or above 1 - FLOOR, at both ends."""
    ends = [point.estimate(metric).value for point in (first, last)]
    rates = [value for value in ends if value is not None]
    return all(rate < FLOOR for rate in rates) or all(rate > 1 - FLOOR for rate in rates)


def _verdict(share: Estimate, total: Estimate, floor: tuple[str, ...]) -> Verdict:
    if floor:
        return Verdict.FLOOR
    if total.sign <= 0 or share.low is None or share.high is None:
        return Verdict.NO_GAIN
    if share.high < HALF:
        return Verdict.ADVANTAGE
    if share.low > HALF:
        return Verdict.PROMPT
    return Verdict.BOTH if share.low > 0 and share.high < 1 else Verdict.UNPLACED


def share_of_gain(first: Point, last: Point, total: str, prompt: str) -> Estimate:
    """Return Δprompt / Δtotal with Fieller's interval, on the games that all four rates have.

    Its ends are None where no interval is bounded; nothing is measured where Δtotal is 0.
    """
    cells = [point.cells.get(name, {}) for name in (total, prompt) for point in (last, first)]
    keys = shared_keys(cells)
    games = len({game for game, _ in keys})
    if games < 2:
        return NOTHING
    # [rates, games, 2]: totals and counts.
    sums = np.stack([np.stack(by_game(each, keys), axis=-1) for each in cells])
    rates = sums[:, :, 0].sum(1) / sums[:, :, 1].sum(1)
    influence = (sums[:, :, 0] - rates[:, None] * sums[:, :, 1]) / sums[:, :, 1].sum(1)[:, None]
    whole, part = float(rates[0] - rates[1]), float(rates[2] - rates[3])
    moves = np.stack([influence[0] - influence[1], influence[2] - influence[3]])
    states = int(sums[:, :, 1].sum(1).min())
    # The pair of each change: one state up, one down, unrelated to the other change's.
    variance = moves @ moves.T * games / (games - 1) + 2 / (states + 2) ** 2 * np.eye(2)
    if whole == 0:
        return NOTHING
    ends = fieller(part, whole, variance, games - 1)
    low, high = ends if ends is not None else (None, None)
    return Estimate(part / whole, low, high, states, games)


def fieller(
    part: float, whole: float, variance: np.ndarray, freedom: float
) -> tuple[float, float] | None:
    """Return Fieller's 95 % interval of part / whole; None where it is not bounded.

    Args:
      variance: [2, 2] of the estimates of (whole, part).
      freedom: degrees of freedom of the variance.
    """
    square = float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) ** 2
    # (part - s whole)^2 <= square * Var(part - s whole), a quadratic in s.
    a = whole**2 - square * variance[0, 0]
    b = part * whole - square * variance[0, 1]
    c = part**2 - square * variance[1, 1]
    if a <= 0:
        return None
    half = float(np.sqrt(max(b**2 - a * c, 0.0)))
    return float((b - half) / a), float((b + half) / a)
