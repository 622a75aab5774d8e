"""Intervals and p-values by the formulas of docs/statistics.md, from cells of a study.

A cell is what one episode or state adds to a metric: (game, sample) -> [total, number]. A ratio has
its cells by training seed; what belongs to every seed, the base, has them under None.

`cotjax.diagnostics.statistics` computes the same another way, by influences summed over axes. Here
a spread comes from the variances of a two-way table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cotjax.check.student import root, sign_test, t_quantile

Cells = Mapping[tuple[str, int], Sequence[float]]
Seed = int | str | None
# Weight of a ratio in a sum, and its cells by seed.
Term = tuple[float, Mapping[Seed, Cells]]
Number = dict[str, Any]

TAIL = 0.025
Z = t_quantile(TAIL, math.inf)
# Two states of a game are taken to agree this much where no events show it.
LIKENESS = 0.1
_LEAST = 1e-12  # no p-value is below
NOTHING: Number = {"value": None, "low": None, "high": None, "n": 0, "games": 0, "seeds": 1}


class Spread:
    """The spread of a sum: (variance, degrees of freedom) of its independent parts."""

    def __init__(self, *parts: tuple[float, float]) -> None:
        self.parts = parts

    def half(self, tail: float = TAIL) -> float:
        """Return how far an interval reaches that leaves `tail` on either side."""
        whole = math.fsum(v for v, _ in self.parts)
        # The quantile is the mean of those of the parts, weighed by variance.
        return sum(v / whole * t_quantile(tail, f) for v, f in self.parts if v) * math.sqrt(whole)

    def p_above(self, distance: float) -> float:
        """Return the tail of the interval that reaches this far."""
        if distance <= 0:
            return 0.5 if distance == 0 else 1 - self.p_above(-distance)
        if self.half(_LEAST) <= distance:
            return _LEAST
        ends = math.log(_LEAST), math.log(0.5)
        return math.exp(root(lambda log: self.half(math.exp(log)) - distance, *ends))


def spread_of(errors: np.ndarray, *, times: float = 1.0, known: float = 0.0) -> Spread:
    """Return the spread over games, and over seeds where there are several.

    Args:
      errors: [seeds, games], what each game under each seed adds to the error; sum 0.
      times: the estimate is multiplied by this.
      known: a further variance, which is not estimated.
    """
    seeds, games = errors.shape
    parts: list[tuple[float, float]] = []
    if games > 1:
        of_games = games * float(np.var(errors.sum(0), ddof=1))
        parts.append((of_games, games - 1.0))
        if seeds > 1:
            of_seeds = seeds * float(np.var(errors.sum(1), ddof=1))
            # What neither the game nor the seed explains, by a two-way analysis of variance.
            both = errors - errors.mean(0, keepdims=True) - errors.mean(1, keepdims=True)
            square = float(np.square(both + errors.mean()).sum()) / ((seeds - 1) * (games - 1))
            rest = seeds * games * square
            parts.append((max(of_seeds - 0.75 * rest, 0.0), seeds - 1.0))
    scaled = [(times**2 * variance, freedom) for variance, freedom in parts]
    return Spread(*scaled, *([(known, math.inf)] if known else []))


def paired(terms: Sequence[Mapping[Seed, Cells]]) -> list[list[Cells]]:
    """Return rows of cells, one for each seed that all terms have.

    None goes with every seed. Terms whose seeds are known and differ are paired in order.
    """
    with_seeds = [list(term) for term in terms if None not in term]
    if not with_seeds:
        return [[term[None] for term in terms]]
    first, *others = with_seeds
    common = [seed for seed in first if all(seed in other for other in others)]
    chosen = (
        [[seed] * len(with_seeds) for seed in common]
        if common
        else [list(row) for row in zip(*with_seeds, strict=False)]
    )
    rows = []
    for seeds in chosen:
        left = list(seeds)
        rows.append([term[None] if None in term else term[left.pop(0)] for term in terms])
    return rows


def tables(terms: Sequence[Mapping[Seed, Cells]]) -> tuple[np.ndarray, np.ndarray]:
    """Return totals and numbers, [terms, seeds, games], on the samples that all terms have.

    A game under a seed is 0 where a term lacks it. Seeds and games without anything are left out.
    """
    rows = paired(terms)
    sums: dict[tuple[int, int, str], list[float]] = {}
    for row, cells in enumerate(rows):
        common = set.intersection(*({key for key in each if each[key][1]} for each in cells))
        for number, each in enumerate(cells):
            for key in common:
                cell = sums.setdefault((number, row, key[0]), [0.0, 0.0])
                cell[0] += each[key][0]
                cell[1] += each[key][1]
    seen_rows = sorted({row for _, row, _ in sums})
    games = sorted({game for _, _, game in sums})
    both = np.array(
        [
            [[sums.get((number, row, game), (0.0, 0.0)) for game in games] for row in seen_rows]
            for number in range(len(terms))
        ]
    ).reshape(len(terms), len(seen_rows), len(games), 2)
    return both[..., 0], both[..., 1]


def rate(cells: Mapping[Seed, Cells]) -> Number:
    """Return a share of states or episodes: Wilson's interval with an effective number of them."""
    totals, numbers = (each[0] for each in tables([cells]))
    if not numbers.size:
        return dict(NOTHING)
    states, value = float(numbers.sum()), float(totals.sum() / numbers.sum())
    size = states / _design_effect(totals, numbers, value, states)
    # Wilson: the shares that a test of the normal approximation does not reject.
    middle = (value + Z**2 / (2 * size)) / (1 + Z**2 / size)
    half = Z * math.sqrt(value * (1 - value) / size + Z**2 / (4 * size**2)) / (1 + Z**2 / size)
    low = 0.0 if value <= 0 else min(middle - half, value)
    high = 1.0 if value >= 1 else max(middle + half, value)
    return _number(value, low, high, states, numbers)


