"""The study's questions, answered in sentences that follow from the intervals of a summary.

A change or difference is stated only where its 95 % interval excludes 0; elsewhere the sentence
says that none is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from cotjax.diagnostics.statistics import Estimate
from cotjax.report.labels import capitalize, domain_label, p_text, percent, points
from cotjax.report.summary import ArmDifference, Summary

# What masking may change, in the words of a sentence.
_MASKING_CHANGES = {
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


def lead(summary: Summary) -> str:
    """Return the study in one paragraph.

    It says where the baseline's gain went, and what the other arms change out of domain.
    """
    baseline, domain = summary.baseline, summary.domains[0]
    if summary.last_checkpoint == 0:
        return (
            "Only the base model has been played so far: nothing has been trained, so there is no "
            f"gain to place yet. {_levels(summary, baseline, domain)}"
        )
    sentences = _where_the_gain_went(summary, baseline, domain)
    elsewhere = summary.domains[-1]
    for arm, about in summary.arms.items():
        difference = summary.arm_difference(arm, elsewhere, "d3_cot")
        if difference is not None and difference.estimate.measured:
            estimate = difference.estimate
            verdict = _direction(estimate, "higher", "lower", "no clear difference in")
            sentences.append(
                f"Against {summary.label(baseline)}, {about.label} shows {verdict} "
                f"{domain_label(elsewhere)} success by CoT actions ({points(estimate)})."
            )
    if not sentences:
        return "The records are too few for an answer: see the tables for what was measured."
    return " ".join(sentences)


def answers(summary: Summary) -> list[Answer]:
    """Return every question, answered for every arm and domain."""
    cells = [(arm, domain) for arm in summary.arms for domain in summary.domains]
    trained = cells if summary.last_checkpoint else []
    untrained: tuple[Finding, ...] = ()
    if not trained:
        untrained = (Finding("", "Nothing has been trained yet: only the base model has records."),)
    return [
        Answer(
            "Did the prompt action get better?",
            untrained + tuple(_prompt_action(summary, *cell) for cell in trained),
        ),
        Answer(
            "Did the CoT advantage widen?",
            untrained + tuple(_advantage(summary, *cell) for cell in trained),
        ),
        Answer(
            "How often does reasoning revise the action?",
            tuple(_revisions(summary, *cell) for cell in cells),
        ),
        Answer("Does it help?", tuple(_help(summary, *cell) for cell in cells)),
        Answer("What does masking change?", _masking(summary)),
    ]


# ---- the lead


def _where_the_gain_went(summary: Summary, arm: str, domain: str) -> list[str]:
    total, prompt, gap = (
        _change(summary, arm, domain, name) for name in ("d3_cot", "d3_prompt", "gap")
    )
    if total is None or prompt is None or gap is None:
        return []
    return [
        f"From the base to step {summary.last_checkpoint}, {summary.label(arm)} moved "
        f"{domain_label(domain)} success by CoT actions by {points(total)}. Success by prompt "
        f"actions, with no reasoning at all, moved by {points(prompt)}, and the gap between the "
        f"two by {points(gap)}: {_place_gain(total, prompt, gap)}"
    ]


def _place_gain(total: Estimate, prompt: Estimate, gap: Estimate) -> str:
    if total.sign == 0:
        return "there is no clear gain to place."
    if total.sign < 0:
        return "success fell, so there is no gain to place."
    if prompt.sign > 0 and gap.sign > 0:
        return "the gain is in both, the prompt action and the gap."
    if prompt.sign > 0:
        change = "narrowed" if gap.sign < 0 else "shows no clear change"
        return f"the gain is in the prompt action, and the gap {change}."
    if gap.sign > 0:
        return "the gain is in what reasoning adds, with no clear gain of the prompt action."
    return "the intervals are too wide to say which of the two took the gain."


def _levels(summary: Summary, arm: str, domain: str) -> str:
    """Return the success at the last checkpoint, in a sentence; "" where it was not measured."""
    point = summary.last(arm, domain)
    if point is None or not point.metrics["gap"].measured:
        return ""
    cot, prompt = percent(point.metrics["d3_cot"]), percent(point.metrics["d3_prompt"])
    return (
        f"Its {domain_label(domain)} success is {cot} % by CoT actions and {prompt} % by prompt "
        "actions."
    )


# ---- the answers


def _prompt_action(summary: Summary, arm: str, domain: str) -> Finding:
    success, aligned = (_change(summary, arm, domain, name) for name in ("d3_prompt", "d1_prompt"))
    verdict = _verdict(success, aligned, "better", "worse", "no clear change")
    return Finding(
        _where(summary, arm, domain),
        f"{verdict}. Success by prompt actions {_from_to(summary, arm, domain, 'd3_prompt')}"
        f"{_moved(success)}; agreement with the expert (D1) "
        f"{_from_to(summary, arm, domain, 'd1_prompt')}{_moved(aligned)}.",
    )


def _advantage(summary: Summary, arm: str, domain: str) -> Finding:
    success, aligned = (_change(summary, arm, domain, name) for name in ("gap", "d1_gap"))
    verdict = _verdict(success, aligned, "wider", "narrower", "no clear change")
    return Finding(
        _where(summary, arm, domain),
        f"{verdict}. The gap in success {_from_to(summary, arm, domain, 'gap')}{_moved(success)}; "
        f"the gap in D1 {_from_to(summary, arm, domain, 'd1_gap')}{_moved(aligned)}.",
    )


def _revisions(summary: Summary, arm: str, domain: str) -> Finding:
    where, point = _where(summary, arm, domain), summary.last(arm, domain)
    if point is None or not point.metrics["revision"].measured:
        return Finding(where, "not measured.")
    text = f"in {percent(point.metrics['revision'], digits=1)} % of expert states"
    change = _change(summary, arm, domain, "revision")
    if change is not None:
        trend = _direction(
            change,
            "more often than at the base",
            "less often than at the base",
            "no clear change from the base",
        )
        text += f", {trend} ({points(change)})"
    own = point.metrics["revision_cot_driven"]
    if own.measured:
        text += f"; in the states of its own CoT-driven episodes, {percent(own, digits=1)} %"
    return Finding(where, text + ".")


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
            net, "helps more than it harms", "harms more than it helps", "no clear net effect"
        )
        parts.append(
            f"on expert states, {verdict}: helpful in {helpful}, harmful in {harmful}, net "
            f"{points(net)}"
        )
    if point is not None and point.metrics["gap"].measured:
        gap = point.metrics["gap"]
        verdict = _direction(gap, "it wins games", "it loses games", "no clear effect")
        test = "" if point.gap_p is None else f", McNemar's {p_text(point.gap_p)}"
        parts.append(f"over whole episodes, {verdict}: gap {points(gap)}{test}")
    return Finding(where, "; ".join(parts) + "." if parts else "not measured.")


def _masking(summary: Summary) -> tuple[Finding, ...]:
    findings = []
    for arm, about in summary.arms.items():
        for domain in reversed(summary.domains):
            differences = [
                difference
                for metric in _MASKING_CHANGES
                if (difference := summary.arm_difference(arm, domain, metric))
                and difference.estimate.measured
            ]
            if differences:
                baseline = summary.label(summary.baseline)
                where = f"{capitalize(about.label)} against {baseline}, {domain_label(domain)}"
                findings.append(Finding(where, _compare(differences)))
    if findings:
        return tuple(findings)
    return (Finding("", "There is one trained arm at most, so there is nothing to compare."),)


def _compare(differences: list[ArmDifference]) -> str:
    """Return the clear differences, then the others."""
    clear = [
        f"{_MASKING_CHANGES[each.metric]} is {_direction(each.estimate, 'higher', 'lower', '')} "
        f"({points(each.estimate)})"
        for each in differences
        if each.estimate.sign
    ]
    unclear = [
        f"{_MASKING_CHANGES[each.metric]} ({points(each.estimate)})"
        for each in differences
        if not each.estimate.sign
    ]
    parts = [", ".join(clear)] if clear else []
    if unclear:
        parts.append("no clear difference in " + ", ".join(unclear))
    return "; ".join(parts) + "."


# ---- words


def _change(summary: Summary, arm: str, domain: str, metric: str) -> Estimate | None:
    """Return a metric's change from the base; None where it was not measured."""
    change = summary.change(arm, domain, metric)
    return change.estimate if change is not None and change.estimate.measured else None


