"""The study's questions, answered in sentences that follow from the intervals of a summary and from nothing else.

A change or a difference is called one only where its 95 % interval leaves out 0; otherwise the sentence says that there is none to see.
"""

from __future__ import annotations

from dataclasses import dataclass

from cotjax.report.summary import domain_label, find_point, p_text, percent


@dataclass(frozen=True)
class Finding:
    """What was found for one arm in one domain (`where`; empty for the study as a whole), in a sentence."""

    where: str
    text: str


@dataclass(frozen=True)
class Answer:
    """A question and what answers it, a finding an arm and domain."""

    question: str
    findings: tuple[Finding, ...]


def lead(summary: dict) -> str:
    """The study in one paragraph: where the baseline's gain went, and what the other arms change out of domain."""
    last, sentences = summary["last_checkpoint"], []
    domain = summary["domains"][0]
    label = summary["arms"][summary["baseline"]]["label"]
    if last == 0:
        level = _level_gap(summary, summary["baseline"], domain)
        return f"Only the base model has been played so far: nothing has been trained, so there is no gain to place yet. {level}"
    total, prompt, gap = (
        _change(summary, summary["baseline"], domain, name)
        for name in ("d3_cot", "d3_prompt", "gap")
    )
    if _measured(total) and _measured(prompt) and _measured(gap):
        sentences.append(
            f"From the base to step {last}, {label} moved {domain_label(domain)} success by CoT actions by {_points(total)}. Success by "
            f"prompt actions, with no reasoning at all, moved by {_points(prompt)}, and the gap between the two by {_points(gap)}: "
            f"{_where_it_went(total, prompt, gap)}"
        )
    elsewhere = summary["domains"][-1]
    for arm, about in summary["arms"].items():
        differences = [
            row
            for row in summary["arm_differences"]
            if row["arm"] == arm and row["domain"] == elsewhere and _measured(row)
        ]
        found = {row["metric"]: row for row in differences}
        if "d3_cot" in found:
            row = found["d3_cot"]
            verdict = _direction(row, "higher", "lower", "no clear difference in")
            sentences.append(
                f"Against {label}, {about['label']} shows {verdict} {domain_label(elsewhere)} success by CoT actions ({_points(row)})."
            )
    return (
        " ".join(sentences)
        or "The records are too few for an answer: see the tables for what was measured."
    )


def answers(summary: dict) -> list[Answer]:
    """Every question, answered for every arm and domain."""
    cells = [(arm, domain) for arm in summary["arms"] for domain in summary["domains"]]
    trained = cells if summary["last_checkpoint"] else []
    untrained = (
        ()
        if trained
        else (Finding("", "Nothing has been trained yet: only the base model has records."),)
    )
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


def _where_it_went(total: dict, prompt: dict, gap: dict) -> str:
    if total["low"] <= 0:
        return (
            "there is no clear gain to place."
            if total["high"] >= 0
            else "success fell, so there is no gain to place."
        )
    if prompt["low"] > 0 and gap["low"] <= 0:
        return "the gain is in the prompt action, " + (
            "and the gap shows no clear change." if gap["high"] >= 0 else "and the gap narrowed."
        )
    if prompt["low"] > 0:
        return "the gain is in both, the prompt action and the gap."
    if gap["low"] > 0:
        return "the gain is in what reasoning adds, with no clear gain of the prompt action."
    return "the intervals are too wide to say which of the two took the gain."


def _prompt_action(summary: dict, arm: str, domain: str) -> Finding:
    success, aligned = (_change(summary, arm, domain, name) for name in ("d3_prompt", "d1_prompt"))
    words = ("better", "worse", "no clear change")
    return Finding(
        _where(summary, arm, domain),
        f"{_verdict((success, aligned), *words)}. Success by prompt actions {_from_to(summary, arm, domain, 'd3_prompt')}"
        f"{_moved(success)}; agreement with the expert (D1) {_from_to(summary, arm, domain, 'd1_prompt')}{_moved(aligned)}.",
    )


def _advantage(summary: dict, arm: str, domain: str) -> Finding:
    success, aligned = (_change(summary, arm, domain, name) for name in ("gap", "d1_gap"))
    return Finding(
        _where(summary, arm, domain),
        f"{_verdict((success, aligned), 'wider', 'narrower', 'no clear change')}. The gap in success "
        f"{_from_to(summary, arm, domain, 'gap')}{_moved(success)}; the gap in D1 "
        f"{_from_to(summary, arm, domain, 'd1_gap')}{_moved(aligned)}.",
    )


def _revisions(summary: dict, arm: str, domain: str) -> Finding:
    metrics = _last(summary, arm, domain)
    if metrics is None or metrics["revision"]["value"] is None:
        return Finding(_where(summary, arm, domain), "not measured.")
    change = _change(summary, arm, domain, "revision")
    trend = (
        f", {_direction(change, 'more often', 'less often', 'no clear change')} than at the base ({_points(change)})"
        if _measured(change)
        else ""
    )
    trend = trend.replace("no clear change than at the base", "no clear change from the base")
    own = metrics["revision_cot_driven"]
    also = (
        f"; in the states of its own CoT-driven episodes, {percent(own, digits=1)} %"
        if own["value"] is not None
        else ""
    )
    return Finding(
        _where(summary, arm, domain),
        f"in {percent(metrics['revision'], digits=1)} % of expert states{trend}{also}.",
    )


