"""Changes from the base, differences between arms, placed gains and the split of the gap."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from cotjax.diagnostics.metrics import Point, Signed, contrast, contrast_p, shared_keys
from cotjax.diagnostics.share import MISSING, Placement, Verdict, place_gain, share_of_gain
from cotjax.diagnostics.statistics import LEVEL, Estimate
from cotjax.report.arms import twin_of
from cotjax.report.summary import Arm, ArmDifference, Change, GapSplit, PlacedGain, Seeds

# (checkpoint, domain) -> point of one arm.
Curve = Mapping[tuple[int, str], Point]
# Arm of the summary, or its name in the records -> its curve.
Curves = Mapping[str, Curve]

# What is compared across checkpoints and arms: success and its gap, which are also tested, and the
# actions on expert states.
COMPARED = (
    "d3_cot",
    "d3_prompt",
    "gap",
    "d3_cot_constrained",
    "d3_prompt_constrained",
    "gap_constrained",
    "d1_cot",
    "d1_prompt",
    "d1_gap",
    "d1_cot_constrained",
    "d1_prompt_constrained",
    "d1_gap_constrained",
    "d1_instructed",
    "revision",
    "revision_cot_driven",
    "revision_helpful",
    "revision_harmful",
)
_TESTED = ("d3_cot", "d3_prompt", "gap")
# (measure, constrained) -> metrics of the CoT action, of the prompt action, and of their gap.
MEASURES = {
    ("d3", False): ("d3_cot", "d3_prompt", "gap"),
    ("d1", False): ("d1_cot", "d1_prompt", "d1_gap"),
    ("d3", True): ("d3_cot_constrained", "d3_prompt_constrained", "gap_constrained"),
    ("d1", True): ("d1_cot_constrained", "d1_prompt_constrained", "d1_gap_constrained"),
}


def rounded(estimate: Estimate) -> Estimate:
    """Return an estimate rounded to 6 decimals; -0.0 becomes 0.0."""
    value, low, high = (
        None if x is None else round(x, 6) + 0.0
        for x in (estimate.value, estimate.low, estimate.high)
    )
    return replace(estimate, value=value, low=low, high=high)


def p_value(signed: Signed, metric: str) -> float | None:
    """Return the p-value of a contrast to 4 digits; None for a metric that is not tested."""
    p = contrast_p(signed) if metric in _TESTED else None
    return None if p is None else float(f"{p:.4g}")


def changes(
    arms: Mapping[str, Arm], curves: Curves, by_seed: Curves, domains: Sequence[str], last: int
) -> Iterator[Change]:
    """Yield the change of every metric from the base to the last checkpoint, where measured."""
    for arm, domain in _cells(arms, domains, last):
        for metric in COMPARED:
            terms = _ends(curves[arm], domain, last, metric)
            estimate = rounded(contrast(terms)) if len(terms) == 2 else None
            if estimate is None or not estimate.measured:
                continue
            of_seeds = {
                seed: _ends(by_seed[seed], domain, last, metric) for seed in arms[arm].seeds
            }
            seeds, p = _seeds(of_seeds), p_value(terms, metric)
            yield Change(arm, domain, metric, 0, last, estimate, p, seeds)


def arm_differences(
    arms: Mapping[str, Arm], curves: Curves, by_seed: Curves, domains: Sequence[str], last: int
) -> Iterator[ArmDifference]:
    """Yield each arm's difference from the arm that it is compared with, where measured."""
    for arm, domain in _cells(arms, domains, last):
        minus, place = arms[arm].minus, (last, domain)
        if minus is None or place not in curves[arm] or place not in curves[minus]:
            continue
        pairs = _same_seeds(arms[arm], arms[minus])
        for metric in COMPARED:
            terms = [(1, curves[arm][place], metric), (-1, curves[minus][place], metric)]
            estimate = rounded(contrast(terms))
            if not estimate.measured:
                continue
            both = {
                one: [
                    (sign, by_seed[seed][place], metric)
                    for sign, seed in ((1, one), (-1, other))
                    if place in by_seed[seed]
                ]
                for one, other in pairs.items()
            }
            seeds, p = _seeds(both), p_value(terms, metric)
            yield ArmDifference(domain, metric, arm, minus, last, estimate, p, seeds)


def placements(
    arms: Mapping[str, Arm], curves: Curves, by_seed: Curves, domains: Sequence[str], last: int
) -> Iterator[PlacedGain]:
    """Yield where every arm's gain landed, by every measure, one of them the primary one.

    The primary measure is the same for all arms of a domain, so that verdicts can be compared:
    success of whole episodes where no arm has a mode on the floor or ceiling, else D1.
    """
    if last == 0:
        return
    for domain in domains:
        placed: dict[tuple[str, bool], dict[str, Placement]] = {}
        for kind, names in MEASURES.items():
            placed[kind] = {
                arm: _place(curves[arm], domain, last, names)
                for arm in arms
                if {(0, domain), (last, domain)} <= curves[arm].keys()
            }
        by_success = placed["d3", False].values()
        unusable = Verdict.FLOOR, Verdict.MISSING
        primary = "d1" if any(each.verdict in unusable for each in by_success) else "d3"
        for (measure, constrained), by_arm in placed.items():
            for arm, placement in by_arm.items():
                chosen = measure == primary and not constrained
                if chosen or placement.verdict is not Verdict.MISSING:
                    names = MEASURES[measure, constrained]
                    shares = _seed_shares(arms[arm], by_seed, domain, last, names)
                    yield PlacedGain(arm, domain, measure, constrained, chosen, placement, shares)


