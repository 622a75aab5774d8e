"""Log-probabilities of a batch's targets, the reference's parameters, and what objectives that are
made from log-probabilities share.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cotjax.model import decoder
from cotjax.model.config import ModelConfig
from cotjax.model.kernels import kernel_for
from cotjax.model.params import Params, declared, leaf, nest
from cotjax.objectives.cross_entropy import losses_and_entropies, supervised_cross_entropy
from cotjax.objectives.objective import Objective, Pairs

Batch = dict[str, jax.Array]


@dataclass(frozen=True)
class OfTargets:
    """A Spec (objective.py) whose pairs follow from the log-probabilities of a batch's targets.

    A subclass is a dataclass of its settings, with `name` and `kind`, and defines `pairs`.
    """

    name: ClassVar[str]
    kind: ClassVar[str]

    def pairs(self, log_probs_BT: jax.Array, batch: Batch) -> Pairs:
        """Return the (sum, weight) pairs, from log-probabilities by target."""
        raise NotImplementedError

    def of(self, config: ModelConfig, params: Params, batch: Batch, **how: Any) -> Pairs:
        """Return the pairs of a batch under these parameters; `how`: as `log_probs` takes it."""
        return self.pairs(log_probs(config, params, batch, batch["weights"] > 0, **how), batch)

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
        return partial(self.of, config, remat=remat, scan=scan, kernel=kernel)

    def values(self) -> dict[str, Any]:
        """As `Spec.values`."""
        return {"name": self.name, **asdict(self)}


def predictions(
    config: ModelConfig,
    params: Params,
    batch: Batch,
    *,
    remat: str = "none",
    scan: bool = False,
    kernel: str = "xla",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return what a loss is made from: hidden states [B, T, D], output weight [V, D], targets."""
    hidden_BTD = decoder.hidden_states(
        config,
        params,
        batch["ids"],
        batch["positions"],
        batch["segment_ids"],
        batch["branches"],
        remat=remat,
        scan=scan,
        kernel=kernel,
    )
    return hidden_BTD, decoder.output_weight(config, params), batch["targets"]


def log_probs(
    config: ModelConfig,
    params: Params,
    batch: Batch,
    wanted_BT: jax.Array,
    *,
    remat: str = "none",
    scan: bool = False,
    kernel: str = "xla",
) -> jax.Array:
    """Return the log-probability of each target in nats, float32 [B, T]; 0 where not wanted."""
    made = predictions(config, params, batch, remat=remat, scan=scan, kernel=kernel)
    return -supervised_cross_entropy(*made, wanted_BT)


def log_probs_and_entropies(
    config: ModelConfig,
    params: Params,
    batch: Batch,
    wanted_BT: jax.Array,
    *,
    remat: str = "none",
    scan: bool = False,
    kernel: str = "xla",
    gradient: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Return `log_probs`, and the entropy of each prediction in nats.

    `gradient`: entropies have one.
    """
    made = predictions(config, params, batch, remat=remat, scan=scan, kernel=kernel)
    losses_BT, entropies_BT = losses_and_entropies(*made, wanted_BT, gradient=gradient)
    return -losses_BT, entropies_BT


def reference_of(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """Return the reference model of parameters: with LoRA its base, adapters off, else itself.

    Arrays are shared, not copied. Without LoRA the reference is the policy as it is, so take it
    before the first update.
    """
    base = replace(config, lora=None)
    return base, nest({path: leaf(params, path) for path in declared(base)})


def totals_by_role(values_BT: jax.Array, roles_BT: jax.Array, roles: int) -> jax.Array:
    """Sum the values by role -> [roles]."""
    return jnp.zeros(roles, values_BT.dtype).at[roles_BT.astype(jnp.int32)].add(values_BT)
