"""Where a gain landed: the part of it that the prompt action alone already shows.

The estimand is Δprompt / Δtotal: the change of the prompt action over the change of the CoT action,
from the base to a checkpoint, on the same games. What is left of 1 is the share of the gap, the CoT
advantage. A share below 0 says that the prompt action got worse, one above 1 that the gap narrowed.

Its interval is Fieller's: every share s for which Δprompt - s·Δtotal is not clearly different from
0, by the interval of `cotjax.diagnostics.statistics` for this sum of four rates. So it holds over
games, and over seeds where there are several. Where Δtotal itself is not clearly different from 0
no interval is bounded, and there is no gain to place.

A verdict follows from the interval alone: it names the place with more than half of the gain, or
"in both" where each clearly has a part and neither clearly most of it. Two comparisons with 0, of
Δprompt and of the change of the gap, would not do: "significant" beside "not significant" is no
difference.

Several arms and domains are one family, and share one level (`decide`): each has two tests, the
place of the gain and whether the gap stayed within a margin, and Holm's procedure keeps the chance
of any false verdict at 5 %. `Placement.levels` says at which level an interval would carry which
verdict.

Sources: Fieller 1954, J. Royal Statistical Society B 16:175. Gelman and Stern 2006, The American
Statistician 60:328. Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15:657 (two one-sided
tests). Holm 1979, Scandinavian J. of Statistics 6:65.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import TypeVar

import numpy as np
from scipy import optimize

from cotjax.diagnostics import statistics
from cotjax.diagnostics.metrics import Point, Pool, combine, contrast, terms_of
from cotjax.diagnostics.statistics import NOTHING, Combination, Estimate, Ratios, Term

# Most of a gain is in one place where the other has less than this share of it.
HALF = 1 / 2
# A rate below FLOOR at both ends, or above 1 - FLOOR at both, says nothing about a change.
FLOOR = 0.05
# A change of the gap by less than this is none, where the config does not say otherwise.
MARGIN = 0.1
ALPHA = 1 - statistics.LEVEL
# A share beyond this is as good as unbounded.
_FAR = 1000.0

Where = Point | Pool
Key = TypeVar("Key", bound=Hashable)


class Verdict(StrEnum):
    """Where most of a gain landed."""

    ADVANTAGE = "in the CoT advantage"
    PROMPT = "in the prompt action"
    BOTH = "in both"
    UNPLACED = "not placed"
    DESCRIBED = "no verdict"
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
      levels: verdict -> smallest level at which the share's interval carries it.
      steady_p: p-value of a gap that changed by less than the margin, by two one-sided tests.
      adjusted_p: p-value of the verdict in its family; 1 where there is none.
      steady_adjusted_p: `steady_p` in its family.
    """

    verdict: Verdict
    share: Estimate
    total: Estimate
    prompt: Estimate
    gap: Estimate
    floor: tuple[str, ...] = ()
    levels: Mapping[str, float] = field(default_factory=dict)
    steady_p: float = 1.0
    adjusted_p: float = 1.0
    steady_adjusted_p: float = 1.0

    @property
    def p(self) -> float:
        """Smallest level at which there is a verdict."""
        return min(self.levels.values(), default=1.0)

    @property
    def steady(self) -> bool:
        """Whether the gap stayed within the margin, by the family's test."""
        return self.steady_adjusted_p <= ALPHA

    def at(self, level: float) -> Verdict:
        """Return the verdict at a level; one that places the gain before "in both"."""
        if self.verdict in (Verdict.FLOOR, Verdict.MISSING):
            return self.verdict
        carried = (verdict for verdict, p in self.levels.items() if p <= level)
        unplaced = Verdict.UNPLACED if self.total.sign > 0 else Verdict.NO_GAIN
        return Verdict(next(carried, unplaced))


MISSING = Placement(Verdict.MISSING, NOTHING, NOTHING, NOTHING, NOTHING)


