"""Supervised fine-tuning: weighted next-token cross-entropy, normalized by `cotjax.masking`."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from cotjax.errors import UsageError
from cotjax.masking import (
    NORMALIZERS,
    RESPONSE_ROLES,
    Role,
    example_mean,
    fixed_budget,
    token_sum,
)
from cotjax.model.config import ModelConfig
from cotjax.model.kernels import kernel_for
from cotjax.objectives.cross_entropy import supervised_cross_entropy
from cotjax.objectives.objective import Objective, Pairs
from cotjax.objectives.scores import predictions, totals_by_role
from cotjax.objectives.weighted import weighted_cross_entropy


def make_objective(
    config: ModelConfig,
    mesh: Mesh,
    *,
    normalizer: str = "token_sum",
    remat: str = "none",
    scan: bool = False,
    kernel: str = "auto",
) -> Objective:
    """Return the supervised objective of a model: (params, batch) -> pairs, as `supervised` does.

    Args:
      mesh: its devices decide which attention kernel "auto" is.
      normalizer: one of `cotjax.masking.NORMALIZERS`.
      remat, scan, kernel: as in `decoder.hidden_states`.

    Raises:
      UsageError: the normalizer is unknown.
    """
    if normalizer not in NORMALIZERS:
        raise UsageError(f"unknown normalizer {normalizer!r}; there are {', '.join(NORMALIZERS)}")
    kernel = kernel_for(config, mesh, kernel)
    return partial(supervised, config, normalizer=normalizer, remat=remat, scan=scan, kernel=kernel)


def supervised(
    config: ModelConfig,
    params: dict,
    batch: dict[str, jax.Array],
    *,
    normalizer: str = "token_sum",
    remat: str = "none",
    scan: bool = False,
    kernel: str = "xla",
) -> Pairs:
    """Return the (sum, weight) pairs of a batch of `data.pipeline`: "loss", and "by_role" [roles].

    "by_role" holds the weighted loss and the weight of each role's targets, without a gradient.
    """
    made = predictions(config, params, batch, remat=remat, scan=scan, kernel=kernel)
    total, losses_BT = weighted_cross_entropy(*made, loss_weights(normalizer, batch))
    weights_BT, roles_BT = batch["weights"], batch["roles"]
    return {
        "loss": (total, normalized(normalizer, losses_BT, batch)[1]),
        "by_role": (
            totals_by_role(losses_BT * weights_BT, roles_BT, len(Role)),
            totals_by_role(weights_BT, roles_BT, len(Role)),
        ),
    }


def token_losses(
    config: ModelConfig,
    params: dict,
    batch: dict[str, jax.Array],
    *,
    remat: str = "none",
    scan: bool = False,
    kernel: str = "xla",
) -> jax.Array:
    """Return the loss of each target, not yet weighted: nats, float32 [B, T]; 0 at weight 0."""
    made = predictions(config, params, batch, remat=remat, scan=scan, kernel=kernel)
    return supervised_cross_entropy(*made, batch["weights"] > 0)


def masked_cross_entropy(
    logits_BTV: jax.Array, targets_BT: jax.Array, supervised_BT: jax.Array
) -> jax.Array:
    """Return the cross-entropy of logits in nats, float32 [B, T], not yet weighted.

    Where `supervised_BT` is false the loss and the gradient of the logits are exactly 0, even if
    the logits are not finite.
    """
    # Masking the loss alone would leave a gradient of 0 * NaN at logits that are not finite.
    logits_BTV = jnp.where(supervised_BT[..., None], logits_BTV, 0)
    losses_BT = optax.softmax_cross_entropy_with_integer_labels(
        logits_BTV.astype(jnp.float32), targets_BT
    )
    return jnp.where(supervised_BT, losses_BT, 0.0)


def normalized(
    normalizer: str, losses_BT: jax.Array, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Weight the losses and return the (sum, weight) of one of `cotjax.masking.NORMALIZERS`.

    An example of "example_mean" is a response (see `responses`). `losses_BT` are not yet weighted.
    """
    weights_BT = batch["weights"]
    if normalizer == "token_sum":
        return token_sum(losses_BT, weights_BT)
    if normalizer == "fixed_budget":
        return fixed_budget(losses_BT, weights_BT, batch["budget"].sum())
    return example_mean(losses_BT, weights_BT, responses(batch), segments=weights_BT.shape[1])


def loss_weights(normalizer: str, batch: dict[str, jax.Array]) -> jax.Array:
    """Return what each token's loss weighs in the sum of `normalized`, [B, T]."""
    # The sum is linear in the losses: its gradient is what they weigh.
    return jax.grad(lambda losses_BT: normalized(normalizer, losses_BT, batch)[0])(
        jnp.zeros_like(batch["weights"])
    )


def responses(batch: dict[str, jax.Array]) -> jax.Array:
    """Number the responses of each row from 1, by target -> [B, T] int32, in any data layout.

    A response is a branch of a segment, or one of those that follow one another in it.
    """
    segments_BT, branches_BT = batch["segment_ids"], batch["branches"]
    # The first token of a branch is predicted from the trunk, so borders are those of the targets.
    segments_BT, branches_BT = (
        jnp.concatenate([x[:, 1:], x[:, -1:]], axis=1) for x in (segments_BT, branches_BT)
    )
    borders_BT = (segments_BT[:, 1:] != segments_BT[:, :-1]) | (
        branches_BT[:, 1:] != branches_BT[:, :-1]
    )
    # Without branches, the prompt between two responses separates them.
    written_BT = jnp.isin(batch["roles"], jnp.asarray(RESPONSE_ROLES))
    borders_BT |= written_BT[:, :-1] & ~written_BT[:, 1:]
    return 1 + jnp.pad(jnp.cumsum(borders_BT, axis=1), ((0, 0), (1, 0)))
