"""What the report says of forced thoughts: D5, and Lanham's tests of faithfulness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cotjax.diagnostics.conflict import CONTROLS, OUTCOMES, TRIALS, VARIANTS
from cotjax.diagnostics.faithfulness import EARLY
from cotjax.diagnostics.statistics import Estimate
from cotjax.report.labels import capitalize, domain_label, percent, points
from cotjax.report.summary import PointSummary, Summary

_FIRST = ("swap", "other", "cut", "cut_action")
_SAID = {
    "swap": "one noun of its own thought swapped",
    "other": "the thought of another state",
    "cut": "that thought, cut before it mentions what its action is about",
    "cut_action": "that thought, cut before it says its action",
}
_TESTS = {
    "faithfulness_aoc_early": "early answering, area over the curve",
    "faithfulness_aoc_mistake": "adding mistakes, area over the curve",
    "faithfulness_same_mistake": "same action after a mistake, %",
    "faithfulness_same_filler": "same action after dots of the same length, %",
    "faithfulness_same_paraphrase": "same action after a paraphrase, %",
}


@dataclass(frozen=True)
class TraceRow:
    """One thought that was forced. `control`: it belongs to the variant above it."""

    label: str
    cells: tuple[str, ...]
    control: bool = False


@dataclass(frozen=True)
class TraceTable:
    """The rows of one checkpoint, or of all."""

    label: str
    columns: tuple[str, ...]
    rows: tuple[TraceRow, ...]


@dataclass(frozen=True)
class TraceSection:
    """What was measured in one domain.

    Attributes:
      sentences: what follows from the intervals.
      notes: what was left out, and what the numbers are not.
    """

    title: str
    domain: str
    sentences: tuple[str, ...]
    tables: tuple[TraceTable, ...]
    notes: tuple[str, ...] = ()


def conflicts(summary: Summary, domain: str) -> TraceSection | None:
    """Return D5 in a domain: at the base, and at the last checkpoint of each arm.

    None where it was not measured. A table a checkpoint: variants and their controls by outcome, in
    percent, with the effect of each variant in points.
    """
    ends = [point for point in summary.ends(domain) if _measured(point, VARIANTS)]
    if not ends:
        return None
    columns = (*(capitalize(text) for text in OUTCOMES.values()), "Effect, points", "States")
    tables = tuple(
        TraceTable(summary.label_of(point), columns, tuple(_variant_rows(point))) for point in ends
    )
    sentences = [_followed(summary, point) for point in ends]
    sentences += [
        said for point in ends if point.checkpoint and (said := _moved(summary, point, domain))
    ]
    return TraceSection(
        "D5: does the action follow a thought that contradicts it?",
        domain_label(domain),
        tuple(sentences),
        tables,
        tuple(_left_out(ends)),
    )


def changed_thoughts(summary: Summary, domain: str) -> TraceSection | None:
    """Return early answering, mistakes, filler and paraphrases in a domain, a column a checkpoint.

    None where nothing of them was measured.
    """
    names = [f"faithfulness_same_{each}" for each in EARLY]
    every = [*names, *_TESTS]
    ends = [
        point
        for point in summary.ends(domain)
        if any(name in point.metrics and point.metrics[name].measured for name in every)
    ]
    if not ends:
        return None
    labels = {
        f"faithfulness_same_{each}": f"same action after {each} % of the thought, %"
        for each in EARLY
    } | _TESTS
    rows = []
    for name, label in labels.items():
        estimates = [point.metrics[name] for point in ends]
        if any(each.measured for each in estimates):
            areas = name.startswith("faithfulness_aoc")
            cells = (_area(each) if areas else percent(each) for each in estimates)
            rows.append(TraceRow(capitalize(label), tuple(cells)))
    table = TraceTable("", tuple(map(summary.label_of, ends)), tuple(rows))
    return TraceSection(
        "Does the action depend on the thought?",
        domain_label(domain),
        tuple(_depends(summary, point) for point in ends),
        (table,),
        (
            "Area over the curve: 0, the thought changes nothing; 1, the action is another one "
            "wherever less than the whole thought was given, or a sentence was wrong.",
        ),
    )


# ---- D5


def _measured(point: PointSummary, variants: Iterable[str]) -> list[str]:
    names = {variant: point.metrics.get(f"conflict_follow_{variant}") for variant in variants}
    return [variant for variant, each in names.items() if each is not None and each.measured]


def _variant_rows(point: PointSummary) -> Iterable[TraceRow]:
    for variant in _measured(point, VARIANTS):
        trials = variant, *(f"{control}_{variant}" for control in CONTROLS[variant])
        for name in trials:
            metrics = point.metrics
            outcomes = [metrics.get(f"conflict_{outcome}_{name}") for outcome in OUTCOMES]
            if outcomes[0] is None or not outcomes[0].measured:
                continue
            effect = metrics[f"conflict_effect_{variant}"] if name == variant else None
            yield TraceRow(
                capitalize(TRIALS[name]),
                (
                    *("" if each is None else percent(each) for each in outcomes),
                    "" if effect is None else percent(effect, signed=True),
                    str(outcomes[0].n),
                ),
                control=name != variant,
            )


def _followed(summary: Summary, point: PointSummary) -> str:
    """Return how often a checkpoint follows each variant, and what that is over its control."""
    parts = []
    for variant in _measured(point, _FIRST):
        follow, keep = (point.metrics[f"conflict_{o}_{variant}"] for o in ("follow", "keep"))
        effect = point.metrics[f"conflict_effect_{variant}"]
        verdict = {1: "it follows", 0: "no effect is shown", -1: "it avoids that"}[effect.sign]
        parts.append(
            f"after {_SAID[variant]}, {verdict}: the other action in {percent(follow)} %, its own "
            f"in {percent(keep)} %, effect {points(effect)}"
        )
    return f"{capitalize(summary.label_of(point))}: {'; '.join(parts)}."


def _moved(summary: Summary, point: PointSummary, domain: str) -> str:
    """Return how often an arm keeps its action, against the base; "" where not compared."""
    parts = []
    for variant in _measured(point, _FIRST):
        change = summary.change(point.arm, domain, f"conflict_keep_{variant}")
        if change is None or not change.estimate.measured:
            continue
        word = {1: "more often", -1: "less often", 0: "no change is shown"}[change.estimate.sign]
        parts.append(f"after {_SAID[variant]} {word} ({points(change.estimate)})")
    label = capitalize(summary.label(point.arm))
    return f"{label} keeps its own action, against the base: {'; '.join(parts)}." if parts else ""


def _left_out(ends: Iterable[PointSummary]) -> Iterable[str]:
    """Yield which states have no thought of a variant."""
    shares: dict[str, list[float]] = {}
    for point in ends:
        for variant in VARIANTS:
            fits = point.metrics.get(f"conflict_fits_{variant}")
            if fits is not None and fits.value is not None:
                shares.setdefault(variant, []).append(fits.value)
    lacking = [
        f"{100 * (1 - max(values)):.0f} to {100 * (1 - min(values)):.0f} % have none of “{name}”"
        for name, values in ((VARIANTS[key], each) for key, each in shares.items())
        if min(values) < 1
    ]
    if lacking:
        yield f"States without a fitting thought do not count: {'; '.join(lacking)}."
    yield (
        "Effect: how often the other action follows, minus how often it follows the own thought of "
        "the same length."
    )


# ---- changed thoughts


def _depends(summary: Summary, point: PointSummary) -> str:
    said: Mapping[str, Estimate] = point.metrics
    parts = []
    for name, words in (
        ("faithfulness_same_0", "without its thought {} % of actions are the same"),
        ("faithfulness_same_50", "after half of it {} %"),
        ("faithfulness_same_filler", "after dots of its length {} %"),
        ("faithfulness_same_mistake", "after a mistake in it {} %"),
        ("faithfulness_same_paraphrase", "after other words for it {} %"),
    ):
        if name in said and said[name].measured:
            parts.append(words.format(percent(said[name])))
    return f"{capitalize(summary.label_of(point))}: {', '.join(parts)}."


def _area(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "–"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
