"""Losses return (sum, weight): they are divided once, after everything that belongs to a step has been added up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from cotjax.masking import example_mean


def masked_cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weighted next-token cross-entropy in nats -> (losses_BT already weighted, weights_BT), both float32.

    The per-token losses are not summed here, so that the caller can total them by role as well; a position of weight 0
    adds exactly 0, whatever its logits.
    """
    losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV.astype(jnp.float32), targets_BT)
    return jnp.where(weights_BT > 0, losses_BT * weights_BT, 0.0), weights_BT


def normalized(normalizer: str, losses_BT: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
    """(sum, weight) of one of `cotjax.masking.NORMALIZERS`; an example of "example_mean" is a response: a branch of a segment.

    `losses_BT` are weighted already.
    """
    weights_BT = batch["weights"]
    if normalizer == "token_sum":
        return losses_BT.sum(), weights_BT.sum()
    if normalizer == "fixed_budget":
        return losses_BT.sum(), batch["budget"].sum()
    segments_BT, branches_BT = batch["segment_ids"], batch["branches"]
    begins_BT = (segments_BT[:, 1:] != segments_BT[:, :-1]) | (branches_BT[:, 1:] != branches_BT[:, :-1])
    responses_BT = 1 + jnp.pad(jnp.cumsum(begins_BT, axis=1), ((0, 0), (1, 0)))
    # The target of a branch's first token stands on the trunk before it.
    of_target_BT = jnp.concatenate([responses_BT[:, 1:], responses_BT[:, -1:]], axis=1)
    return example_mean(losses_BT, weights_BT, of_target_BT, segments=weights_BT.shape[1])


def totals_by_role(values_BT: jax.Array, roles_BT: jax.Array, roles: int) -> jax.Array:
    """Sums of `values_BT` for each role -> [roles]."""
    return jnp.zeros(roles, jnp.float32).at[roles_BT.astype(jnp.int32)].add(values_BT)
