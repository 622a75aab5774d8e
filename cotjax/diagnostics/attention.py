"""D6: the share of attention on prompt and on reasoning while an action is predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from cotjax.diagnostics.metric import Metric
from cotjax.diagnostics.role_shares import (
    MEAN_NATS,
    Layers,
    Part,
    Response,
    Share,
    SharesRow,
    in_mean,
    of_prompt,
    of_two,
    share_counts,
    share_metrics,
    shares_by_layer,
)


class Attended(Response):
    """The attention of the positions that predict an action's tokens."""

    share: Share = Field(description="of attention, mean over heads, layers and tokens")
    prompt_by_layer: Layers = Field(description="share on the prompt, from the first layer on")
    reasoning_by_layer: Layers = Field(description="share on the reasoning")


class Hidden(Part):
    """The same action where it does not see the reasoning."""

    nats: float = Field(description="of the action, minus those where it sees the reasoning")
    changed: bool = Field(
        description="some token of the action is no longer the most likely one that it was"
    )


class AttentionRow(SharesRow):
    """What D6 measured at one state."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        **share_metrics("attention", "D6, attention on", "attention"),
        **share_metrics("attention_uniform", "D6, if attention were uniform: on", "attention"),
        "attention_of_two": Metric(
            "D6, the prompt's part of the attention on prompt and reasoning",
            "attention", "mean", upper=1,
        ),
        "attention_prompt_action": Metric(
            "D6, attention on the prompt while the prompt action is predicted",
            "attention", "mean", upper=1,
        ),
        "attention_masked_nats": Metric(
            "nats of the action when its tokens do not see the reasoning, minus when they do",
            "attention", "mean", upper=MEAN_NATS, low=-MEAN_NATS,
        ),
        "attention_masked_changed": Metric(
            "actions that change when their tokens do not see the reasoning", "attention"
        ),
        "attention_blocked_nats": Metric(
            "nats of the action when nothing behind the reasoning sees it, minus when it does",
            "attention", "mean", upper=MEAN_NATS, low=-MEAN_NATS,
        ),
        "attention_blocked_changed": Metric(
            "actions that change when nothing behind the reasoning sees it", "attention"
        ),
    }  # fmt: skip

    cot: Attended | None = Field(description="at the CoT action; null where it was skipped")
    prompt: Attended | None = Field(
        description="at the prompt action, for comparison; null where it is invalid"
    )
    masked: Hidden | None = Field(
        description="attention from the action's positions to the reasoning is cut in all layers; "
        "the tags before the action still see it. Null where there is no `cot`"
    )
    blocked: Hidden | None = Field(
        description="everything behind the reasoning is cut off from it, so that nothing of it "
        "reaches the action. Null where there is no `cot`"
    )

    def counts(self) -> Mapping[str, float]:
        """As `ProbeRow.counts`."""
        counts: dict[str, float] = {}
        if self.prompt is not None:
            counts["attention_prompt_action"] = of_prompt(self.prompt.share)
        if self.cot is None:
            return counts
        counts |= share_counts("attention", self.cot.share)
        counts |= share_counts("attention_uniform", self.cot.uniform)
        two = of_two(self.cot.share)
        counts |= {} if two is None else {"attention_of_two": two}
        for name, hidden in (("masked", self.masked), ("blocked", self.blocked)):
            if hidden is not None:
                counts[f"attention_{name}_nats"] = in_mean(hidden.nats)
                counts[f"attention_{name}_changed"] = hidden.changed
        return counts

    def layers(self) -> Mapping[str, Sequence[float]]:
        """As `ProbeRow.layers`."""
        return shares_by_layer("attention", self.cot)
