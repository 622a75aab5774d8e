"""The groups of tokens that D6 and D7 tell apart, and shares by group.

`PROMPT` are the groups of a prompt; the others belong to the response.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from cotjax.diagnostics.metric import Metric
from cotjax.diagnostics.probe_rows import ProbeRow

# Group -> what it holds, in the order of the numbers that rows carry.
GROUPS: Mapping[str, str] = {
    "scaffold": "system message, instruction, examples, the template's marks, tags of past turns",
    "task": "the line that names the task",
    "history": "past observations, their listed actions, and executed actions",
    "observation": "the current observation",
    "admissible": "the admissible actions that the current turn lists",
    "reasoning": "the thought",
    "tags": "the response's tags, and what a template puts around them",
    "action": "the action's tokens before the one that is predicted",
}
PROMPT = ("scaffold", "task", "history", "observation", "admissible")
# Why a CoT response was not measured.
Skipped = Literal["prompt", "invalid", "no_thought", "length"]
NAMES = ("prompt", *GROUPS)  # of totals: the prompt, and each group
# The most by which an action's nats are said to change: in a row, and in a mean. A mean's interval
# follows from its limits, and with 100 nats it would hold nothing but noise.
NATS, MEAN_NATS = 100.0, 20.0

# What is measured by layer too.
BY_LAYER = ("prompt", "reasoning")

Share = dict[str, float]
Layers = Annotated[tuple[float, ...], Field(strict=False)]


class Part(BaseModel):
    """A part of a row."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="forbid")


class Response(Part):
    """What was measured while a response's action was predicted.

    Shares are by group, and add to 1; groups without tokens are left out.
    """

    nats: float = Field(description="of the action: -log of its tokens' probability")
    tokens: int = Field(description="of the action")
    length: int = Field(description="tokens before the action's last one")
    uniform: Share = Field(
        description="share of the tokens that are visible, mean over the action's tokens: what "
        "uniform attention gives"
    )


def of_prompt(share: Mapping[str, float]) -> float:
    """Return the prompt's share: that of its groups together."""
    return sum(share.get(group, 0.0) for group in PROMPT)


def of_two(share: Mapping[str, float]) -> float | None:
    """Return the prompt's part of what prompt and reasoning have together; None for nothing."""
    both = of_prompt(share) + share.get("reasoning", 0.0)
    return of_prompt(share) / both if both > 0 else None


def in_mean(nats: float) -> float:
    """Return a change of an action's nats as it counts in a mean."""
    return min(max(nats, -MEAN_NATS), MEAN_NATS)


def share_counts(prefix: str, share: Mapping[str, float]) -> dict[str, float]:
    """Return the share of the prompt and of each group under `<prefix>_<name>`."""
    counts = {f"{prefix}_{group}": share.get(group, 0.0) for group in GROUPS}
    return {f"{prefix}_prompt": of_prompt(share)} | counts


def share_metrics(prefix: str, label: str, source: str) -> dict[str, Metric]:
    """Return the metrics that `share_counts` counts for."""
    return {
        f"{prefix}_{name}": Metric(f"{label} {_WORDS.get(name, name)}", source, "mean", upper=1)
        for name in NAMES
    }


_WORDS = {
    "prompt": "the prompt",
    "scaffold": "the scaffold",
    "task": "the task",
    "history": "the history",
    "observation": "the observation",
    "admissible": "the listed actions",
    "reasoning": "the reasoning",
    "tags": "the tags",
    "action": "the action so far",
}


class Layered(Protocol):
    """What was measured in each layer, from the first one on."""

    @property
    def prompt_by_layer(self) -> Layers: ...

    @property
    def reasoning_by_layer(self) -> Layers: ...


def shares_by_layer(own: str, cot: Layered | None) -> dict[str, Layers]:
    """Return metric -> its share in each layer; {} where no CoT response was measured.

    `own`: "attention" or "gradient".
    """
    if cot is None:
        return {}
    values = (cot.prompt_by_layer, cot.reasoning_by_layer)
    return {f"{own}_{part}": each for part, each in zip(BY_LAYER, values, strict=True)}


class SharesRow(ProbeRow):
    """The part of a row that D6 and D7 have in common."""

    skipped: Skipped | None = Field(
        description="why the CoT response was not measured: its prompt is not what the codec "
        "writes, it is invalid, has no thought, or is longer than the limit; else null"
    )
