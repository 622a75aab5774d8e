"""Rows of the probe `floor`: several responses of each kind, sampled from one state.

Two samples of the *same* mode also disagree. What D2 and the revision rate say of two modes is what
lies beyond that floor. With the shares p(a) and q(a) of the actions that CoT responses and prompt
responses of a state give when they are sampled:

| | is | estimated by the pairs of |
|---|---|---|
| `d2_floor_cot` | Σ p(a)² | two CoT actions |
| `d2_floor_prompt` | Σ q(a)² | two prompt actions |
| `d2_sampled` | Σ p(a) q(a) | a CoT action and a prompt action |
| `revision_excess` | ½ Σ (p(a) − q(a))² | the mean of the first two minus the third |

The excess is 0 where both modes draw from the same actions alike, however often two draws differ,
and above 0 anywhere else. Its estimate at one state may be below 0.

An invalid response has no action. A state counts where each kind has two valid responses; all four
metrics are counted on these states, and their pairs are those of valid responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import ClassVar

import numpy as np
from pydantic import Field

from cotjax.diagnostics.metric import Metric
from cotjax.diagnostics.probe_rows import ProbeRow
from cotjax.rollout.record import Many

NAME = "floor"


class FloorRow(ProbeRow):
    """The sampled actions of one state."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "d2_floor_cot": Metric("D2's floor, two CoT actions the same (sampled)", NAME),
        "d2_floor_prompt": Metric("D2's floor, two prompt actions the same (sampled)", NAME),
        "d2_sampled": Metric("D2, CoT and prompt action the same (sampled)", NAME),
        "revision_excess": Metric(
            "revision rate beyond its floor (sampled)", NAME, "mean", upper=1.0, low=-0.5
        ),
        "d2_floor_not_comparable": Metric(
            "states without two valid responses of each kind (sampled)", NAME
        ),
    }

    cot: Many[str | None] = Field(
        description="actions of the CoT responses, whitespace normalised; null for an invalid one"
    )
    prompt: Many[str | None] = Field(description="actions of the prompt responses, likewise")

    def counts(self) -> Mapping[str, float]:
        """Return the state's shares of equal pairs."""
        cot = [action for action in self.cot if action is not None]
        prompt = [action for action in self.prompt if action is not None]
        if min(len(cot), len(prompt)) < 2:
            return {"d2_floor_not_comparable": 1}
        of_cot, of_prompt = (_equal([*combinations(each, 2)]) for each in (cot, prompt))
        sampled = _equal([*product(cot, prompt)])
        return {
            "d2_floor_cot": of_cot,
            "d2_floor_prompt": of_prompt,
            "d2_sampled": sampled,
            "revision_excess": (of_cot + of_prompt) / 2 - sampled,
            "d2_floor_not_comparable": 0,
        }


def _equal(pairs: Sequence[tuple[str, str]]) -> float:
    return float(np.mean([one == other for one, other in pairs]))
