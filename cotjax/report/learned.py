"""Two tables on what there was to learn: information in the action, and the split of the gap."""

from __future__ import annotations

from collections.abc import Sequence

from cotjax.diagnostics.information import LEAST_REMOVED, Information
from cotjax.diagnostics.statistics import Estimate
from cotjax.objectives.named import SUPERVISED
from cotjax.report.arms import twin_of
from cotjax.report.labels import NOT_DEFINED, domain_label, percent
from cotjax.report.rows import GapSplit
from cotjax.report.section import Cell, Section, SectionRow, SectionTable
from cotjax.report.summary import Summary

INFORMATION_COLUMNS = (
    "nats per action token, given the thought",
    "given the prompt alone",
    "nats per whole action, given the thought",
    "given the prompt alone",
    "action's share of the loss",
    "of the gradient",
    "removed from the loss",
)
_SPLIT_COLUMNS = (
    "domain",
    "measure",
    "gap: CoT − prompt action",
    "reasoning adds: CoT action − twin's prompt action",
    "elicitation hides: twin's prompt action − prompt action",
    "constrained − free prompt action",
)


def learned(summary: Summary) -> list[Section]:
    """Return the sections on what there was to learn, those that have a table."""
    return [section for section in (_split(summary), _information(summary)) if section.tables]


def information_table(summary: Summary) -> SectionTable:
    """Return the information in the action along the checkpoints of every arm that has it.

    A mean over seeds. Of an arm with another objective than the supervised one they are not
    defined. An arm that drops something, which is under 1 % of the loss, is marked.
    """
    rows = []
    for arm in summary.arms.values():
        by_step: dict[int, list[Information]] = {}
        for seed in arm.seeds:
            for row in summary.information.get(seed, ()):
                by_step.setdefault(row.checkpoint, []).append(row)
        for checkpoint, of_seeds in sorted(by_step.items()):
            removed = max(row.removed_share for row in of_seeds)
            thought = [row.action_given_thought for row in of_seeds if row.action_given_thought]
            prompt = [row.action_given_prompt for row in of_seeds if row.action_given_prompt]
            little = bool(arm.fraction) and removed < LEAST_REMOVED
            cells = (
                str(checkpoint),
                _mean([nats.token for nats in thought]),
                _mean([nats.token for nats in prompt]),
                _mean([nats.action for nats in thought]),
                _mean([nats.action for nats in prompt]),
                _percent([row.loss_share.get("ACTION", 0.0) for row in of_seeds]),
                _percent([row.gradient_share.get("ACTION", 0.0) for row in of_seeds]),
                Cell(
                    _percent([row.removed_share for row in of_seeds]) if arm.fraction else "–",
                    note="⚠ under 1 %" if little else "",
                ),
            )
            rows.append(SectionRow(arm.label, cells))
        if summary.information and not by_step and arm.objective != SUPERVISED:
            undefined = (NOT_DEFINED,) * len(INFORMATION_COLUMNS)
            note = f"{arm.objective} is not a sum of the losses of tokens of data"
            rows.append(SectionRow(arm.label, ("–", *undefined), note=note))
    return SectionTable("", ("step", *INFORMATION_COLUMNS), tuple(rows), rows_are="arm")


def split_table(summary: Summary) -> SectionTable:
    """Return the split of every gap; the rounded parts add up to the rounded gap."""
    rows = tuple(
        SectionRow(
            summary.label(split.arm),
            (
                domain_label(split.domain),
                split.measure.upper(),
                _points(split.gap),
                _points(split.reasoning),
                _remainder(split),
                _points(split.constrained),
            ),
        )
        for split in summary.splits
    )
    return SectionTable("", _SPLIT_COLUMNS, rows, rows_are="arm", words=(0, 1))


def _split(summary: Summary) -> Section:
    twin = twin_of(summary.arms)
    said = (
        f"In percentage points at step {summary.last_checkpoint}, against the prompt action of "
        f"{summary.label(twin) if twin else 'another arm'}, which was trained to give it. Gap = "
        "what reasoning adds + what elicitation hides, on the same games. Constrained − free: what "
        "choosing among the admissible actions brings back of what is hidden."
    )
    table = split_table(summary)
    return Section("split", "What the gap is made of", (table,) if table.rows else (), (said,))


def _information(summary: Summary) -> Section:
    said = (
        "Before training and along it, on examples of the arm's own training data, with no loss "
        "dropped. An action that its thought names holds next to nothing, and dropping its loss "
        "changes next to nothing: where an arm's intervention removes under 1 % of the loss, the "
        "arm cannot differ from its counterpart."
    )
    table, title = information_table(summary), "Information in the action"
    return Section("information", title, (table,) if table.rows else (), (said,))


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "–"
    value = sum(values) / len(values)
    return f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def _percent(shares: Sequence[float]) -> str:
    value = sum(shares) / len(shares)
    return f"{100 * value:.2f} %" if abs(value) < 0.1 else f"{100 * value:.1f} %"


def _points(estimate: Estimate) -> str:
    return percent(estimate, signed=True, digits=1)


def _remainder(split: GapSplit) -> str:
    """Return what is hidden, its value as the difference of the two rounded ones."""
    gap, reasoning = (round(100 * (x.value or 0.0), 1) for x in (split.gap, split.reasoning))
    _, _, ends = _points(split.hidden).partition(" ")
    return f"{round(gap - reasoning, 1) + 0.0:+.1f} {ends}".replace("-", "−")