def splits(
    arms: Mapping[str, Arm], curves: Curves, domains: Sequence[str], last: int
) -> Iterator[GapSplit]:
    """Yield the split of every arm's gap by the prompt action of the arm trained on actions alone.

    All numbers of a split are counted on the games that its three rates share, so that they add up.
    """
    twin = twin_of(arms)
    if twin is None or last == 0:
        return
    for arm, domain in _cells(arms, domains, last):
        place = last, domain
        if arm == twin or place not in curves[arm] or place not in curves[twin]:
            continue
        for measure in ("d3", "d1"):
            cot, prompt, _ = MEASURES[measure, False]
            own, direct = _shared(curves[arm][place], curves[twin][place], cot, prompt)
            gap = rounded(contrast([(1, own, cot), (-1, own, prompt)]))
            reasoning = rounded(contrast([(1, own, cot), (-1, direct, prompt)]))
            hidden = rounded(contrast([(1, direct, prompt), (-1, own, prompt)]))
            if gap.value is None or reasoning.value is None:
                continue
            # The parts add up to the last decimal.
            hidden = replace(hidden, value=round(gap.value - reasoning.value, 6) + 0.0)
            chosen = rounded(contrast([(1, own, f"{prompt}_constrained"), (-1, own, prompt)]))
            yield GapSplit(arm, domain, measure, last, twin, gap, reasoning, hidden, chosen)


def _cells(arms: Mapping[str, Arm], domains: Sequence[str], last: int) -> list[tuple[str, str]]:
    return [(arm, domain) for arm in arms for domain in domains] if last else []


def _ends(curve: Curve, domain: str, last: int, metric: str) -> Signed:
    """Return the terms of a change from the base, those that the curve has."""
    ends = (1, curve.get((last, domain))), (-1, curve.get((0, domain)))
    return [(sign, point, metric) for sign, point in ends if point is not None]


def _place(curve: Curve, domain: str, last: int, names: tuple[str, str, str]) -> Placement:
    placement = place_gain(curve[0, domain], curve[last, domain], *names)
    if placement is MISSING:
        return MISSING
    return replace(
        placement,
        share=rounded(placement.share),
        total=rounded(placement.total),
        prompt=rounded(placement.prompt),
        gap=rounded(placement.gap),
    )


def _seed_shares(
    arm: Arm, by_seed: Curves, domain: str, last: int, names: tuple[str, str, str]
) -> dict[str, float]:
    """Return the share of the gain for each seed of an arm; {} with one seed."""
    shares = {}
    for seed in arm.seeds if len(arm.seeds) > 1 else ():
        ends = by_seed[seed].get((0, domain)), by_seed[seed].get((last, domain))
        if ends[0] is not None and ends[1] is not None:
            share = share_of_gain(ends[0], ends[1], names[0], names[1]).value
            if share is not None:
                shares[seed] = round(share, 6) + 0.0
    return shares


def _shared(own: Point, twin: Point, cot: str, prompt: str) -> tuple[Point, Point]:
    """Return both points with the games and samples alone that all three rates have."""
    cells = own.cells.get(cot, {}), own.cells.get(prompt, {}), twin.cells.get(prompt, {})
    keys = shared_keys(cells)
    return _only(own, keys), _only(twin, keys)


def _only(point: Point, keys: Collection[tuple[str, int]]) -> Point:
    cells = {
        name: {key: cell for key, cell in each.items() if key in keys}
        for name, each in point.cells.items()
    }
    return replace(point, cells=cells)


def _same_seeds(arm: Arm, minus: Arm) -> dict[str, str]:
    """Return the names in records of an arm and of another that have the same seed."""
    by_seed = {seed: name for name, seed in minus.seeds.items() if seed is not None}
    return {name: by_seed[seed] for name, seed in arm.seeds.items() if seed in by_seed}


def _seeds(signed: Mapping[str, Signed]) -> Seeds | None:
    """Return each seed's contrast, and the t-interval of their mean; None with fewer than two."""
    estimates = {name: contrast(each) for name, each in signed.items() if len(each) == 2}
    values = {name: each.value for name, each in estimates.items() if each.value is not None}
    if len(values) < 2:
        return None
    numbers = np.array(list(values.values()))
    half = stats.t.ppf(0.5 + LEVEL / 2, len(numbers) - 1) * stats.sem(numbers)
    low, high = numbers.mean() - half, numbers.mean() + half
    return Seeds(
        {name: round(value, 6) + 0.0 for name, value in values.items()},
        round(float(low), 6) + 0.0,
        round(float(high), 6) + 0.0,
    )
