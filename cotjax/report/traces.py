"""What the report says of forced thoughts: D5, and Lanham's tests of faithfulness."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cotjax.diagnostics.conflict import CONTROLS, LENGTHS, OUTCOMES, TRIALS, VARIANTS
from cotjax.diagnostics.faithfulness import EARLY
from cotjax.diagnostics.statistics import NOTHING
from cotjax.report.labels import capitalize, domain_label, number, percent
from cotjax.report.section import Cell, Section, SectionRow, SectionTable, under_headings
from cotjax.report.summary import PointSummary, Summary

_TESTS = {
    "faithfulness_same_mistake": "a mistake",
    "faithfulness_same_filler": "dots of the same length",
    "faithfulness_same_paraphrase": "a paraphrase",
    "faithfulness_aoc_early": "area over the curve, early answering",
    "faithfulness_aoc_mistake": "area over the curve, mistakes",
}
EFFECTS = "Effect of a thought that contradicts, in points"
_SAYS = {1: "followed", -1: "avoided"}


def conflicts(summary: Summary) -> Section:
    """Return D5 at the base, and at the last checkpoint of each arm; no tables without it.

    First the effect of each variant, in points; then a table a checkpoint and domain: variants and
    their controls by outcome, in percent.
    """
    ends = [
        point
        for domain in summary.domains
        for point in summary.ends(domain)
        if _measured(point, VARIANTS)
    ]
    outcomes = (capitalize(text) for text in OUTCOMES.values())
    columns = (*outcomes, "Effect, points", "Kept, against the base, points", "Says", "States")
    tables = tuple(
        SectionTable(
            f"{summary.label_of(point)} · {domain_label(point.domain)}",
            columns,
            tuple(_variant_rows(summary, point)),
            rows_are="forced thought",
        )
        for point in ends
    )
    title = "D5: does the action follow a thought that contradicts it?"
    if not ends:
        return Section("conflict", title, ())
    return Section("conflict", title, (_effects(summary, ends), *tables), notes=(*_left_out(ends),))


def changed_thoughts(summary: Summary) -> Section:
    """Return early answering, mistakes, filler and paraphrases: a table a domain.

    A column a checkpoint; no tables where nothing of them was measured.
    """
    labels = {f"faithfulness_same_{each}": f"{each} % of the thought" for each in EARLY} | _TESTS
    tables = []
    for domain in summary.domains:
        ends = [
            point
            for point in summary.ends(domain)
            if any(point.metrics.get(name, NOTHING).measured for name in labels)
        ]
        rows = []
        for name, label in labels.items():
            estimates = [point.metrics.get(name, NOTHING) for point in ends]
            if any(each.measured for each in estimates):
                areas = name.startswith("faithfulness_aoc")
                cells = (number(each, 2) if areas else percent(each) for each in estimates)
                rows.append(SectionRow(capitalize(label), tuple(cells)))
        if rows:
            heads = tuple(map(summary.label_of, ends))
            title = capitalize(domain_label(domain))
            tables.append(
                SectionTable(title, heads, tuple(rows), rows_are="the action is the same after")
            )
    note = (
        "In percent of states; areas are from 0 to 1. Area over the curve: 0, the thought changes "
        "nothing; 1, the action is another one "
        "wherever less than the whole thought was given, or a sentence was wrong."
    )
    title = "Does the action depend on the thought?"
    return Section("faithfulness", title, tuple(tables), notes=(note,))


# ---- D5


def _measured(point: PointSummary, variants: Iterable[str]) -> list[str]:
    names = {variant: point.metrics.get(f"conflict_follow_{variant}") for variant in variants}
    return [variant for variant, each in names.items() if each is not None and each.measured]


def _effects(summary: Summary, ends: Sequence[PointSummary]) -> SectionTable:
    """Return the effect of every variant, a row a checkpoint."""
    variants = [name for name in VARIANTS if any(_measured(point, [name]) for point in ends)]
    groups = []
    for domain in summary.domains:
        rows = []
        for point in ends:
            if point.domain == domain:
                effects = (point.metrics[f"conflict_effect_{name}"] for name in variants)
                cells = (
                    Cell(percent(each, signed=True), note=_SAYS.get(each.sign, ""))
                    for each in effects
                )
                rows.append(SectionRow(summary.label_of(point), tuple(cells)))
        groups.append((domain_label(domain), rows))
    heads = tuple(capitalize(VARIANTS[name]) for name in variants)
    return SectionTable(EFFECTS, heads, under_headings(groups), rows_are="arm")


def _variant_rows(summary: Summary, point: PointSummary) -> Iterable[SectionRow]:
    for variant in _measured(point, VARIANTS):
        trials = variant, *(f"{control}_{variant}" for control in CONTROLS[variant])
        for name in trials:
            metrics = point.metrics
            outcomes = [metrics.get(f"conflict_{outcome}_{name}", NOTHING) for outcome in OUTCOMES]
            if not outcomes[0].measured:
                continue
            cells = ("", "", "")
            if name == variant:
                effect = metrics[f"conflict_effect_{variant}"]
                kept = summary.change(point.arm, point.domain, f"conflict_keep_{variant}")
                moved = NOTHING if kept is None or not point.checkpoint else kept.estimate
                cells = (
                    percent(effect, signed=True),
                    percent(moved, signed=True),
                    _SAYS.get(effect.sign, "–"),
                )
            yield SectionRow(
                _label(name, variant),
                (*map(percent, outcomes), *cells, str(outcomes[0].n)),
                part=name != variant,
            )


def _label(name: str, variant: str) -> str:
    """Return what was forced; of a control without its length, which its variant has."""
    return capitalize(TRIALS[name].removesuffix(f", {LENGTHS[variant]}"))


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
        "Indented are controls of the length of the thought above them, judged by the same two "
        "actions. Effect: how often the other action follows, minus how often it follows the own "
        "thought of the same length. Kept: the own action, now minus at the base. “Says” has a "
        "word where the interval of the effect excludes 0."
    )
