"""Where gains landed, computed anew: shares with Fieller's interval, Holm's and TOST's p-values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cotjax.check.intervals import NOTHING, Number, Sum, Together
from cotjax.check.metrics import MEASURES
from cotjax.check.student import root
from cotjax.check.study import Pool, Signed, Study, combine, contrast, number_of, terms_of

LEVEL = 0.95
ALPHA = 1 - LEVEL
FLOOR = 0.05
MARGIN = 0.1
_FAR = 1000.0
ADVANTAGE, PROMPT, BOTH = "in the CoT advantage", "in the prompt action", "in both"
UNPLACED, NO_GAIN = "not placed", "no clear gain"
ON_FLOOR, MISSING, DESCRIBED = "not measurable", "not measured", "no verdict"
Row = dict[str, Any]


def primary_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's config fixed for its verdicts."""
    given = (run.get("config") or {}).get("primary")
    if not isinstance(given, dict) or given.get("measure") not in ("d3", "d1"):
        given = {}
    kinds = given.get("kinds") or [""]
    return {
        "measure": given.get("measure", ""),
        "constrained": all(str(kind).endswith("_constrained") for kind in kinds),
        "margin": float(given.get("margin") or MARGIN),
        "fixed": bool(given),
        "arms": [str(arm) for arm in given.get("arms") or ()],
        "domains": [str(domain) for domain in given.get("domains") or ()],
        "tests": 0,
    }


def placements(study: Study) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of `placements`, and of `primary` with the family's size."""
    primary = primary_of(study.run)
    primary["arms"] = [arm for arm in primary["arms"] if arm in study.arms]
    if not study.last:
        return [], primary
    rows: list[Row] = []
    for domain in study.domains:
        found: dict[tuple[str, bool], dict[str, Row]] = {kind: {} for kind in MEASURES}
        for kind, names in MEASURES.items():
            for arm in study.arms:
                ends = [study.pool(arm, checkpoint, domain) for checkpoint in (0, study.last)]
                if ends[0] is not None and ends[1] is not None:
                    found[kind][arm] = _place(ends[0], ends[1], names, primary["margin"])
        successes = {each["verdict"] for each in found["d3", False].values()}
        chosen = primary["measure"], primary["constrained"]
        if not primary["fixed"]:
            chosen = ("d1" if successes & {ON_FLOOR, MISSING} else "d3"), False
        for kind, by_arm in found.items():
            for arm, row in by_arm.items():
                if kind == chosen or row["verdict"] != MISSING:
                    rows.append(_row(study, arm, domain, kind, kind == chosen, row))
    covered = primary["domains"] or study.domains
    judged = primary["arms"] or study.arms
    family = [
        row for row in rows if row["primary"] and row["domain"] in covered and row["arm"] in judged
    ]
    primary["tests"] = _decide(family)
    for row in rows:
        if row not in family and row["verdict"] not in (ON_FLOOR, MISSING):
            row["verdict"] = DESCRIBED
    return rows, primary


def _row(
    study: Study, arm: str, domain: str, kind: tuple[str, bool], primary: bool, placed: Row
) -> Row:
    names, ends = MEASURES[kind], ((0, domain), (study.last, domain))
    seeds, shares = study.arms[arm].seeds, dict[str, float]()
    for name in seeds if len(seeds) > 1 else ():
        first, last = (study.seed_curves[name].get(end) for end in ends)
        if first is not None and last is not None:
            share = _Gain({None: first}, {None: last}, names).share()["value"]
            if share is not None:
                shares[name] = share
    progress, known = dict[str, Number](), ""
    if primary and placed["verdict"] == ON_FLOOR:
        whole = [study.curves[arm][end] for end in ends]
        end = "_constrained" if kind[1] else ""
        plan = [f"progress_{action}{end}" for action in ("cot", "prompt")]
        for metric in (*plan, *(() if kind[1] else ("score_cot", "score_prompt"))):
            change = contrast([(1, whole[1], metric), (-1, whole[0], metric)])
            if change["value"] is not None:
                progress[metric] = change
        unknown = "not measured" if study.run.get("expert", True) else "not defined"
        known = "measured" if progress.keys() & {*plan} else unknown
    about: Row = {"arm": arm, "domain": domain, "measure": kind[0], "constrained": kind[1]}
    about |= {"primary": primary, "seed_shares": shares}
    return about | {"progress": progress, "progress_known": known} | placed


