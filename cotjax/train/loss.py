"""Losses return (sum, weight): they are divided once, after everything that belongs to a step has been added up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def masked_cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weighted next-token cross-entropy in nats -> (losses_BT already weighted, weights_BT), both float32.

    The per-token losses are not summed here, so that the caller can total them by role as well; a position of weight 0
    adds exactly 0, whatever its logits.
    """
    losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV.astype(jnp.float32), targets_BT)
    return jnp.where(weights_BT > 0, losses_BT * weights_BT, 0.0), weights_BT


def totals_by_role(values_BT: jax.Array, roles_BT: jax.Array, roles: int) -> jax.Array:
    """Sums of `values_BT` for each role -> [roles]."""
    return jnp.zeros(roles, jnp.float32).at[roles_BT.astype(jnp.int32)].add(values_BT)
