"""Changes from the base, differences between arms, trends and the split of the gap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cotjax.diagnostics.metrics import Point, Pool, Signed, combine, contrast, contrast_p
from cotjax.diagnostics.probes import PROBE_METRICS
from cotjax.diagnostics.statistics import Estimate
from cotjax.report.arms import twin_of
from cotjax.report.rows import ArmDifference, Change, GapSplit, Seeds, Trend
from cotjax.report.summary import Arm

# (checkpoint, domain) -> the points of an arm's seeds together.
Curve = Mapping[tuple[int, str], Pool]
# Arm of the summary -> its curve.
Curves = Mapping[str, Curve]
# Member (`cotjax.runtime.members`) -> (checkpoint, domain) -> its point.
SeedCurves = Mapping[str, Mapping[tuple[int, str], Point]]

# What is compared across checkpoints and arms: success and its gap, which are also tested, the
# actions on expert states, and what probes measure.
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
    *PROBE_METRICS,
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
    arms: Mapping[str, Arm], curves: Curves, by_seed: SeedCurves, domains: Sequence[str], last: int
) -> Iterator[Change]:
    """Yield the change of every metric from the base to the last checkpoint, where measured."""
    for arm, domain in _cells(arms, domains, last):
        for metric in COMPARED:
            terms = _ends(curves[arm], domain, last, metric)
            estimate = rounded(contrast(terms)) if len(terms) == 2 else None
            if estimate is None or not estimate.measured:
                continue
            of_seeds = {
                name: _ends(by_seed[name], domain, last, metric) for name in arms[arm].seeds
            }
            seeds, p = _seeds(of_seeds), p_value(terms, metric)
            yield Change(arm, domain, metric, 0, last, estimate, p, seeds)


def arm_differences(
    arms: Mapping[str, Arm], curves: Curves, by_seed: SeedCurves, domains: Sequence[str], last: int
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


def trends(
    arms: Mapping[str, Arm], curves: Curves, domains: Sequence[str], last: int
) -> Iterator[Trend]:
    """Yield the slope of every gap over the checkpoints of an arm, where three or more have it.

    The checkpoints' games are paired, and so are the seeds of those behind the base.
    """
    for arm, domain in _cells(arms, domains, last):
        for _, _, gap in MEASURES.values():
            points = {
                checkpoint: pool
                for (checkpoint, where), pool in curves[arm].items()
                if where == domain and checkpoint <= last and pool.estimate(gap).measured
            }
            if len(points) < 3:
                continue
            steps = np.array(list(points), dtype=float) / 100
            weights = (steps - steps.mean()) / np.square(steps - steps.mean()).sum()
            signed = [
                (float(weight), pool, gap)
                for weight, pool in zip(weights, points.values(), strict=True)
            ]
            if combined := combine(signed):
                estimate, p = rounded(combined.estimate()), float(f"{combined.p:.4g}")
                yield Trend(arm, domain, gap, tuple(points), estimate, p)


def splits(
    arms: Mapping[str, Arm], curves: Curves, domains: Sequence[str], last: int
) -> Iterator[GapSplit]:
    """Yield the split of every arm's gap by the prompt action of the arm trained on actions alone.

    All numbers of a split are counted on what its three rates share, so that they add up.
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
            own, direct = curves[arm][place], curves[twin][place]
            # All are counted on what the three rates share.
            shared = [(0, own, cot), (0, own, prompt), (0, direct, prompt)]
            gap = rounded(contrast([*shared, (1, own, cot), (-1, own, prompt)]))
            reasoning = rounded(contrast([*shared, (1, own, cot), (-1, direct, prompt)]))
            hidden = rounded(contrast([*shared, (1, direct, prompt), (-1, own, prompt)]))
            if gap.value is None or reasoning.value is None:
                continue
            # The parts add up to the last decimal.
            hidden = replace(hidden, value=round(gap.value - reasoning.value, 6) + 0.0)
            chosen = rounded(
                contrast([*shared, (1, own, f"{prompt}_constrained"), (-1, own, prompt)])
            )
            yield GapSplit(arm, domain, measure, last, twin, gap, reasoning, hidden, chosen)


def _cells(arms: Mapping[str, Arm], domains: Sequence[str], last: int) -> list[tuple[str, str]]:
    return [(arm, domain) for arm in arms for domain in domains] if last else []


def _ends(
    curve: Mapping[tuple[int, str], Point | Pool], domain: str, last: int, metric: str
) -> Signed:
    """Return the terms of a change from the base, those that the curve has."""
    ends = (1, curve.get((last, domain))), (-1, curve.get((0, domain)))
    return [(sign, point, metric) for sign, point in ends if point is not None]


def _same_seeds(arm: Arm, minus: Arm) -> dict[str, str]:
    """Return the members of an arm and of another that have the same seed."""
    by_seed = {seed: name for name, seed in minus.seeds.items() if seed is not None}
    return {name: by_seed[seed] for name, seed in arm.seeds.items() if seed in by_seed}


def _seeds(signed: Mapping[str, Signed]) -> Seeds | None:
    """Return each seed's contrast; None with fewer than two."""
    estimates = {name: rounded(contrast(each)) for name, each in signed.items() if len(each) == 2}
    values = {name: each.value for name, each in estimates.items() if each.value is not None}
    return Seeds(values) if len(values) > 1 else None