def mean(cells: Mapping[Seed, Cells], least: float, most: float) -> Number:
    """Return a mean of a quantity from `least` to `most`, as if one more state were at each."""
    totals, numbers = (each[0] for each in tables([cells]))
    if not numbers.size:
        return dict(NOTHING)
    states, value = float(numbers.sum()), float(totals.sum() / numbers.sum())
    least, most = min(least, value), max(most, value)
    together = _together(numbers.sum(0))
    units = states / (together if numbers.shape[1] == 1 else 1 + (together - 1) * LIKENESS)
    kept = units / (units + 2)
    centre = (units * value + least + most) / (units + 2)
    known = ((most - value) ** 2 + (value - least) ** 2) / (units + 2) ** 2
    half = spread_of((totals - value * numbers) / states, times=kept, known=known).half()
    low, high = max(centre - half, least), min(centre + half, most)
    return _number(value, min(low, value), max(high, value), states, numbers)


@dataclass(frozen=True)
class Sum:
    """A weighted sum of ratios. `reach`: it is within -reach..reach."""

    value: float
    centre: float
    spread: Spread
    reach: float
    states: float
    numbers: np.ndarray

    def number(self) -> Number:
        """Return the value with its interval."""
        half = self.spread.half()
        low = max(min(self.centre - half, self.value), -self.reach)
        high = min(max(self.centre + half, self.value), self.reach)
        return _number(self.value, low, high, self.states, self.numbers)

    @property
    def p(self) -> float:
        """Two-sided p-value of a sum other than 0."""
        return 2 * self.spread.p_above(abs(self.centre))