class Gain:
    """The changes of a CoT action and of a prompt action, on what all four rates have.

    Args:
      prompt, total: the terms of the two changes.
    """

    def __init__(self, prompt: Sequence[Term], total: Sequence[Term]) -> None:
        terms = [*prompt, *total]
        self._ratios = Ratios([(totals, counts) for _, totals, counts in terms])
        self._weights = np.array([weight for weight, _, _ in terms], dtype=float)
        self._of_prompt = np.arange(len(terms)) < len(prompt)

    @classmethod
    def of(cls, first: Where, last: Where, total: str, prompt: str) -> Gain:
        """Return the changes between two points of metrics of the CoT and the prompt action."""
        terms = terms_of(
            [(1, last, prompt), (-1, first, prompt), (1, last, total), (-1, first, total)]
        )
        return cls(terms[:2], terms[2:])

    @cached_property
    def total(self) -> Combination | None:
        """Δtotal; None where no game has all four rates."""
        return self._weighted(0, 1)

    def beyond(self, share: float) -> Combination | None:
        """Return Δprompt - share·Δtotal: above 0 where the prompt action has more than `share`."""
        return self._weighted(1, -share)

    @cached_property
    def share(self) -> Estimate:
        """Δprompt / Δtotal with Fieller's interval.

        Its ends are None where no interval is bounded; nothing is measured where Δtotal is 0.
        """
        total, prompt = self.total, self.beyond(0)
        if total is None or prompt is None or total.games < 2 or total.value == 0:
            return NOTHING
        value = prompt.value / total.value
        low = high = None
        if total.p < ALPHA:
            low, high = (self._end(value, direction) for direction in (-1, 1))
        if low is None or high is None:
            low = high = None
        return Estimate(value, low, high, prompt.n, total.games, total.seeds)

    def p(self, share: float) -> float:
        """Return the two-sided p-value of this share."""
        beyond = self.beyond(share)
        return 1.0 if beyond is None else beyond.p

    def _end(self, value: float, direction: int) -> float | None:
        """Return an end of the interval; None where it is too far to matter."""

        def outside(share: float) -> float:
            beyond = self.beyond(share)
            assert beyond is not None
            return abs(beyond.centre) - beyond.spread.half()

        step = 0.1
        while outside(value + direction * step) <= 0:
            step *= 2
            if step > _FAR:
                return None
        return float(optimize.brentq(outside, value, value + direction * step))

    def _weighted(self, prompt: float, total: float) -> Combination | None:
        weights = self._weights * np.where(self._of_prompt, prompt, total)
        return self._ratios.combine(weights.tolist())


def place_gain(
    first: Where, last: Where, total: str, prompt: str, gap: str, margin: float = MARGIN
) -> Placement:
    """Place the gain from `first` to `last` in the prompt action or in the gap.

    Args:
      total, prompt, gap: names of the metrics of the CoT action, of the prompt action, and of their
        difference.
      margin: a smaller change of the gap, to either side, makes no difference.
    """
    moved, by_prompt, by_gap = (
        contrast([(1, last, name), (-1, first, name)]) for name in (total, prompt, gap)
    )
    if not (moved.measured and by_prompt.measured and by_gap.measured):
        return MISSING
    gain = Gain.of(first, last, total, prompt)
    if floor := tuple(name for name in (total, prompt) if on_the_floor(first, last, name)):
        return Placement(Verdict.FLOOR, gain.share, moved, by_prompt, by_gap, floor)
    steady = equivalence_p(combine([(1, last, gap), (-1, first, gap)]), margin)
    found = Placement(
        Verdict.UNPLACED, gain.share, moved, by_prompt, by_gap, (), _levels(gain), steady
    )
    return replace(found, verdict=found.at(ALPHA))


def decide(family: Mapping[Key, Placement]) -> dict[Key, Placement]:
    """Return the placements of a family, with p-values and verdicts at one level for all (Holm).

    One that was measured and has no test, for it is on the floor, counts: the family is fixed
    before anything is measured.
    """
    tests = {
        (key, name): p
        for key, each in family.items()
        if each.verdict is not Verdict.MISSING
        for name, p in (("place", each.p), ("steady", each.steady_p))
    }
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    decided = {}
    for key, each in family.items():
        if each.verdict is not Verdict.MISSING:
            p = adjusted[key, "place"]
            # The level that the procedure leaves for this one; below its p where it is not carried.
            verdict = each.at(ALPHA * each.p / p)
            each = replace(
                each, verdict=verdict, adjusted_p=p, steady_adjusted_p=adjusted[key, "steady"]
            )
        decided[key] = each
    return decided


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the order given."""
    adjusted, so_far = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        so_far = max(so_far, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(so_far, 1.0)
    return adjusted


def on_the_floor(first: Where, last: Where, metric: str) -> bool:
    """Whether a rate is below FLOOR, or above 1 - FLOOR, at both ends."""
    ends = [point.estimate(metric).value for point in (first, last)]
    rates = [value for value in ends if value is not None]
    return all(rate < FLOOR for rate in rates) or all(rate > 1 - FLOOR for rate in rates)


def equivalence_p(change: Combination | None, margin: float) -> float:
    """Return the p-value of a change within -margin..margin, by two one-sided tests."""
    if change is None:
        return 1.0
    return max(change.p_above(-margin), 1 - change.p_above(margin))


def _levels(gain: Gain) -> dict[str, float]:
    """Return the smallest level at which each verdict holds.

    A verdict holds at a level if the gain is above 0 and the share's interval lies on one side of a
    half, or, where it does not, between 0 and 1.
    """
    total, share = gain.total, gain.share.value
    if total is None or share is None or total.centre <= 0:
        return {}
    place = Verdict.ADVANTAGE if share < HALF else Verdict.PROMPT
    levels = {str(place): max(total.p, gain.p(HALF))}
    if 0 < share < 1:
        levels[str(Verdict.BOTH)] = max(total.p, gain.p(0), gain.p(1))
    return levels


def share_of_gain(first: Where, last: Where, total: str, prompt: str) -> Estimate:
    """Return Δprompt / Δtotal with Fieller's interval, on what all four rates have."""
    return Gain.of(first, last, total, prompt).share
