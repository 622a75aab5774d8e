"""Losses return (sum, weight): they are divided once, after everything that belongs to a step has been added up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from cotjax.masking import RESPONSE_ROLES, example_mean


def masked_cross_entropy(
    logits_BTV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Weighted next-token cross-entropy in nats -> (losses_BT already weighted, weights_BT), both float32.

    The per-token losses are not summed here, so that the caller can total them by role as well; a position of weight 0
    adds exactly 0, and its logits get a gradient of exactly 0, whatever they are.
    """
    # The inputs are masked: behind a masked loss alone, the gradient of a logit that is not finite is 0 times NaN.
    logits_BTV = jnp.where(weights_BT[..., None] > 0, logits_BTV, 0)
    losses_BT = optax.softmax_cross_entropy_with_integer_labels(
        logits_BTV.astype(jnp.float32), targets_BT
    )
    return jnp.where(weights_BT > 0, losses_BT * weights_BT, 0.0), weights_BT


def normalized(normalizer: str, losses_BT: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
    """(sum, weight) of one of `cotjax.masking.NORMALIZERS`; an example of "example_mean" is a response, whatever the layout:
    a branch of a segment, or one of the responses that follow one another in it.

    `losses_BT` are weighted already; `batch["roles"]` are those of the targets.
    """
    weights_BT = batch["weights"]
    if normalizer == "token_sum":
        return losses_BT.sum(), weights_BT.sum()
    if normalizer == "fixed_budget":
        return losses_BT.sum(), batch["budget"].sum()
    segments_BT, branches_BT = batch["segment_ids"], batch["branches"]
    # The target of a branch's first token stands on the trunk before it, so borders are those between the targets.
    segments_BT, branches_BT = (
        jnp.concatenate([x[:, 1:], x[:, -1:]], axis=1) for x in (segments_BT, branches_BT)
    )
    borders_BT = (segments_BT[:, 1:] != segments_BT[:, :-1]) | (
        branches_BT[:, 1:] != branches_BT[:, :-1]
    )
    # Where there are no branches, what is given between two responses tells them apart.
    written_BT = jnp.isin(batch["roles"], jnp.asarray(RESPONSE_ROLES))
    borders_BT |= written_BT[:, :-1] & ~written_BT[:, 1:]
    of_target_BT = 1 + jnp.pad(jnp.cumsum(borders_BT, axis=1), ((0, 0), (1, 0)))
    return example_mean(losses_BT, weights_BT, of_target_BT, segments=weights_BT.shape[1])


def totals_by_role(values_BT: jax.Array, roles_BT: jax.Array, roles: int) -> jax.Array:
    """Sums of `values_BT` for each role -> [roles]."""
    return jnp.zeros(roles, jnp.float32).at[roles_BT.astype(jnp.int32)].add(values_BT)
