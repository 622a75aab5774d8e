"""D7: the share of an action's gradient that reaches prompt and reasoning."""

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


class Reached(Response):
    """The gradient of an action's loss, the sum over its tokens."""

    share: Share = Field(
        description="of the gradient at the value vectors, through the attention of the positions "
        "that predict the action: norms summed over layers and a group's tokens, over those of all"
    )
    input_share: Share = Field(
        description="of |gradient x embedding|, summed over a group's tokens, over that of all"
    )
    prompt_by_layer: Layers = Field(description="`share` of the prompt, from the first layer on")
    reasoning_by_layer: Layers = Field(description="`share` of the reasoning")


class Swapped(Part):
    """The same action after another state's thought."""

    game: str = Field(description="id of the other state's game")
    turn: int = Field(description="its turn")
    own_tokens: int = Field(description="tokens of the own thought")
    tokens: int = Field(description="tokens of the other thought")
    nats: float = Field(description="of the action, minus those after its own thought")
    changed: bool = Field(
        description="some token of the action is no longer the most likely one that it was"
    )


class GradientRow(SharesRow):
    """What D7 measured at one state."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        **share_metrics("gradient", "D7, action gradient (value path) at", "gradient"),
        **share_metrics("gradient_uniform", "D7, share of the tokens that are", "gradient"),
        **share_metrics("gradient_input", "D7, |gradient x embedding| at", "gradient"),
        "gradient_of_two": Metric(
            "D7, the prompt's part of the gradient (value path) at prompt and reasoning",
            "gradient", "mean", upper=1,
        ),
        "gradient_prompt_action": Metric(
            "D7, gradient (value path) of the prompt action at the prompt",
            "gradient", "mean", upper=1,
        ),
        "thought_swapped_nats": Metric(
            "nats of the action after another state's thought, minus after its own",
            "gradient", "mean", upper=MEAN_NATS, low=-MEAN_NATS,
        ),
        "thought_swapped_changed": Metric(
            "actions that change after another state's thought", "gradient"
        ),
    }  # fmt: skip

    cot: Reached | None = Field(description="at the CoT action; null where it was skipped")
    prompt: Reached | None = Field(
        description="at the prompt action, for comparison; null where it is invalid"
    )
    swapped: Swapped | None = Field(
        description="the thought swapped for that of another game's state whose length is nearest; "
        "null where there is none, or no `cot`"
    )

    def counts(self) -> Mapping[str, float]:
        """As `ProbeRow.counts`."""
        counts: dict[str, float] = {}
        if self.prompt is not None:
            counts["gradient_prompt_action"] = of_prompt(self.prompt.share)
        if self.cot is None:
            return counts
        counts |= share_counts("gradient", self.cot.share)
        counts |= share_counts("gradient_uniform", self.cot.uniform)
        counts |= share_counts("gradient_input", self.cot.input_share)
        two = of_two(self.cot.share)
        counts |= {} if two is None else {"gradient_of_two": two}
        if self.swapped is not None:
            counts["thought_swapped_nats"] = in_mean(self.swapped.nats)
            counts["thought_swapped_changed"] = self.swapped.changed
        return counts

    def layers(self) -> Mapping[str, Sequence[float]]:
        """As `ProbeRow.layers`."""
        return shares_by_layer("gradient", self.cot)
