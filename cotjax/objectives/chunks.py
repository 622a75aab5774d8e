"""What both forms of the cross-entropy do with a chunk of positions: its order, its logits, its
losses and their gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from cotjax.model.products import outer, wide_einsum

_Move = Callable[[jax.Array], jax.Array]


def fronted(supervised_BT: jax.Array, chunk: int) -> tuple[_Move, _Move]:
    """Return what moves a row's supervised positions to its front, in their order, the others after
    them, with padding to a multiple of `chunk`; and what moves them back.
    """
    T = supervised_BT.shape[1]
    padded = -(-T // chunk) * chunk
    ahead_BT, behind_BT = jnp.cumsum(supervised_BT, axis=1), jnp.cumsum(~supervised_BT, axis=1)
    index_BT = jnp.where(supervised_BT, ahead_BT, ahead_BT[:, -1:] + behind_BT) - 1
    order_BT = jnp.broadcast_to(jnp.arange(T)[None], index_BT.shape)
    front_BT = jnp.put_along_axis(
        jnp.zeros_like(index_BT), index_BT, order_BT, axis=1, inplace=False
    )

    def spread(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x[:, :T], _wider(index_BT, x), axis=1)

    return partial(_compact, front_BT=front_BT, padded=padded), spread


def _compact(x: jax.Array, front_BT: jax.Array, padded: int) -> jax.Array:
    x = jnp.take_along_axis(x, _wider(front_BT, x), axis=1)
    return jnp.pad(x, ((0, 0), (0, padded - x.shape[1]), *((0, 0),) * (x.ndim - 2)))


def _wider(index_BT: jax.Array, x: jax.Array) -> jax.Array:
    return index_BT.reshape(index_BT.shape + (1,) * (x.ndim - 2))


def chunks(supervised_BT: jax.Array, chunk: int) -> jax.Array:
    """Return how many chunks hold a supervised position of the row that has the most."""
    return (jnp.max(jnp.sum(supervised_BT, axis=1)) + chunk - 1) // chunk


def where_supervised(hidden_BCD: jax.Array, supervised_BC: jax.Array) -> jax.Array:
    """Zero the hidden states that are not supervised.

    A NaN among them would reach the gradient of the output projection as 0 * NaN.
    """
    return jnp.where(supervised_BC[..., None], hidden_BCD, 0)


def logits_of(hidden_BCD: jax.Array, output_VD: jax.Array) -> jax.Array:
    """Return logits [B, C, V] in `wide_dtype`."""
    return wide_einsum("BCD,VD->BCV", hidden_BCD, output_VD)


def losses_and_norms(
    logits_BCV: jax.Array, targets_BC: jax.Array, supervised_BC: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the losses of targets, 0 where not supervised, and the logits' normalizers."""
    norms_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
    of_target_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
    return jnp.where(supervised_BC, norms_BC - of_target_BC, 0.0), norms_BC


def d_logits_of(probs_BCV: jax.Array, targets_BC: jax.Array) -> jax.Array:
    """Return the gradient of the losses of targets with respect to their logits."""
    is_target_BCV = targets_BC[..., None] == jnp.arange(probs_BCV.shape[-1])[None, None, :]
    return jnp.where(is_target_BCV, probs_BCV - 1, probs_BCV)


def pulls(
    d_logits_BCV: jax.Array, hidden_BCD: jax.Array, output_VD: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of hidden states, in their dtype, and of the projection, wide."""
    # One axis of positions: a sum over two makes a CPU copy the larger operand crosswise.
    d_logits_RV = d_logits_BCV.astype(output_VD.dtype).reshape(-1, output_VD.shape[0])
    hidden_RD = hidden_BCD.reshape(-1, hidden_BCD.shape[-1])
    d_hidden_RD = wide_einsum("RV,VD->RD", d_logits_RV, output_VD)
    d_hidden_BCD = d_hidden_RD.astype(hidden_BCD.dtype).reshape(hidden_BCD.shape)
    return d_hidden_BCD, outer(d_logits_RV, hidden_RD)


def gathered(output_VE: jax.Array, columns: tuple[str, ...]) -> jax.Array:
    """Return the whole projection from the columns of each device."""
    return jax.lax.all_gather(output_VE, columns, axis=1, tiled=True) if columns else output_VE


def cut(x: jax.Array, index: jax.Array, chunk: int) -> jax.Array:
    """Return chunk `index` of [B, T, ...]."""
    return jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk, axis=1)


def put(padded: jax.Array, part: jax.Array, index: jax.Array, chunk: int) -> jax.Array:
    """Return `padded` [B, T, ...] with its chunk `index` replaced."""
    return jax.lax.dynamic_update_slice_in_dim(padded, part, index * chunk, axis=1)
