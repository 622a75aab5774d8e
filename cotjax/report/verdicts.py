"""Where each gain landed: verdicts, which follow from the interval of the share alone."""

from __future__ import annotations

from dataclasses import replace

from cotjax.diagnostics.metrics import METRICS
from cotjax.diagnostics.share import Verdict
from cotjax.envs.worlds import IN_DOMAIN
from cotjax.report.compare import MEASURES
from cotjax.report.labels import capitalize, domain_label, p_text, percent, points
from cotjax.report.matrix import not_interpreted
from cotjax.report.rows import PlacedGain
from cotjax.report.section import Cell, Section, SectionRow, SectionTable
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


_MOVED = ("prompt's share of the gain", "Δ CoT action", "Δ prompt action", "Δ gap")
VERDICT_COLUMNS = ("verdict", *_MOVED, "p in the family", "gap within the margin")
NOT_INTERPRETED = "not interpreted"


def verdicts(summary: Summary) -> Section:
    """Return where every arm's gain landed: a table a domain, and one by other measures."""
    tables = []
    for domain in summary.domains:
        rows = [row for arm in summary.arms if (row := summary.placed(arm, domain)) is not None]
        if rows:
            title = f"{capitalize(domain_label(domain))}, by {measure(rows[0])}"
            lines = tuple(primary_row(summary, row) for row in rows)
            tables.append(SectionTable(title, VERDICT_COLUMNS, lines, rows_are="arm"))
    others = tuple(_other(summary, row) for row in summary.placements if not row.primary)
    if others:
        heads = ("domain", "measured by", *_MOVED)
        title = "By other measures, without verdicts"
        tables.append(SectionTable(title, heads, others, rows_are="arm", words=(0, 1)))
    shown = len(tables) - bool(others)
    return Section("verdicts", "The verdicts", tuple(tables), open=shown, folded=True)


def verdict_of(summary: Summary, row: PlacedGain) -> str:
    """Return a verdict in words; of an OOD domain that says too little, that it is none."""
    verdict = row.placement.verdict
    carried = verdict in (Verdict.ADVANTAGE, Verdict.PROMPT, Verdict.BOTH)
    return NOT_INTERPRETED if carried and reason_against(summary, row) else str(verdict)


def reason_against(summary: Summary, row: PlacedGain) -> str:
    """Return why a verdict out of domain is not interpreted; "" where it is, and in-domain."""
    if row.domain == IN_DOMAIN:
        return ""
    cot = MEASURES[row.measure, row.constrained][0]
    return not_interpreted(summary, row.arm, row.domain, cot)


def colour_of(summary: Summary, row: PlacedGain) -> str:
    """Return the kind of curve whose colour a verdict has; "" for ink."""
    kinds = {Verdict.ADVANTAGE: "cot", Verdict.PROMPT: "prompt", Verdict.BOTH: "constrained"}
    kind = kinds.get(row.placement.verdict, "")
    return "" if reason_against(summary, row) else kind


def primary_row(summary: Summary, row: PlacedGain) -> SectionRow:
    """Return an arm's verdict with what it follows from: the cells of VERDICT_COLUMNS."""
    placement, verdict = row.placement, verdict_of(summary, row)
    reasons = [_floor(row)] if placement.verdict is Verdict.FLOOR else []
    if summary.arms[row.arm].cannot_differ:
        reasons.append(cannot_differ(summary, row.arm))
    if verdict == NOT_INTERPRETED:
        reasons.append(reason_against(summary, row))
    decided = placement.verdict in (Verdict.ADVANTAGE, Verdict.PROMPT, Verdict.BOTH)
    carried = decided and verdict != NOT_INTERPRETED
    cells: tuple[str | Cell, ...] = (
        Cell(verdict, note=" ".join(map(capitalize, reasons)), sure=carried),
        *_moved(row),
        p_text(placement.adjusted_p).removeprefix("p = ") if carried else "–",
        "yes" if placement.steady else "not shown",
    )
    return SectionRow(summary.label(row.arm), cells)


def _other(summary: Summary, row: PlacedGain) -> SectionRow:
    share, *moved = _moved(row)
    if row.placement.verdict is Verdict.FLOOR:
        share = replace(share, note=f"{row.placement.verdict}: {_floor(row)}")
    cells: tuple[str | Cell, ...] = (domain_label(row.domain), measure(row), share, *moved)
    return SectionRow(summary.label(row.arm), cells)


def _moved(row: PlacedGain) -> tuple[Cell, ...]:
    """Return the share and the three changes."""
    placement = row.placement
    changes = placement.total, placement.prompt, placement.gap
    moved = (Cell(percent(each, signed=True, digits=1)) for each in changes)
    return Cell(share_text(row), note=_seed_text(row)), *moved


def _floor(row: PlacedGain) -> str:
    modes = " and ".join(_MODES.get(name, name) for name in row.placement.floor)
    verb = "are" if len(row.placement.floor) > 1 else "is"
    return f"{modes} {verb} below 5 % or above 95 % both at the base and now.{_progress(row)}"


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
    values = (f"{100 * value:.0f} %".replace("-", "−") for value in row.seed_shares.values())
    return f"by seed: {', '.join(values)}" if row.seed_shares else ""