class _Gain:
    """The changes of both actions on what their four rates share."""

    def __init__(self, first: Pool, last: Pool, names: tuple[str, str, str]) -> None:
        cot, prompt, _ = names
        signed: Signed = [(1, last, prompt), (-1, first, prompt), (1, last, cot), (-1, first, cot)]
        self._ratios = Together([cells for _, cells in terms_of(signed)])

    def beyond(self, share: float) -> Sum | None:
        """Return the prompt action's change minus a share of the CoT action's."""
        return self._ratios.sum([1, -1, -share, share])

    def total(self) -> Sum | None:
        """Return the CoT action's change."""
        return self._ratios.sum([0, 0, 1, -1])

    def p(self, share: float) -> float:
        """Return the p-value of a share."""
        found = self.beyond(share)
        return 1.0 if found is None else found.p

    def share(self) -> Number:
        """Return the share with every value that is not rejected (Fieller)."""
        total, prompt = self.total(), self.beyond(0)
        if total is None or prompt is None or total.numbers.shape[-1] < 2 or total.value == 0:
            return dict(NOTHING)
        value = prompt.value / total.value
        ends: list[float | None] = [None, None]
        if total.p < ALPHA:
            ends = [self._end(value, direction) for direction in (-1, 1)]
        if None in ends:
            ends = [None, None]
        return prompt.number() | {"value": value, "low": ends[0], "high": ends[1]}

    def _end(self, value: float, direction: int) -> float | None:
        def outside(share: float) -> float:
            found = self.beyond(share)
            assert found is not None
            return abs(found.centre) - found.spread.half()

        step = 0.1
        while outside(value + direction * step) <= 0:
            step *= 2
            if step > _FAR:
                return None
        return root(outside, value, value + direction * step)


def _place(first: Pool, last: Pool, names: tuple[str, str, str], margin: float) -> Row:
    """Return a placement, undecided: the verdict says where it is missing or on the floor."""
    changes = [contrast([(1, last, name), (-1, first, name)]) for name in names]
    row: Row = dict(zip(("total", "prompt", "gap"), changes, strict=True))
    row |= {"floor": [], "levels": {}, "verdict": UNPLACED}
    row |= dict.fromkeys(("steady_p", "adjusted_p", "steady_adjusted_p"), 1.0)
    if any(change["value"] is None for change in changes):
        nothing = {name: dict(NOTHING) for name in ("share", "total", "prompt", "gap")}
        return row | nothing | {"verdict": MISSING}
    gain = _Gain(first, last, names)
    row["share"] = gain.share()
    for name in names[:2]:
        rates = [number_of(where, name)["value"] for where in (first, last)]
        if max(rates) < FLOOR or min(rates) > 1 - FLOOR:
            row["floor"].append(name)
    if row["floor"]:
        return row | {"verdict": ON_FLOOR}
    row["levels"] = _levels(gain, row["share"]["value"])
    change = combine([(1, last, names[2]), (-1, first, names[2])])
    if change is not None:
        # Schuirmann: above the lower margin, and below the upper one.
        above = change.spread.p_above(change.centre + margin)
        below = 1 - change.spread.p_above(change.centre - margin)
        row["steady_p"] = max(above, below)
    return row


def _levels(gain: _Gain, share: float | None) -> dict[str, float]:
    """Return the smallest level at which an interval carries each verdict."""
    total = gain.total()
    if total is None or share is None or total.centre <= 0:
        return {}
    levels = {ADVANTAGE if share < 1 / 2 else PROMPT: max(total.p, gain.p(1 / 2))}
    if 0 < share < 1:
        levels[BOTH] = max(total.p, gain.p(0), gain.p(1))
    return levels


def _decide(family: list[Row]) -> int:
    """Decide the verdicts of a family by Holm's procedure; return the number of its tests."""
    measured = [row for row in family if row["verdict"] != MISSING]
    tests = []
    for row in measured:
        tests.append((min(row["levels"].values(), default=1.0), row, "adjusted_p"))
        tests.append((row["steady_p"], row, "steady_adjusted_p"))
    largest, left = 0.0, len(tests)
    for p, row, name in sorted(tests, key=lambda test: test[0]):
        largest = max(largest, left * p)
        row[name] = min(largest, 1.0)
        left -= 1
    for row in measured:
        if row["verdict"] == ON_FLOOR:
            continue
        p = min(row["levels"].values(), default=1.0)
        level = ALPHA * p / row["adjusted_p"]
        carried = [verdict for verdict, at in row["levels"].items() if at <= level]
        none = UNPLACED if row["total"]["low"] > 0 else NO_GAIN
        row["verdict"] = carried[0] if carried else none
    return len(tests)
