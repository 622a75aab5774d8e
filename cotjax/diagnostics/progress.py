"""Rows of the probe `progress`: how far a played episode came on the expert's way to the goal.

An episode that is not won may end close to the goal or far from it. The world's expert finishes
from where it ended, and its steps are compared with those of its own episode from the start:

    progress = (steps from the start - steps from the end) / steps from the start

1 is a won episode, 0 one that is as far from the goal as it was, and -1, the least, one that is
twice as far, or out of the expert's reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from pydantic import Field

from cotjax.diagnostics.metric import Metric
from cotjax.diagnostics.probe_rows import ProbeRow
from cotjax.diagnostics.revisions import Ending
from cotjax.rollout.record import Kind

PROBE = "progress"
# Driver -> what the label of its metric says.
_DRIVEN: Mapping[Kind, str] = {
    "cot": "CoT-driven episodes",
    "prompt": "prompt-driven episodes",
    "cot_constrained": "episodes driven by constrained CoT actions",
    "prompt_constrained": "episodes driven by constrained prompt actions",
    "instructed": "instructed episodes",
}


def progress_metric(driver: str) -> str:
    """Return the name of the metric of episodes with this driver."""
    return f"progress_{driver}"


class ProgressRow(ProbeRow):
    """One played episode; its `turn` is the last."""

    metrics: ClassVar[Mapping[str, Metric]] = MappingProxyType(
        {
            progress_metric(driver): Metric(
                f"shortening of the expert's plan, {words}", PROBE, "mean", upper=1, low=-1
            )
            for driver, words in _DRIVEN.items()
        }
    )

    start: int | None = Field(
        description="steps of the expert's own episode; null where there is none that is won"
    )
    ending: Ending | None = Field(
        description="how the expert finishes from where the episode ended: 0 steps where it was "
        "won; null where the replay differs"
    )
    differs: str | None = Field(description="what differs in the replay; else null")

    def counts(self) -> Mapping[str, float]:
        """As `ProbeRow.counts`. What nobody knows, or what differs, counts nowhere."""
        if not self.start or self.ending is None or self.ending.unknown is not None:
            return {}
        left = self.ending.steps
        gained = -1.0 if left is None else (self.start - left) / self.start
        return {progress_metric(self.driver): max(gained, -1.0)}