class Together:
    """Ratios on the same games, of which sums are taken. `span`: most minus least of each."""

    def __init__(self, terms: Sequence[Mapping[Seed, Cells]], span: float = 1.0) -> None:
        self.totals, self.numbers = tables(terms)
        self.span = span

    def sum(self, weights: Sequence[float]) -> Sum | None:
        """Return the sum with these weights, as if half a state more went up and half down."""
        totals, numbers = self.totals / self.span, self.numbers
        if not numbers.size:
            return None
        weight, states = np.array(weights)[:, None, None], numbers.sum((1, 2), keepdims=True)
        ratios = totals.sum((1, 2), keepdims=True) / states
        errors = (weight * (totals - ratios * numbers) / states).sum(0)
        # By how many states each game moved, in the term that weighs most.
        games = (weight[:, 0] * totals.sum(1) / numbers.sum(1)).sum(0)
        fewest, largest = numbers.min(0).sum(0), float(np.abs(weight).max())
        moved = games * fewest / max(largest, 1e-300)
        together = _together(fewest)
        if len(fewest) > 1:
            assumed = 1 + (together - 1) * LIKENESS
            trust = 8 * assumed * (assumed - 1) + 1
            # A gain that all games share is no sign that the states of a game move together.
            own = moved - fewest * moved.sum() / fewest.sum()
            size = (float(own @ own) + trust * assumed) / (float(np.abs(moved).sum()) + trust)
            together = min(max(size, 1.0), max(together, 1.0))
        units = float(fewest.sum()) / together
        kept, value = units / (units + 2), float((weight * ratios).sum()) * self.span
        pairs = (largest * self.span / (units + 2)) ** 2
        spread = spread_of(errors * self.span, times=kept, known=pairs)
        # All that is added at its most and all that is subtracted at its least, or the reverse.
        ends = float(weight.clip(0).sum()), float(-weight.clip(None, 0).sum())
        reach = max(max(ends) * self.span, abs(value))
        return Sum(value, kept * value, spread, reach, float(states.min()), numbers)


def combine(terms: Sequence[Term], span: float = 1.0) -> Sum | None:
    """Return a weighted sum of ratios on the same games; None where no game has all."""
    return Together([cells for _, cells in terms], span).sum([weight for weight, _ in terms])


def contrast(terms: Sequence[Term], span: float = 1.0) -> Number:
    """Return a weighted sum with its interval."""
    found = combine(terms, span)
    return dict(NOTHING) if found is None else found.number()


def games_p(terms: Sequence[Term]) -> float | None:
    """Return the p-value of a sum over games: of the sign test with one seed, else the interval's.

    Games are compared to 1e-9, since 1 - 2/3 - 1/3 is 0 and its floating-point sum is not.
    """
    totals, numbers = tables([cells for _, cells in terms])
    if not numbers.size:
        return None
    if len(paired([cells for _, cells in terms])) > 1:
        found = combine(terms)
        return None if found is None else found.p
    moved = sum(weight * totals[i, 0] / numbers[i, 0] for i, (weight, _) in enumerate(terms))
    moved = np.asarray(moved)
    return sign_test(int((moved > 1e-9).sum()), int((moved < -1e-9).sum()))


def _design_effect(totals: np.ndarray, numbers: np.ndarray, value: float, states: float) -> float:
    """Return by how much the states of a game, and of a seed, widen a rate's variance."""
    together = _together(numbers.sum(0))
    if together == 1 or numbers.shape[1] == 1:
        return together
    events, seen = states * min(value, 1 - value), 1.0
    if events:
        reach = spread_of((totals - value * numbers) / states).half()
        seen = (reach / Z) ** 2 * states / (value * (1 - value))
    if len(numbers) == 1:
        seen = min(seen, together)
    assumed = 1 + (together - 1) * LIKENESS
    trust = 3 * (assumed - 1) + 1
    return (events * max(seen, 1.0) + trust * assumed) / (events + trust)


def _together(states: np.ndarray) -> float:
    """Return how many states of a game are one where all of them agree (Kish)."""
    return float(states @ states / states.sum())


def _number(value: float, low: float, high: float, states: float, numbers: np.ndarray) -> Number:
    """`numbers`: [terms, seeds, games] or [seeds, games]."""
    seeds, games = numbers.shape[-2:]
    found = {"value": value, "low": low, "high": high}
    return found | {"n": int(states), "games": games, "seeds": seeds}