def _help(summary: dict, arm: str, domain: str) -> Finding:
    metrics = _last(summary, arm, domain)
    if metrics is None or (metrics["d1_gap"]["value"] is None and metrics["gap"]["value"] is None):
        return Finding(_where(summary, arm, domain), "not measured.")
    parts = []
    if metrics["d1_gap"]["value"] is not None:
        helpful, harmful = (
            f"{percent(metrics[name], digits=1)} %"
            for name in ("revision_helpful", "revision_harmful")
        )
        verdict = _direction(
            metrics["d1_gap"],
            "helps more than it harms",
            "harms more than it helps",
            "no clear net effect",
        )
        parts.append(
            f"on expert states, {verdict}: helpful in {helpful}, harmful in {harmful}, net {_points(metrics['d1_gap'])}"
        )
    if metrics["gap"]["value"] is not None:
        point = find_point(summary, arm, summary["last_checkpoint"], domain)
        verdict = _direction(metrics["gap"], "it wins games", "it loses games", "no clear effect")
        parts.append(
            f"over whole episodes, {verdict}: gap {_points(metrics['gap'])}, McNemar's {p_text(point['gap_p'])}"
        )
    return Finding(_where(summary, arm, domain), "; ".join(parts) + ".")


def _masking(summary: dict) -> tuple[Finding, ...]:
    names = {
        "d3_cot": "success by CoT actions",
        "d3_prompt": "success by prompt actions",
        "gap": "the gap",
        "d1_cot": "D1 of CoT actions",
        "d1_prompt": "D1 of prompt actions",
        "revision": "the revision rate",
    }
    findings = []
    for arm, about in summary["arms"].items():
        for domain in reversed(summary["domains"]):
            rows = {
                row["metric"]: row
                for row in summary["arm_differences"]
                if row["arm"] == arm and row["domain"] == domain and _measured(row)
            }
            rows = {name: rows[name] for name in names if name in rows}
            if not rows:
                continue
            clear = [
                f"{names[name]} is {_direction(row, 'higher', 'lower', '')} ({_points(row)})"
                for name, row in rows.items()
                if _clear(row)
            ]
            unclear = [
                f"{names[name]} ({_points(row)})" for name, row in rows.items() if not _clear(row)
            ]
            parts = [", ".join(clear)] * bool(clear) + [
                "no clear difference in " + ", ".join(unclear)
            ] * bool(unclear)
            against = summary["arms"][summary["baseline"]]["label"]
            findings.append(
                Finding(
                    f"{_upper(about['label'])} against {against}, {domain_label(domain)}",
                    "; ".join(parts) + ".",
                )
            )
    return tuple(findings) or (
        Finding("", "There is one trained arm at most, so there is nothing to compare."),
    )


def _level_gap(summary: dict, arm: str, domain: str) -> str:
    metrics = _last(summary, arm, domain)
    if metrics is None or metrics["gap"]["value"] is None:
        return ""
    cot, prompt = percent(metrics["d3_cot"]), percent(metrics["d3_prompt"])
    return f"Its {domain_label(domain)} success is {cot} % by CoT actions and {prompt} % by prompt actions."


def _last(summary: dict, arm: str, domain: str) -> dict | None:
    point = find_point(summary, arm, summary["last_checkpoint"], domain)
    return point["metrics"] if point else None


def _change(summary: dict, arm: str, domain: str, metric: str) -> dict | None:
    wanted = {"arm": arm, "domain": domain, "metric": metric}
    return next((row for row in summary["changes"] if wanted.items() <= row.items()), None)


def _measured(estimate: dict | None) -> bool:
    return estimate is not None and estimate["value"] is not None


def _clear(estimate: dict) -> bool:
    return estimate["low"] > 0 or estimate["high"] < 0


def _direction(estimate: dict, up: str, down: str, neither: str) -> str:
    return up if estimate["low"] > 0 else down if estimate["high"] < 0 else neither


def _verdict(changes: tuple[dict | None, ...], up: str, down: str, neither: str) -> str:
    """One word for several measures of the same thing."""
    words = [_direction(change, up, down, neither) for change in changes if _measured(change)]
    if not words:
        return "not measured"
    if len(set(words)) == 1:
        return words[0]
    if {up, down} <= set(words):
        return "mixed"
    return " and ".join(
        f"{word} in {measure}" for word, measure in zip(words, ("success", "D1"), strict=True)
    )


def _points(estimate: dict) -> str:
    return f"{percent(estimate, signed=True, digits=1)} points"


def _moved(change: dict | None) -> str:
    return (
        f" ({_points(change)}, {_direction(change, 'clear rise', 'clear fall', 'no clear change')})"
        if _measured(change)
        else " (change not measured)"
    )


def _from_to(summary: dict, arm: str, domain: str, metric: str) -> str:
    ends = [
        find_point(summary, arm, checkpoint, domain)
        for checkpoint in (0, summary["last_checkpoint"])
    ]
    values = [point["metrics"][metric]["value"] if point else None for point in ends]
    first, last = (
        "not measured" if value is None else f"{round(100 * value, 1) + 0.0:.1f}".replace("-", "−")
        for value in values
    )
    return f"{first} → {last}" + (" points" if metric.endswith("gap") else " %")


def _where(summary: dict, arm: str, domain: str) -> str:
    return f"{_upper(summary['arms'][arm]['label'])}, {domain_label(domain)}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
