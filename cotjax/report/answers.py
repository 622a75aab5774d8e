"""The study's further questions as tables: revisions, their use, and what arms differ by.

Nothing here is a verdict. A word stands below a number only where the number's own 95 % interval
excludes 0, which is described and not decided, for nothing is corrected for the number of
comparisons. A rate below 5 % or above 95 % on both sides is not compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cotjax.diagnostics.metrics import METRICS
from cotjax.diagnostics.share import FLOOR
from cotjax.diagnostics.statistics import NOTHING, Estimate
from cotjax.objectives.named import SUPERVISED
from cotjax.report.arms import differs_by_dropping
from cotjax.report.labels import capitalize, domain_label, p_text, percent, scaled
from cotjax.report.rows import Trend
from cotjax.report.section import Cell, Section, SectionRow, SectionTable
from cotjax.report.summary import PointSummary, Summary
from cotjax.report.warnings import cannot_differ

# What may differ between arms.
_CHANGES = {
    "d3_cot": "success by CoT actions",
    "d3_prompt": "success by prompt actions",
    "gap": "the gap",
    "d1_cot": "D1 of CoT actions",
    "d1_prompt": "D1 of prompt actions",
    "revision": "revision rate",
}
EXTREME = "under 5 % or over 95 % on both sides"
_HELP = (
    "revised, expert states",
    "revised, CoT-driven states",
    "helpful",
    "harmful",
    "gap of D1",
    "gap of D3",
)
_GAPS = {
    "d1_gap": "gap of D1",
    "gap": "gap of D3",
    "d1_gap_constrained": "gap of D1, constrained actions",
    "gap_constrained": "gap of D3, constrained actions",
}
_TREND_NOTE = (
    "Percentage points from the first checkpoint to the last, along the line that fits all of them "
    "best (least squares), on the same games, with 95 % intervals that stand alone. A word below a "
    "number says that its interval excludes 0."
)
_NOTE = (
    "In percent and percentage points, with 95 % intervals that stand alone; Δ: change from the "
    "base. A word below a number says that its interval excludes 0; no word says that nothing was "
    "shown, not that nothing differs."
)


def answers(summary: Summary) -> list[Section]:
    """Return a section on revisions, one on trends, and one on each kind of difference of arms."""
    tables = (
        SectionTable(
            capitalize(domain_label(domain)),
            _HELP,
            tuple(_revisions(summary, arm, domain) for arm in summary.compared),
            rows_are="arm",
        )
        for domain in summary.domains
    )
    title = "How often does reasoning revise the action, and does it help?"
    found = [Section("revisions", title, tuple(tables), notes=(_NOTE,))]
    if trends := tuple(_trends(summary)):
        question = "Does the gap change along the checkpoints?"
        found.append(Section("trends", question, trends, notes=(_TREND_NOTE,)))
    compared = [arm for arm, about in summary.compared.items() if about.minus]
    masked = [arm for arm in compared if differs_by_dropping(summary.arms, arm)]
    others = [arm for arm in compared if arm not in masked]
    alike = all(arm.objective == SUPERVISED for arm in summary.arms.values())
    other = "What do other training data change?" if alike else "What does other training change?"
    for id_, question, arms in (
        ("masking", "What does masking change?", masked),
        ("others", other, others),
    ):
        if arms and (differing := tuple(_differences(summary, arms))):
            found.append(Section(id_, question, differing, notes=(_NOTE,)))
    return found


# ---- revisions


def _revisions(summary: Summary, arm: str, domain: str) -> SectionRow:
    point = summary.last(arm, domain)
    cells: list[str | Cell] = []
    for metric in ("revision", "revision_cot_driven"):
        change = summary.change(arm, domain, metric)
        moved = Cell("") if change is None else _compared(change.estimate)
        behind = f"Δ {moved.text}" if moved.text else ""
        cells.append(Cell(_rate(point, metric), behind, note=moved.note))
    cells += [_rate(point, "revision_helpful"), _rate(point, "revision_harmful")]
    cells.append(_says(point, "d1_gap", "helps more than it harms", "harms more than it helps"))
    gap = _says(point, "gap", "wins games", "loses games")
    if point is not None and point.metrics["gap"].measured:
        p = "" if point.gap_p is None else f"exact {p_text(point.gap_p)}"
        extreme = _extreme([point], ("d3_cot", "d3_prompt"))
        # The exact test ignores how far games go; words need both.
        note = gap.note if point.gap_p is None or point.gap_p < 0.05 else ""
        gap = Cell(gap.text, p, note=EXTREME if extreme else note)
    return SectionRow(summary.label(arm), (*cells, gap))


def _rate(point: PointSummary | None, metric: str) -> str:
    return percent(NOTHING if point is None else point.metrics[metric], digits=1)


def _says(point: PointSummary | None, metric: str, up: str, down: str) -> Cell:
    estimate = NOTHING if point is None else point.metrics[metric]
    note = {1: up, -1: down}.get(estimate.sign, "")
    return Cell(percent(estimate, signed=True, digits=1), note=note)


# ---- trends


def _trends(summary: Summary) -> Iterable[SectionTable]:
    """Yield a table a domain, with a column for each gap that three or more checkpoints have."""
    for domain in summary.domains:
        found = {
            (row.arm, row.metric): row
            for row in summary.trends
            if row.domain == domain and row.arm in summary.compared
        }
        gaps = {name: head for name, head in _GAPS.items() if any(name == m for _, m in found)}
        rows = []
        for arm in dict.fromkeys(arm for arm, _ in found):
            cells = (_trend(found.get((arm, name))) for name in gaps)
            rows.append(SectionRow(summary.label(arm), tuple(cells)))
        if rows:
            heads = tuple(gaps.values())
            yield SectionTable(capitalize(domain_label(domain)), heads, tuple(rows), rows_are="arm")


def _trend(row: Trend | None) -> Cell:
    if row is None:
        return Cell("–")
    first, *_, last = row.checkpoints
    run = scaled(row.estimate, (last - first) / 100)
    behind = f"{len(row.checkpoints)} checkpoints, {first} to {last}; {p_text(row.p)}"
    note = {1: "rises", -1: "falls"}.get(run.sign, "")
    return Cell(percent(run, signed=True, digits=1), behind, note=note)


# ---- arms


def _differences(summary: Summary, arms: Sequence[str]) -> Iterable[SectionTable]:
    """Yield a table a domain; an arm that cannot differ has its reason in place of numbers."""
    for domain in summary.domains:
        rows = []
        for arm in arms:
            about = summary.arms[arm]
            label = f"{about.label} − {summary.label(about.minus or '')}"
            if about.cannot_differ:
                why = capitalize(cannot_differ(summary, arm))
                rows.append(SectionRow(label, ("–",) * len(_CHANGES), note=why))
            elif any(summary.arm_difference(arm, domain, metric) for metric in _CHANGES):
                cells = (_difference(summary, arm, domain, metric) for metric in _CHANGES)
                rows.append(SectionRow(label, tuple(cells)))
        if rows:
            title = capitalize(domain_label(domain))
            yield SectionTable(title, tuple(_CHANGES.values()), tuple(rows), rows_are="arms")


def _difference(summary: Summary, arm: str, domain: str, metric: str) -> Cell:
    """Return a difference with "higher" or "lower", or why it is not compared."""
    row = summary.arm_difference(arm, domain, metric)
    if row is None:
        return Cell("–")
    ends = [summary.last(name, domain) for name in (arm, summary.arms[arm].minus or "")]
    extreme = _extreme([point for point in ends if point is not None], (metric,))
    seeds = f"{row.estimate.seeds} seeds" if row.estimate.seeds > 1 else ""
    return _compared(row.estimate, seeds, EXTREME if extreme else "")


def _compared(estimate: Estimate, behind: str = "", instead: str = "") -> Cell:
    note = instead or {1: "higher", -1: "lower"}.get(estimate.sign, "")
    return Cell(percent(estimate, signed=True, digits=1), behind, note=note)


def _extreme(ends: Sequence[PointSummary], metrics: Sequence[str]) -> bool:
    """Whether these rates are all below FLOOR, or all above 1 - FLOOR, at all of these points."""
    kinds = [METRICS[name].kind for name in metrics]
    values = [point.metrics[name].value for point in ends for name in metrics]
    rates = [value for value in values if value is not None]
    if "difference" in kinds or not rates:
        return False
    return all(rate < FLOOR for rate in rates) or all(rate > 1 - FLOOR for rate in rates)
