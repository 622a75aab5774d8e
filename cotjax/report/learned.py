"""Two tables on what there was to learn: information in the action, and the split of the gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cotjax.diagnostics.information import LEAST_REMOVED, Information
from cotjax.diagnostics.statistics import Estimate
from cotjax.report.labels import domain_label, percent
from cotjax.report.rows import GapSplit
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


@dataclass(frozen=True)
class InformationRow:
    """What the action of one arm holds at one checkpoint, a mean over seeds.

    `little`: the arm drops something, and that removes under 1 % of the loss.
    """

    label: str
    checkpoint: int
    cells: tuple[str, ...]
    little: bool


@dataclass(frozen=True)
class SplitRow:
    """The gap of one arm by one measure, and its parts."""

    label: str
    domain: str
    measure: str
    gap: str
    reasoning: str
    hidden: str
    constrained: str


def information_rows(summary: Summary) -> list[InformationRow]:
    """Return the information in the action along the checkpoints of every arm that has it."""
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
            cells = (
                _mean([nats.token for nats in thought]),
                _mean([nats.token for nats in prompt]),
                _mean([nats.action for nats in thought]),
                _mean([nats.action for nats in prompt]),
                _percent([row.loss_share.get("ACTION", 0.0) for row in of_seeds]),
                _percent([row.gradient_share.get("ACTION", 0.0) for row in of_seeds]),
                _percent([row.removed_share for row in of_seeds]) if arm.fraction else "–",
            )
            little = bool(arm.fraction) and removed < LEAST_REMOVED
            rows.append(InformationRow(arm.label, checkpoint, cells, little))
    return rows


def split_rows(summary: Summary) -> list[SplitRow]:
    """Return the split of every gap; the rounded parts add up to the rounded gap."""
    return [
        SplitRow(
            label=summary.label(split.arm),
            domain=domain_label(split.domain),
            measure=split.measure.upper(),
            gap=_points(split.gap),
            reasoning=_points(split.reasoning),
            hidden=_remainder(split),
            constrained=_points(split.constrained),
        )
        for split in summary.splits
    ]


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
