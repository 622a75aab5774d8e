"""Rows of the probe `revisions`: what the environment says of two actions in one state.

The actions are compared by the way to the goal that the world's expert finds after each. A CoT
action that differs from the prompt action is helpful where that way is shorter, or the only one
that there is; harmful in the opposite case; neutral where both are equally long, or there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from cotjax.diagnostics.metric import Metric
from cotjax.diagnostics.probe_rows import ProbeRow
from cotjax.formats import normalize_action
from cotjax.rollout.record import Driver

Kind = Literal["helpful", "harmful", "neutral", "unknown"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Verdict = Literal[Kind, "same", "diverged", "not_comparable"]
# Steps that are saved or lost in a state count up to so many; a goal that is out of reach after one
# action alone counts as many.
MOST_STEPS = 10
# Driver of an episode -> what the names and the labels of its metrics end with.
PLACES: Mapping[Driver, tuple[str, str]] = {
    "reference": ("", "expert states"),
    "cot": ("_cot_driven", "CoT-driven states"),
}


def _metrics() -> dict[str, Metric]:
    metrics = {}
    for name, where in PLACES.values():
        labels = {
            "judged_helpful": "helpful revisions by the environment",
            "judged_harmful": "harmful revisions by the environment",
            "judged_neutral": "neutral revisions by the environment",
            "judged_unknown": "revisions that the environment cannot judge",
            "replay_diverged": "replays that differ from the episode",
        }
        for metric, label in labels.items():
            metrics[f"{metric}{name}"] = Metric(f"{label} ({where})", "revisions")
        metrics[f"saved_steps{name}"] = Metric(
            f"steps to the goal that revisions save, a state ({where})",
            "revisions",
            "mean",
            upper=MOST_STEPS,
            low=-MOST_STEPS,
        )
    for kind, label in (("cot", "CoT"), ("prompt", "prompt")):
        metrics[f"d1_plan_{kind}"] = Metric(
            f"D1', {label} action is as good as the reference action", "revisions"
        )
    return metrics


class Ending(BaseModel):
    """How the episode ends after an action, if the world's expert goes on."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    steps: int | None = Field(
        description="the expert's steps to the goal after the action; null where it is not reached"
    )
    unknown: str | None = Field(
        description="why nothing is known about it: the expert cannot go on; else null"
    )


class RevisionRow(ProbeRow):
    """One state with a CoT and a prompt response.

    An ending is null where nothing was replayed: the actions are equal, or there are not two.
    """

    metrics: ClassVar[Mapping[str, Metric]] = _metrics()

    verdict: Verdict = Field(
        description="`same`, `not_comparable` (a response is invalid), `diverged` (the replay "
        "differs), or what the CoT action is: `helpful`, `harmful`, `neutral`, `unknown`"
    )
    cot: str | None = Field(description="CoT action; null where the response is invalid")
    prompt: str | None = Field(description="prompt action; null where the response is invalid")
    reference: str | None = Field(description="the expert's action; null where there is none")
    cot_ending: Ending | None = Field(description="after the CoT action")
    prompt_ending: Ending | None = Field(description="after the prompt action")
    reference_ending: Ending | None = Field(description="after the expert's action")
    differs: str | None = Field(description="what differs in the replay; else null")

    def counts(self) -> Mapping[str, float]:
        end, _ = PLACES[self.driver]
        counts: dict[str, float] = {}
        diverged = self.verdict == "diverged"
        if self.cot_ending or self.prompt_ending or diverged:
            counts["replay_diverged"] = diverged
        if not diverged and self.verdict != "not_comparable":
            counts |= {f"judged_{kind}": self.verdict == kind for kind in KINDS}
            saved = saved_steps(self.cot_ending, self.prompt_ending) if self._differ else 0
            if saved is not None:
                counts["saved_steps"] = saved
        counts = {f"{name}{end}": value for name, value in counts.items()}
        if self.reference is not None and not diverged:
            counts["d1_plan_cot"] = self._as_good(self.cot, self.cot_ending)
            counts["d1_plan_prompt"] = self._as_good(self.prompt, self.prompt_ending)
        return counts

    @property
    def _differ(self) -> bool:
        return self.verdict in KINDS

    def _as_good(self, action: str | None, ending: Ending | None) -> bool:
        """Return whether an action is the reference, or its way to the goal is no longer."""
        if action is None or self.reference is None:
            return False
        if normalize_action(action) == normalize_action(self.reference):
            return True
        best = self.reference_ending
        if ending is None or ending.steps is None or best is None:
            return False
        return best.steps is None or ending.steps <= best.steps


def verdict(cot: Ending, prompt: Ending) -> Kind:
    """Return what the CoT action is, by how the episode ends after it and after the other one."""
    if cot.unknown is not None or prompt.unknown is not None:
        return "unknown"
    if cot.steps == prompt.steps:
        return "neutral"
    if prompt.steps is None or (cot.steps is not None and cot.steps < prompt.steps):
        return "helpful"
    return "harmful"


def saved_steps(cot: Ending | None, prompt: Ending | None) -> int | None:
    """Return the steps to the goal that the CoT action saves; None where it is not known.

    Below 0 where it costs steps, and MOST_STEPS at most, which stands for the goal too.
    """
    if cot is None or prompt is None or cot.unknown is not None or prompt.unknown is not None:
        return None
    if cot.steps is None or prompt.steps is None:
        return MOST_STEPS * ((prompt.steps is None) - (cot.steps is None))
    return max(-MOST_STEPS, min(prompt.steps - cot.steps, MOST_STEPS))
