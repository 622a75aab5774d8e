"""Action triggering (AutoCoA, arXiv 2503.06580, SFT-1): prefer to act where an action is needed.

    L = -log sigmoid(P(chosen) - P(rejected)) - alpha P(chosen)

P is the mean log-probability of a continuation's tokens, from where the two differ; the end of the
turn is no part of it. There is no reference model. This is DPO of `sigmoid_norm` with beta 1 and a
reference of 0, plus alpha times the mean NLL of the chosen side.

A batch has the fields of `cotjax.objectives.preference`, but for `reference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from cotjax.errors import UsageError
from cotjax.masking import Role
from cotjax.objectives.objective import Pairs
from cotjax.objectives.preference import Preference, preference_pairs
from cotjax.objectives.scores import Batch, OfTargets

_RENAMED = {"chosen_reward": "chosen_mean", "rejected_reward": "rejected_mean"}


@dataclass(frozen=True)
class Trigger(OfTargets):
    """The settings of action triggering.

    alpha: weight of P(chosen), against falling probabilities of both continuations.

    Raises:
      UsageError: alpha is negative.
    """

    name: ClassVar[str] = "trigger"
    kind: ClassVar[str] = "pairs"

    alpha: float = 0.2

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise UsageError(f"trigger: alpha is {self.alpha}; it must be at least 0")

    def pairs(self, log_probs_BT: jax.Array, batch: Batch) -> Pairs:
        """As `OfTargets.pairs`."""
        return trigger_pairs(self, log_probs_BT, batch)


def trigger_pairs(settings: Trigger, log_probs_BT: jax.Array, batch: Batch) -> Pairs:
    """Return the (sum, weight) pairs of action triggering, from log-probabilities by target."""
    without_end_BT = jnp.where(batch["roles"] == Role.END, 0, batch["weights"])
    own = batch | {"weights": without_end_BT, "reference": jnp.zeros_like(log_probs_BT)}
    same = Preference(beta=1.0, length_normalised=True, nll=settings.alpha)
    pairs = preference_pairs(same, log_probs_BT, own)
    return {_RENAMED.get(name, name): pair for name, pair in pairs.items()}
