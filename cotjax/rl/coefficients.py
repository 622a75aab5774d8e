"""Weights of the KL and the entropy term that follow a target from step to step.

    kl        w (1 + kl_rate clip(kl / kl_target - 1, -0.2, 0.2))         arXiv 1909.08593
    entropy   w + entropy_step while entropy is at most entropy_target, else w - entropy_step;
              between 0 and 1; and the term rests after a step above the target
                                           arXiv 2505.22312; TRL's use_adaptive_entropy

kl and entropy are those of the step's row, nats a token. A checkpoint has what the next step needs,
so that a resumed run goes on with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_MOST_ERROR = 0.2  # of kl, relative to its target
_MOST_ENTROPY = 1.0  # weight of the entropy


@dataclass(frozen=True)
class Coefficients:
    """The weights of one step. rests: the entropy was above its target, so its term is left out."""

    kl: float
    entropy: float
    rests: bool = False

    @classmethod
    def at(cls, settings: Any, place: Mapping[str, Any]) -> Coefficients:
        """Return those of a checkpoint's `place`, or else those of `settings` (`config.rl`)."""
        usual = {"kl": settings.kl, "entropy": settings.entropy}
        return cls(**(place.get("coefficients") or usual))

    def values(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return asdict(self)

    @property
    def applied(self) -> dict[str, float]:
        """The weights that the step's loss has."""
        return {"kl": self.kl, "entropy": 0.0 if self.rests else self.entropy}

    def after(self, row: Mapping[str, Any], settings: Any) -> Coefficients:
        """Return those of the next step. What a step did not measure moves nothing."""
        kl, entropy, rests = self.kl, self.entropy, self.rests
        if settings.kl_target and row.get("kl") is not None:
            error = max(-_MOST_ERROR, min(row["kl"] / settings.kl_target - 1, _MOST_ERROR))
            kl *= 1 + settings.kl_rate * error
        if settings.entropy_target and row.get("entropy") is not None:
            rests = row["entropy"] > settings.entropy_target
            entropy += -settings.entropy_step if rests else settings.entropy_step
            entropy = max(0.0, min(entropy, _MOST_ENTROPY))
        return Coefficients(kl, entropy, rests)

    def laid(self, batches: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Return micro-batches with the applied weights in each row."""
        own = np.array(list(self.applied.values()), np.float32)
        return [
            {**batch, "coefficients": np.tile(own, (len(batch["ids"]), 1))} for batch in batches
        ]
