"""The elicitations side by side: what the model knows, apart from what it can put into form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cotjax.report.chosen import VALID_ENOUGH
from cotjax.report.labels import domain_label, percent
from cotjax.report.summary import PointSummary, Summary

# The fields of an elicitation, as a record has them, in words.
FIELDS = {
    "temperature": "temperature (0: always the most likely token)",
    "top_k": "draw from this many most likely tokens (0: from all)",
    "top_p": "draw from the tokens that hold this share of the probability",
    "repetition_penalty": "penalty on tokens that occurred before (1: none)",
    "no_repeat_ngram_size": "forbid repeating any n-gram of this size (0: off)",
    "max_new_tokens": "token limit of a CoT response",
    "max_action_tokens": "token limit of a prompt response",
    "max_steps": "steps after which an episode ends",
    "cot_prefix": "prefilled before a CoT response",
    "prompt_prefix": "prefilled before a prompt response",
    "history": "what a prompt shows of past turns",
    "constrained_by": "constrained actions are chosen by the log-probability's",
    "instruction": "the instruction not to reason",
}
DRIVERS = {
    "cot": "CoT-driven episodes",
    "prompt": "prompt-driven episodes",
    "cot_constrained": "episodes driven by constrained CoT actions",
    "prompt_constrained": "episodes driven by constrained prompt actions",
    "instructed": "episodes driven by instructed actions",
    "reference": "trajectories of expert states",
}
# Kind -> its name in the table. A constrained kind is admissible by construction.
_KINDS = {
    "prompt": "prompt action, prefilled and decoded freely",
    "prompt_constrained": "prompt action, among the admissible, by total log-probability",
    "prompt_constrained_mean": "prompt action, among the admissible, by mean per token",
    "instructed": "told not to reason, decoded freely",
    "cot": "CoT action, decoded freely",
    "cot_constrained": "CoT action, among the admissible, by total log-probability",
    "cot_constrained_mean": "CoT action, among the admissible, by mean per token",
}


@dataclass(frozen=True)
class Share:
    """A share of responses. `low`: below 95 % of them were valid."""

    text: str
    low: bool = False


@dataclass(frozen=True)
class ElicitationRow:
    """One way to draw an action. `cells`: D1, D3, valid and admissible responses."""

    kind: str
    cells: tuple[Share, ...]


@dataclass(frozen=True)
class ElicitationGroup:
    """The elicitations of one arm at one checkpoint."""

    label: str
    rows: tuple[ElicitationRow, ...]


@dataclass(frozen=True)
class ElicitationTable:
    """The elicitations in one domain, at the base and at the last checkpoint of every arm."""

    domain: str
    groups: tuple[ElicitationGroup, ...]


def side_by_side(summary: Summary, domain: str) -> ElicitationTable:
    """Return D1, D3, validity and admissibility of every elicitation that was measured."""
    by = _constrained_by(summary)
    groups = []
    for point in summary.ends(domain):
        rows = [_row(point, kind, by) for kind in _KINDS]
        groups.append(
            ElicitationGroup(summary.label_of(point), tuple(row for row in rows if row is not None))
        )
    return ElicitationTable(domain_label(domain), tuple(groups))


def in_words(elicitation: Mapping[str, Any]) -> dict[str, Any]:
    """Return an elicitation with its fields in words, in the order of FIELDS."""
    known = {text: elicitation[name] for name, text in FIELDS.items() if name in elicitation}
    return known | {name: value for name, value in elicitation.items() if name not in FIELDS}


def validity(point: PointSummary, metric: str) -> str:
    """Return the validity and admissibility behind a metric of prompt actions; "" for others."""
    kind = "instructed" if metric.endswith("instructed") else "prompt"
    if metric in ("d3_prompt", "gap", "d3_instructed", "revision_cot_driven"):
        names = f"valid_{kind}", f"admissible_{kind}"
    elif metric in ("d1_prompt", "d1_gap", "d1_instructed", "d2", "revision"):
        names = f"valid_{kind}_states", f"admissible_{kind}_states"
    else:
        return ""
    valid, admissible = (_value(point, name) for name in names)
    if valid is None:
        return ""
    warning = "⚠ " if valid < VALID_ENOUGH else ""
    text = f"{warning}{kind} responses: {100 * valid:.0f} % valid"
    return text if admissible is None else f"{text}, {100 * admissible:.0f} % admissible"


def _row(point: PointSummary, kind: str, by: str) -> ElicitationRow | None:
    played = kind.removesuffix("_mean") if kind.endswith("_mean") else kind
    # One of the two scores drives the episodes of a constrained kind.
    drives = "constrained" not in kind or kind.endswith("_mean") == (by == "mean")
    d1 = _percent(point, f"d1_{kind}")
    d3 = _percent(point, f"d3_{played}") if drives else "–"
    if d1 == d3 == "–":
        return None
    if "constrained" in kind:
        shares = [Share("always"), Share("always")]
    else:
        shares = [
            _share(point, f"{name}_{kind}", valid=name == "valid")
            for name in ("valid", "admissible")
        ]
    return ElicitationRow(_KINDS[kind], (Share(d1), Share(d3), *shares))


def _share(point: PointSummary, metric: str, valid: bool) -> Share:
    """Return a share on expert states and in the kind's own episodes."""
    states, played = _value(point, f"{metric}_states"), _value(point, metric)
    numbers = [f"{100 * value:.0f}" if value is not None else "–" for value in (states, played)]
    low = valid and any(each is not None and each < VALID_ENOUGH for each in (states, played))
    return Share(" / ".join(numbers), low)


def _constrained_by(summary: Summary) -> str:
    for use in summary.elicitation:
        if use.driver.endswith("_constrained") and "constrained_by" in use.elicitation:
            return str(use.elicitation["constrained_by"])
    return "total"


def _percent(point: PointSummary, metric: str) -> str:
    return percent(point.metrics[metric], digits=1)


def _value(point: PointSummary, metric: str) -> float | None:
    return point.metrics[metric].value
