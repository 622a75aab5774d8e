"""The study's verdicts: where each gain landed by the primary measure, at one level for all.

A config fixes what the verdicts are about (`config.primary`): a measure, a pair of kinds of action,
and a margin within which the gap did not change. Its arms and domains are one family of tests, so
that the chance of a false verdict anywhere is at most 5 %. Everything else on the page is described
by intervals that stand alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cotjax.diagnostics.metrics import METRICS, contrast
from cotjax.diagnostics.progress import progress_metric
from cotjax.diagnostics.share import (
    MARGIN,
    MISSING,
    Placement,
    Verdict,
    decide,
    place_gain,
    share_of_gain,
)
from cotjax.diagnostics.statistics import Estimate
from cotjax.report.compare import MEASURES, Curve, Curves, SeedCurves, rounded
from cotjax.report.rows import PlacedGain, Primary
from cotjax.report.summary import Arm
from cotjax.rollout.elicitation import CONSTRAINED

_Placed = dict[tuple[str, str], Placement]


def primary_of(run: Mapping[str, Any]) -> Primary:
    """Return what a run's config fixed for its verdicts.

    Of a run that fixed nothing each domain has its own measure: success of whole episodes where no
    arm has a mode on the floor or ceiling, else D1.
    """
    given = (run.get("config") or {}).get("primary")
    if not isinstance(given, Mapping) or given.get("measure") not in ("d3", "d1"):
        return Primary("")
    constrained = all(str(kind).endswith("_constrained") for kind in given.get("kinds") or [""])
    margin = float(given.get("margin") or MARGIN)
    arms, domains = (tuple(map(str, given.get(name) or ())) for name in ("arms", "domains"))
    return Primary(str(given["measure"]), constrained, margin, True, arms, domains)


def placements(
    arms: Mapping[str, Arm],
    curves: Curves,
    by_seed: SeedCurves,
    domains: Sequence[str],
    last: int,
    primary: Primary,
    expert: bool = True,
) -> tuple[tuple[PlacedGain, ...], Primary]:
    """Return where every arm's gain landed, by every measure, and the size of the family.

    `expert`: whether the world has one, who can say how far episodes got.
    """
    # Of a config that took the place of another's arms with its own, all have verdicts.
    primary = replace(primary, arms=tuple(arm for arm in primary.arms if arm in arms))
    if last == 0:
        return (), primary
    rows: list[PlacedGain] = []
    for domain in domains:
        placed: dict[tuple[str, bool], dict[str, Placement]] = {
            kind: {
                arm: _place(curves[arm], domain, last, names, primary.margin)
                for arm in arms
                if {(0, domain), (last, domain)} <= curves[arm].keys()
            }
            for kind, names in MEASURES.items()
        }
        chosen = (primary.measure, primary.constrained) if primary.fixed else _usable(placed)
        for kind, by_arm in placed.items():
            for arm, placement in by_arm.items():
                if kind != chosen and placement.verdict is Verdict.MISSING:
                    continue
                shares = _seed_shares(arms[arm], by_seed, domain, last, MEASURES[kind])
                row = PlacedGain(arm, domain, *kind, kind == chosen, placement, shares)
                if kind == chosen and placement.verdict is Verdict.FLOOR:
                    row = _with_progress(row, curves[arm], last, expert)
                rows.append(row)
    family = {
        (row.arm, row.domain): row.placement
        for row in rows
        if row.primary and primary.covers(row.arm, row.domain)
    }
    decided = decide(family)
    tests = 2 * sum(each.verdict is not Verdict.MISSING for each in family.values())
    return tuple(_decided(row, decided) for row in rows), replace(primary, tests=tests)


def _usable(placed: Mapping[tuple[str, bool], Mapping[str, Placement]]) -> tuple[str, bool]:
    unusable = Verdict.FLOOR, Verdict.MISSING
    by_success = placed["d3", False].values()
    return ("d1" if any(each.verdict in unusable for each in by_success) else "d3"), False


def _decided(row: PlacedGain, decided: _Placed) -> PlacedGain:
    if row.primary and (row.arm, row.domain) in decided:
        placement = decided[row.arm, row.domain]
    elif row.placement.verdict in (Verdict.FLOOR, Verdict.MISSING):
        placement = row.placement
    else:
        placement = replace(row.placement, verdict=Verdict.DESCRIBED)
    return replace(row, placement=_rounded(placement))


def _place(
    curve: Curve, domain: str, last: int, names: tuple[str, str, str], margin: float
) -> Placement:
    placement = place_gain(curve[0, domain], curve[last, domain], *names, margin)
    return placement if placement.verdict is not Verdict.MISSING else MISSING


def _rounded(placement: Placement) -> Placement:
    return replace(
        placement,
        share=rounded(placement.share),
        total=rounded(placement.total),
        prompt=rounded(placement.prompt),
        gap=rounded(placement.gap),
        levels={verdict: _digits(p) for verdict, p in placement.levels.items()},
        steady_p=_digits(placement.steady_p),
        adjusted_p=_digits(placement.adjusted_p),
        steady_adjusted_p=_digits(placement.steady_adjusted_p),
    )


def _digits(p: float) -> float:
    return float(f"{p:.4g}")


def _with_progress(row: PlacedGain, curve: Curve, last: int, expert: bool) -> PlacedGain:
    """Return a row on the floor with how much farther episodes got."""
    drivers = CONSTRAINED if row.constrained else ("cot", "prompt")
    plan = [progress_metric(driver) for driver in drivers]
    score = [metric for metric in map("score_{}".format, drivers) if metric in METRICS]
    found = dict(_progress(curve, row.domain, last, [*plan, *score]))
    if found.keys() & {*plan}:
        return replace(row, progress=found, progress_known="measured")
    return replace(row, progress=found, progress_known="not measured" if expert else "not defined")


def _progress(
    curve: Curve, domain: str, last: int, metrics: Sequence[str]
) -> Iterator[tuple[str, Estimate]]:
    """Yield the change of each metric that was measured at both ends."""
    for metric in metrics:
        change = contrast([(1, curve[last, domain], metric), (-1, curve[0, domain], metric)])
        if change.measured:
            yield metric, rounded(change)


def _seed_shares(
    arm: Arm, by_seed: SeedCurves, domain: str, last: int, names: tuple[str, str, str]
) -> dict[str, float]:
    """Return the share of the gain for each seed of an arm; {} with one seed."""
    shares = {}
    for name in arm.seeds if len(arm.seeds) > 1 else ():
        ends = by_seed[name].get((0, domain)), by_seed[name].get((last, domain))
        if ends[0] is not None and ends[1] is not None:
            share = rounded(share_of_gain(ends[0], ends[1], names[0], names[1])).value
            if share is not None:
                shares[name] = share
    return shares
