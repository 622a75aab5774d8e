"""Where each gain landed, in words that follow from the interval of its share alone."""

from __future__ import annotations

from dataclasses import dataclass

from cotjax.diagnostics.metrics import METRICS
from cotjax.diagnostics.share import Verdict
from cotjax.report.labels import capitalize, domain_label, p_text, percent, points
from cotjax.report.rows import PlacedGain
from cotjax.report.summary import Summary
from cotjax.report.warnings import cannot_differ

_MEASURES = {
    ("d3", False): "success of whole episodes (D3)",
    ("d1", False): "agreement with the expert (D1)",
    ("d3", True): "success by constrained actions (D3)",
    ("d1", True): "agreement of constrained actions with the expert (D1)",
}
_MODES = {
    "d3_cot": "success by CoT actions",
    "d3_prompt": "success by prompt actions",
    "d1_cot": "D1 of CoT actions",
    "d1_prompt": "D1 of prompt actions",
}


@dataclass(frozen=True)
class VerdictRow:
    """One verdict of the page.

    Attributes:
      measure: what was measured, in words.
      share: of the gain, in the prompt action: "12 % [2, 22]", or a dash.
      why: what the verdict follows from, or why there is none.
      kind: name of the verdict, for its colour.
      primary: the verdict that the page begins with; the others are by other measures.
    """

    label: str
    domain: str
    measure: str
    verdict: str
    share: str
    why: str
    kind: str
    primary: bool


def lead(summary: Summary) -> str:
    """Return the study in one paragraph: where the baseline's gain went, then the other arms'."""
    domain = summary.domains[0]
    if summary.last_checkpoint == 0:
        return (
            "Only the base model has been played so far: nothing has been trained, so there is no "
            f"gain to place yet. {_levels(summary, domain)}"
        )
    placed = {arm: summary.placed(arm, domain) for arm in summary.arms}
    rows = {arm: row for arm, row in placed.items() if row is not None}
    baseline = rows.pop(summary.baseline, None)
    if baseline is None or baseline.placement.verdict is Verdict.MISSING:
        return "The records are too few for an answer: see the tables for what was measured."
    others = _by_others(summary, baseline)
    sentences = [
        f"From the base to step {summary.last_checkpoint}, measured by {measure(baseline)}, "
        f"{domain_label(domain)}: the verdict on {summary.label(summary.baseline)} is "
        f"“{baseline.placement.verdict}”. {capitalize(why(baseline))}{others}"
    ]
    for verdict in Verdict:
        arms = [arm for arm, row in rows.items() if row.placement.verdict is verdict]
        if arms:
            shares = (
                f"{summary.label(arm)}{_in_brackets(rows[arm])}"
                for arm in arms
                if not summary.arms[arm].cannot_differ
            )
            if listed := "; ".join(shares):
                sentences.append(f"{capitalize(verdict)}: {listed}.")
    return " ".join(sentences)


def verdict_row(summary: Summary, row: PlacedGain) -> VerdictRow:
    """Return a verdict as the page shows it."""
    about, placement = summary.arms[row.arm], row.placement
    reason = why(row)
    if about.cannot_differ:
        reason = f"{capitalize(cannot_differ(summary, row.arm))} {capitalize(reason)}"
    return VerdictRow(
        label=about.label,
        domain=domain_label(row.domain),
        measure=measure(row),
        verdict=str(placement.verdict),
        share=share_text(row),
        why=capitalize(reason),
        kind=placement.verdict.name.lower(),
        primary=row.primary,
    )


def measure(row: PlacedGain) -> str:
    """Return what a verdict was measured by."""
    return _MEASURES[row.measure, row.constrained]


def share_text(row: PlacedGain) -> str:
    """Return the share of the gain in the prompt action; a dash where it means nothing."""
    placement = row.placement
    none = Verdict.FLOOR, Verdict.MISSING, Verdict.NO_GAIN
    if placement.verdict in none or placement.share.low is None:
        return "–"
    value, _, ends = percent(placement.share).partition(" ")
    return f"{value} % {ends}"


def why(row: PlacedGain) -> str:
    """Return what the verdict follows from, as a sentence that begins in lower case."""
    placement = row.placement
    if placement.verdict is Verdict.MISSING:
        return "it was not measured at the base and at the last checkpoint."
    moved = (
        f"CoT actions moved by {points(placement.total)}, prompt actions by "
        f"{points(placement.prompt)}, the gap by {points(placement.gap)}."
    )
    if placement.verdict is Verdict.FLOOR:
        modes = " and ".join(_MODES.get(name, name) for name in placement.floor)
        verb = "are" if len(placement.floor) > 1 else "is"
        return (
            f"{modes} {verb} below 5 % or above 95 % both at the base and now, so no change can be "
            f"seen. {moved}{_progress(row)}"
        )
    if placement.verdict is Verdict.DESCRIBED and share_text(row) == "–":
        return moved
    if placement.verdict is Verdict.NO_GAIN:
        fell = placement.total.sign < 0
        text = "CoT actions got worse: there is no gain to place" if fell else "no gain to place"
        return f"{text}. {moved}"
    text = f"{share_text(row)} of the gain is in the prompt action"
    if placement.verdict is Verdict.UNPLACED:
        text += ", an interval too wide for a verdict"
    elif placement.verdict is not Verdict.DESCRIBED:
        text += f", {p_text(placement.adjusted_p)} in the family"
    steady = " The gap stayed within the margin." if placement.steady else ""
    return f"{text}{_seed_text(row)}. {moved}{steady}"


def _progress(row: PlacedGain) -> str:
    """Return how much farther episodes got instead, in sentences that begin with a space."""
    known = "".join(
        f" {capitalize(METRICS[name].label)}: {points(change)}."
        for name, change in row.progress.items()
    )
    if row.progress_known == "not defined":
        known += " Shortening of the expert's plan: not defined, for the world has no expert."
    if row.progress_known == "not measured":
        known += (
            " Shortening of the expert's plan: not measured; `cotjax probe --only progress` does."
        )
    return known


def _seed_text(row: PlacedGain) -> str:
    if not row.seed_shares:
        return ""
    values = (f"{100 * value:.0f} %".replace("-", "−") for value in row.seed_shares.values())
    return f" (by seed: {', '.join(values)})"


def _by_others(summary: Summary, primary: PlacedGain) -> str:
    """Return the shares by other measures, as sentences that begin with a space."""
    return "".join(
        f" By {measure(row)}, {share_text(row)} of the gain is in the prompt action."
        for row in summary.placements
        if (row.arm, row.domain) == (primary.arm, primary.domain)
        and not row.primary
        and share_text(row) != "–"
    )


def _in_brackets(row: PlacedGain) -> str:
    share = share_text(row)
    return "" if share == "–" else f" ({share} in the prompt action)"


def _levels(summary: Summary, domain: str) -> str:
    """Return the base's success, in a sentence; "" where it was not measured."""
    point = summary.last(summary.baseline, domain)
    if point is None or not point.metrics["gap"].measured:
        return ""
    cot, prompt = percent(point.metrics["d3_cot"]), percent(point.metrics["d3_prompt"])
    return (
        f"Its {domain_label(domain)} success is {cot} % by CoT actions and {prompt} % by prompt "
        "actions."
    )
