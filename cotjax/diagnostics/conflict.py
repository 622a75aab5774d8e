"""D5, conflicting traces: what a checkpoint does after a thought that supports another action.

In a state whose own thought led to the action a1, a thought that supports an admissible a2 != a1 is
forced, and the action behind it is one of four: a1 (keep), a2 (follow), a third, or invalid.

| variant | the thought |
|---|---|
| `swap` | the own thought with one noun of its action swapped, so that it says a2 |
| `other` | the whole thought of another state, which led to a2 there and names what a2 is about |
| `cut` | the same, cut before it first mentions anything that a2 names |
| `cut_action` | the same, cut before the clause that says a2 |

Variants have controls of their length in tokens, named `<control>_<variant>` (CONTROLS), which are
judged by the same a1 and a2. The effect of a variant is how often a2 follows it, minus how
often a2 follows the own thought, cut at the same length.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from cotjax.diagnostics.metric import Metric
from cotjax.diagnostics.probe_rows import ProbeRow

PROBE = "conflict"
Outcome = Literal["keep", "follow", "third", "invalid"]
OUTCOMES: Mapping[Outcome, str] = MappingProxyType(
    {
        "keep": "keeps its own action",
        "follow": "follows the other action",
        "third": "takes a third action",
        "invalid": "gives no valid action",
    }
)
VARIANTS = MappingProxyType(
    {
        "swap": "own thought, one noun swapped",
        "other": "another state's thought",
        "cut": "the same, cut before it names the action's objects",
        "cut_action": "the same, cut before the action",
    }
)
# What a variant is compared with, at its length.
_CONTROLS = MappingProxyType(
    {
        "own": "own thought",
        "same": "another state's thought, for the own action",
        "irrelevant": "thought of another task type",
        "shuffled": "own thought, its words shuffled",
        "empty": "empty thought",
    }
)
# Variant -> its controls.
CONTROLS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "swap": ("own",),
        "other": tuple(_CONTROLS),
        "cut": tuple(_CONTROLS),
        "cut_action": ("own",),
    }
)
LENGTHS = MappingProxyType(
    {
        "swap": "whole",
        "other": "as long as another state's",
        "cut": "as long as the one cut before the objects",
        "cut_action": "as long as the one cut before the action",
    }
)
TRIALS = MappingProxyType(
    VARIANTS
    | {
        f"{control}_{variant}": f"{_CONTROLS[control]}, {LENGTHS[variant]}"
        for variant, controls in CONTROLS.items()
        for control in controls
    }
)
# Why a state has no thought of a variant.
MISSING = MappingProxyType(
    {
        "no_response": "no CoT response was decoded there",
        "invalid": "its CoT response is invalid",
        "no_thought": "its CoT response has no thought",
        "tag": "its thought has a tag or a token inside that is no text",
        "not_named": "no thought names what its action is about",
        "no_other_action": "no other admissible action is supported by a thought",
        "too_short": "nothing is left before the first mention",
        "too_long": "it does not fit into evaluate.max_length",
    }
)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="forbid")


class Conflict(_Model):
    """A thought that supports another action than the state's own."""

    action: str = Field(description="a2")
    thought: str = Field(description="as it was forced")
    game: str = Field(description="game of the state that it comes from; its own for `swap`")
    turn: int = Field(description="turn of that state")


class Trial(_Model):
    """What followed one thought."""

    action: str | None = Field(description="null where the response was invalid")
    outcome: Outcome = Field(description="`keep` (a1), `follow` (a2), `third`, or `invalid`")
    tokens: int = Field(description="of the thought")


def _metrics() -> dict[str, Metric]:
    metrics = {}
    for name, text in TRIALS.items():
        for outcome, what in OUTCOMES.items():
            if name in VARIANTS or outcome in ("keep", "follow"):
                metrics[f"conflict_{outcome}_{name}"] = Metric(f"D5, {text}: {what}", PROBE)
    for name, text in VARIANTS.items():
        metrics[f"conflict_effect_{name}"] = Metric(
            f"D5, {text}: follows, minus own thought of that length", PROBE, "difference"
        )
        for kind, which in (("anchored", "is"), ("revised", "is not")):
            metrics[f"conflict_keep_{name}_{kind}"] = Metric(
                f"D5, {text}: keeps its own action where that {which} the prompt action", PROBE
            )
        metrics[f"conflict_fits_{name}"] = Metric(f"D5, {text}: states that have one", PROBE)
    return metrics


class ConflictRow(ProbeRow):
    """The trials of one state."""

    metrics: ClassVar[Mapping[str, Metric]] = MappingProxyType(_metrics())
    differences: ClassVar[Mapping[str, tuple[str, str]]] = MappingProxyType(
        {
            f"conflict_effect_{name}": (f"conflict_follow_{name}", f"conflict_follow_own_{name}")
            for name in VARIANTS
        }
    )

    own: str | None = Field(description="a1, the state's CoT action; null where it has none")
    prompt: str | None = Field(description="its prompt action; null where it has none")
    listed: bool = Field(
        description="the environment lists what is admissible; else nobody knows whether a2 is"
    )
    conflicts: dict[str, Conflict] = Field(description="variant -> its thought")
    trials: dict[str, Trial] = Field(description="variant or control -> what followed")
    missing: dict[str, str] = Field(description="variant -> why it has no thought here (MISSING)")

    def counts(self) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for name, trial in self.trials.items():
            for outcome in OUTCOMES:
                if (metric := f"conflict_{outcome}_{name}") in self.metrics:
                    found[metric] = float(trial.outcome == outcome)
        for name in VARIANTS:
            if name in self.trials and self.prompt is not None:
                kind = "anchored" if self.prompt == self.own else "revised"
                kept = self.trials[name].outcome == "keep"
                found[f"conflict_keep_{name}_{kind}"] = float(kept)
            if name in self.trials or name in self.missing:
                found[f"conflict_fits_{name}"] = float(name in self.trials)
        return found


def outcome_of(action: str | None, own: str, other: str) -> Outcome:
    """Return which of the four an action is: of a1 = `own` and a2 = `other`, which differ."""
    if action is None:
        return "invalid"
    return "keep" if action == own else "follow" if action == other else "third"
