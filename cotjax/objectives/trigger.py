"""Action triggering (AutoCoA, arXiv 2503.06580, SFT-1): prefer to act where an action is needed.

    L = -log sigmoid(P(chosen) - P(rejected)) - alpha P(chosen)

P is the mean log-probability of a continuation's tokens, from where the two differ; the end of the
turn is no part of it. There is no reference model. This is DPO of `sigmoid_norm` with beta 1 and a
reference of 0, plus alpha times the mean NLL of the chosen side.

A batch has the fields of `cotjax.objectives.preference`, but for `reference`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cotjax.errors import UsageError
from cotjax.masking import Role
from cotjax.model.config import ModelConfig
from cotjax.model.kernels import kernel_for
from cotjax.objectives.objective import Objective, Pairs
from cotjax.objectives.preference import Preference, preference_pairs
from cotjax.objectives.scores import Batch, log_probs

_RENAMED = {"chosen_reward": "chosen_mean", "rejected_reward": "rejected_mean"}


@dataclass(frozen=True)
class Trigger:
    """The settings of action triggering.

    alpha: weight of P(chosen), against falling probabilities of both continuations.

    Raises:
      UsageError: alpha is negative.
    """

    kind: ClassVar[str] = "pairs"

    alpha: float = 0.2

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise UsageError(f"trigger: alpha is {self.alpha}; it must be at least 0")

    def make(
        self,
        config: ModelConfig,
        mesh: Mesh,
        *,
        remat: str = "none",
        scan: bool = False,
        kernel: str = "auto",
    ) -> Objective:
        """As `Spec.make`."""
        kernel = kernel_for(config, mesh, kernel)
        return partial(trigger, self, config, remat=remat, scan=scan, kernel=kernel)

    def values(self) -> dict[str, Any]:
        """As `Spec.values`."""
        return {"name": "trigger", **asdict(self)}


def trigger(
    settings: Trigger,
    config: ModelConfig,
    params: dict,
    batch: Batch,
    *,
    remat: str = "none",
    scan: bool = False,
    kernel: str = "xla",
) -> Pairs:
    """Return the pairs of a batch, as `trigger_pairs` does, under these parameters."""
    found_BT = log_probs(
        config, params, batch, batch["weights"] > 0, remat=remat, scan=scan, kernel=kernel
    )
    return trigger_pairs(settings, found_BT, batch)


def trigger_pairs(settings: Trigger, log_probs_BT: jax.Array, batch: Batch) -> Pairs:
    """Return the (sum, weight) pairs of action triggering, from log-probabilities by target."""
    without_end_BT = jnp.where(batch["roles"] == Role.END, 0, batch["weights"])
    own = batch | {"weights": without_end_BT, "reference": jnp.zeros_like(log_probs_BT)}
    same = Preference(beta=1.0, length_normalised=True, nll=settings.alpha)
    pairs = preference_pairs(same, log_probs_BT, own)
    return {_RENAMED.get(name, name): pair for name, pair in pairs.items()}
