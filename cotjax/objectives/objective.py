"""What a train step minimises: a function of the parameters and a batch that returns sums.

Sums and weights are added over micro-batches and devices, and divided once, so that a part with few
supervised tokens does not weigh more than they do. A metric whose name begins with MOST is a
maximum instead: its parts, at least 0, are not added; the largest counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cotjax.model.config import ModelConfig

# name -> (sum, weight). "loss" is minimised: its sum over its weight, both scalars. "by_role" holds
# negative log-probabilities of the targets that are trained on, and their weights, [roles]. The
# others are metrics, of any one shape each.
Pairs = dict[str, tuple[jax.Array, jax.Array]]
Objective = Callable[[dict, dict[str, jax.Array]], Pairs]  # (params, batch) -> pairs
MOST = "most_"


class Spec(Protocol):
    """The settings of an objective.

    kind: of the batches that it takes, one of `cotjax.train.step.FIELDS`.
    """

    kind: ClassVar[str]

    def make(
        self,
        config: ModelConfig,
        mesh: Mesh,
        *,
        remat: str = "none",
        scan: bool = False,
        kernel: str = "auto",
    ) -> Objective:
        """Return the objective of a model; `remat`, `scan`, `kernel`: see decoder.hidden_states."""

    def values(self) -> dict[str, Any]:
        """Return the settings as plain values, by which a run's folder is bound to them."""


def together(one: Pairs, other: Pairs) -> Pairs:
    """Return the pairs of two parts of a batch as those of both."""

    def of_both(name: str) -> tuple[jax.Array, jax.Array]:
        by = jnp.maximum if name.startswith(MOST) else jnp.add
        (total, weight), (more, heavier) = one[name], other[name]
        return by(total, more), by(weight, heavier)

    return {name: of_both(name) for name in one}