def _direction(estimate: Estimate, up: str, down: str, neither: str) -> str:
    return {1: up, -1: down, 0: neither}[estimate.sign]


def _verdict(
    success: Estimate | None, aligned: Estimate | None, up: str, down: str, neither: str
) -> str:
    """Return one verdict on two measures of the same thing, success and D1."""
    verdicts = {
        measure: _direction(change, up, down, neither)
        for measure, change in (("success", success), ("D1", aligned))
        if change is not None
    }
    words = set(verdicts.values())
    if not words:
        return "not measured"
    if len(words) == 1:
        return words.pop()
    if words == {up, down}:
        return "mixed"
    return " and ".join(f"{word} in {measure}" for measure, word in verdicts.items())


def _moved(change: Estimate | None) -> str:
    if change is None:
        return " (change not measured)"
    verdict = _direction(change, "clear rise", "clear fall", "no clear change")
    return f" ({points(change)}, {verdict})"


def _from_to(summary: Summary, arm: str, domain: str, metric: str) -> str:
    """Return the metric at the base and at the last checkpoint."""
    texts = []
    for checkpoint in (0, summary.last_checkpoint):
        point = summary.point(arm, checkpoint, domain)
        value = point.metrics[metric].value if point else None
        # Adding 0.0 turns -0.0 into 0.0.
        number = None if value is None else f"{round(100 * value, 1) + 0.0:.1f}"
        texts.append("not measured" if number is None else number.replace("-", "−"))
    return " → ".join(texts) + (" points" if metric.endswith("gap") else " %")


def _where(summary: Summary, arm: str, domain: str) -> str:
    return f"{capitalize(summary.label(arm))}, {domain_label(domain)}"
