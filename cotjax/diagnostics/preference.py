"""Rows of the probe `preference` (D4): which of a state's two actions judges prefer.

A judge is asked twice, with the actions in both orders. It prefers an action where both answers
name it. Two answers that differ are a tie, and two that name the same position are position bias.
Equal actions are a tie, and nobody is asked. All shares but those of agreement and bias are of the
states with two actions and, for a judge that was asked, two answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field

from cotjax.diagnostics.metric import Metric
from cotjax.diagnostics.probe_rows import ProbeRow

Choice = Literal["cot", "prompt", "tie"]
JudgeName = Literal["environment", "model", "endpoint"]
JUDGES: tuple[JudgeName, ...] = get_args(JudgeName)
PAIRS = tuple(combinations(JUDGES, 2))


def _metrics() -> dict[str, Metric]:
    metrics = {}
    for judge in JUDGES:
        by = f"judge: {judge}"
        for name, label in (
            ("cot_wins", "CoT action preferred"),
            ("prompt_wins", "prompt action preferred"),
            ("tie", "neither action preferred"),
        ):
            metrics[f"d4_{name}_{judge}"] = Metric(f"D4, {label} ({by})", "preference")
        metrics[f"d4_gap_{judge}"] = Metric(
            f"D4, gap of preference, CoT − prompt ({by})", "preference", "difference"
        )
        metrics[f"d4_position_bias_{judge}"] = Metric(
            f"D4, both answers name the same position ({by})", "preference"
        )
        metrics[f"d4_no_answer_{judge}"] = Metric(
            f"D4, states without an answer ({by})", "preference"
        )
    for one, other in PAIRS:
        metrics[f"d4_agreement_{one}_{other}"] = Metric(
            f"D4, judges agree where the actions differ ({one}, {other})", "preference"
        )
    return metrics


class Opinion(BaseModel):
    """What one judge said of a state's two actions."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    in_order: Choice | None = Field(
        description="where the CoT action stood first; null without an answer"
    )
    swapped: Choice | None = Field(description="where the prompt action stood first")
    winner: Choice | None = Field(description="what both answers say; `tie` where they differ")

    @classmethod
    def of(cls, in_order: Choice | None, swapped: Choice | None) -> Self:
        """Return the opinion of two answers."""
        if in_order is None or swapped is None:
            return cls(in_order=in_order, swapped=swapped, winner=None)
        return cls(
            in_order=in_order,
            swapped=swapped,
            winner=in_order if in_order == swapped else "tie",
        )

    @property
    def by_position(self) -> bool:
        """Whether both answers name the action that stood in the same place."""
        return {self.in_order, self.swapped} == {"cot", "prompt"}


class PreferenceRow(ProbeRow):
    """One state with a CoT and a prompt response."""

    metrics: ClassVar[Mapping[str, Metric]] = _metrics()
    differences: ClassVar[Mapping[str, tuple[str, str]]] = {
        f"d4_gap_{judge}": (f"d4_cot_wins_{judge}", f"d4_prompt_wins_{judge}") for judge in JUDGES
    }

    cot: str | None = Field(description="CoT action; null where the response is invalid")
    prompt: str | None = Field(description="prompt action; null where the response is invalid")
    opinions: dict[JudgeName, Opinion] = Field(
        description="judge -> what it said; of equal actions a tie. Empty without two actions"
    )

    def counts(self) -> Mapping[str, float]:
        counts: dict[str, float] = {}
        asked = self.cot != self.prompt
        for judge, opinion in self.opinions.items():
            if asked:
                counts[f"d4_no_answer_{judge}"] = opinion.winner is None
            if opinion.winner is None:
                continue
            if asked:
                counts[f"d4_position_bias_{judge}"] = opinion.by_position
            counts[f"d4_cot_wins_{judge}"] = opinion.winner == "cot"
            counts[f"d4_prompt_wins_{judge}"] = opinion.winner == "prompt"
            counts[f"d4_tie_{judge}"] = opinion.winner == "tie"
        for one, other in PAIRS:
            winners = {
                self.opinions[judge].winner for judge in (one, other) if judge in self.opinions
            }
            both = one in self.opinions and other in self.opinions
            if asked and both and None not in winners:
                counts[f"d4_agreement_{one}_{other}"] = len(winners) == 1
        return counts
