"""The study's questions, answered in sentences that follow from the intervals of a summary.

Where a gain landed is the verdict of `cotjax.report.verdicts`. All else is described: a difference
is called higher or lower where its own 95 % interval excludes 0, which is no verdict, for nothing
is corrected for the number of comparisons. A rate below 5 % or above 95 % on both sides is not
compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cotjax.diagnostics.metrics import METRICS
from cotjax.diagnostics.share import FLOOR
from cotjax.diagnostics.statistics import Estimate
from cotjax.report.arms import differs_by_dropping
from cotjax.report.labels import capitalize, domain_label, p_text, percent, points
from cotjax.report.rows import ArmDifference
from cotjax.report.summary import PointSummary, Summary
from cotjax.report.verdicts import measure, why
from cotjax.report.warnings import cannot_differ

# What may differ between arms, in the words of a sentence.
_CHANGES = {
    "d3_cot": "success by CoT actions",
    "d3_prompt": "success by prompt actions",
    "gap": "the gap",
    "d1_cot": "D1 of CoT actions",
    "d1_prompt": "D1 of prompt actions",
    "revision": "the revision rate",
}


@dataclass(frozen=True)
class Finding:
    """One sentence. `where`: the arm and domain; empty for the study as a whole."""

    where: str
    text: str


@dataclass(frozen=True)
class Answer:
    """A question and its findings, one for each arm and domain."""

    question: str
    findings: tuple[Finding, ...]


def answers(summary: Summary) -> list[Answer]:
    """Return every question, answered for every arm and domain."""
    cells = [(arm, domain) for arm in summary.arms for domain in summary.domains]
    found = [
        Answer(
            "How often does reasoning revise the action?",
            tuple(_revisions(summary, *cell) for cell in cells),
        ),
        Answer("Does it help?", tuple(_help(summary, *cell) for cell in cells)),
    ]
    placed = tuple(finding for cell in cells if (finding := _elsewhere(summary, *cell)))
    if placed:
        found.insert(0, Answer("Where did the gain land by other measures?", placed))
    compared = [arm for arm, about in summary.arms.items() if about.minus]
    masked = [arm for arm in compared if differs_by_dropping(summary.arms, arm)]
    others = [arm for arm in compared if arm not in masked]
    for question, arms in (
        ("What does masking change?", masked),
        ("What do other training data change?", others),
    ):
        if arms and (findings := _differences(summary, arms)):
            found.append(Answer(question, findings))
    return found


# ---- the answers


def _elsewhere(summary: Summary, arm: str, domain: str) -> Finding | None:
    """Return the verdicts by the measures that the page does not begin with."""
    rows = [
        row
        for row in summary.placements
        if (row.arm, row.domain) == (arm, domain) and not row.primary
    ]
    texts = [f"by {measure(row)}: {why(row)}" for row in rows]
    return Finding(_where(summary, arm, domain), " ".join(map(capitalize, texts))) if rows else None


def _revisions(summary: Summary, arm: str, domain: str) -> Finding:
    where, point = _where(summary, arm, domain), summary.last(arm, domain)
    parts = []
    for metric, states in (
        ("revision", "of expert states"),
        ("revision_cot_driven", "of the states of its own CoT-driven episodes"),
    ):
        if point is not None and point.metrics[metric].measured:
            change = summary.change(arm, domain, metric)
            moved = "" if change is None else f" (from the base {points(change.estimate)})"
            parts.append(f"in {percent(point.metrics[metric], digits=1)} % {states}{moved}")
    return Finding(where, "; ".join(parts) + "." if parts else "not measured.")


def _help(summary: Summary, arm: str, domain: str) -> Finding:
    where, point = _where(summary, arm, domain), summary.last(arm, domain)
    parts = []
    if point is not None and point.metrics["d1_gap"].measured:
        net = point.metrics["d1_gap"]
        helpful, harmful = (
            f"{percent(point.metrics[name], digits=1)} %"
            for name in ("revision_helpful", "revision_harmful")
        )
        verdict = _direction(
            net, "helps more than it harms", "harms more than it helps", "no net effect shown"
        )
        parts.append(
            f"on expert states, {verdict}: helpful in {helpful}, harmful in {harmful}, net "
            f"{points(net)}"
        )
    if point is not None and point.metrics["gap"].measured:
        gap = point.metrics["gap"]
        if _extreme([point, point], ("d3_cot", "d3_prompt")):
            parts.append("over whole episodes, both kinds of action win under 5 % or over 95 %")
        else:
            verdict = _direction(gap, "it wins games", "it loses games", "no effect shown")
            test = "" if point.gap_p is None else f", exact {p_text(point.gap_p)}"
            parts.append(f"over whole episodes, {verdict}: gap {points(gap)}{test}")
    return Finding(where, "; ".join(parts) + "." if parts else "not measured.")


def _differences(summary: Summary, arms: list[str]) -> tuple[Finding, ...]:
    findings = []
    for arm in arms:
        about = summary.arms[arm]
        against = f"{capitalize(about.label)} against {summary.label(about.minus or '')}"
        if about.cannot_differ:
            findings.append(Finding(against, cannot_differ(summary, arm)))
            continue
        for domain in summary.domains:
            text = _compare(summary, arm, domain)
            if text:
                findings.append(Finding(f"{against}, {domain_label(domain)}", text))
    return tuple(findings)


def _compare(summary: Summary, arm: str, domain: str) -> str:
    """Return what is higher or lower, what is not told apart, and what is too near 0 or 1."""
    ends = [summary.last(name, domain) for name in (arm, summary.arms[arm].minus or "")]
    known = [point for point in ends if point is not None]
    apart, alike, extreme = [], [], []
    for metric, name in _CHANGES.items():
        row = summary.arm_difference(arm, domain, metric)
        if row is None:
            continue
        if _extreme(known, (metric,)):
            extreme.append(name)
        elif row.excludes_zero:
            direction = _direction(row.estimate, "higher", "lower", "")
            apart.append(f"{name} is {direction} ({points(row.estimate)}{_seeds(row)})")
        else:
            alike.append(f"{name} ({points(row.estimate)}{_seeds(row)})")
    parts = [", ".join(apart)] if apart else []
    if alike:
        parts.append("not told apart: " + ", ".join(alike))
    if extreme:
        parts.append(f"under 5 % or over 95 % on both sides: {', '.join(extreme)}")
    return "; ".join(parts) + "." if parts else ""


def _seeds(row: ArmDifference) -> str:
    return f"; {row.estimate.seeds} seeds" if row.estimate.seeds > 1 else ""


def _extreme(ends: Sequence[PointSummary], metrics: Sequence[str]) -> bool:
    """Whether these rates are all below FLOOR, or all above 1 - FLOOR, at all of these points."""
    kinds = [METRICS[name].kind for name in metrics]
    values = [point.metrics[name].value for point in ends for name in metrics]
    rates = [value for value in values if value is not None]
    if "difference" in kinds or not rates:
        return False
    return all(rate < FLOOR for rate in rates) or all(rate > 1 - FLOOR for rate in rates)


# ---- words


def _direction(estimate: Estimate, up: str, down: str, neither: str) -> str:
    return {1: up, -1: down, 0: neither}[estimate.sign]


def _where(summary: Summary, arm: str, domain: str) -> str:
    return f"{capitalize(summary.label(arm))}, {domain_label(domain)}"
