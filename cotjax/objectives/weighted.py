"""The weighted sum of next-token cross-entropies, with its gradient in the same pass.

Of a weighted sum the gradient is known but for one number, by which it is multiplied at the end. So
the pass over chunks of positions (cross_entropy.py has the order of work) computes it from the same
logits as the losses, and no logits are computed twice: three matmuls in place of four.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from cotjax.model.platform import forms_here
from cotjax.model.products import wide_dtype
from cotjax.model.sharding import shared_axes
from cotjax.objectives.chunks import (
    chunks,
    cut,
    d_logits_of,
    fronted,
    gathered,
    logits_of,
    losses_and_norms,
    pulls,
    put,
    where_supervised,
)

_Pulled = tuple[jax.Array, ...]  # gradients of hidden states and of the projection, or nothing


@jax.named_scope("loss")
def weighted_cross_entropy(
    hidden_BTD: jax.Array,
    output_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return the weighted sum of the losses of targets, and the losses, [B, T], not yet weighted.

    A loss is that of `supervised_cross_entropy`, and 0 at weight 0. The sum has a gradient with
    respect to `hidden_BTD` and `output_VD`; weights are constants, and so are the losses that are
    returned. `chunk`: as there.
    """
    total, losses_BT = _weighted(hidden_BTD, output_VD, targets_BT, weights_BT, chunk)
    return total, jax.lax.stop_gradient(losses_BT)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _weighted(
    hidden_BTD: jax.Array,
    output_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    chunk: int | None,
) -> tuple[jax.Array, jax.Array]:
    return _summed(hidden_BTD, output_VD, targets_BT, weights_BT, chunk, gradients=False)[0]


def _weighted_forward(
    hidden_BTD: jax.Array,
    output_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    chunk: int | None,
) -> tuple[tuple[jax.Array, jax.Array], _Pulled]:
    return _summed(hidden_BTD, output_VD, targets_BT, weights_BT, chunk, gradients=True)


def _weighted_backward(
    chunk: int | None, pulled: _Pulled, d_found: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
    d_total = d_found[0]
    d_hidden_BTD, d_output_VD = ((x * d_total).astype(x.dtype) for x in pulled)
    return d_hidden_BTD, d_output_VD, None, None


_weighted.defvjp(_weighted_forward, _weighted_backward)


def _summed(
    hidden_BTD: jax.Array,
    output_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    chunk: int | None,
    *,
    gradients: bool,
) -> tuple[tuple[jax.Array, jax.Array], _Pulled]:
    """Return (weighted sum, losses), and the sum's gradients of both operands or nothing."""
    chunk = min(chunk or forms_here().loss_chunk, hidden_BTD.shape[1])
    shared, columns = shared_axes("batch"), shared_axes("embed")
    if not shared:
        return _summed_rows(hidden_BTD, output_VD, targets_BT, weights_BT, chunk, gradients)

    def on_each_device(
        hidden_BTD: jax.Array, output_VE: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], _Pulled]:
        output_VD = gathered(output_VE, columns)
        (total, losses_BT), pulled = _summed_rows(
            hidden_BTD, output_VD, targets_BT, weights_BT, chunk, gradients
        )
        if pulled:
            d_hidden_BTD, d_output_VD = pulled
            if columns:
                d_output_VD = jax.lax.psum_scatter(
                    d_output_VD, columns, scatter_dimension=1, tiled=True
                )
            if others := tuple(axis for axis in shared if axis not in columns):
                d_output_VD = jax.lax.psum(d_output_VD, others)
            pulled = (d_hidden_BTD, d_output_VD)
        return (jax.lax.psum(total, shared), losses_BT), pulled

    rows, share = PartitionSpec(shared), PartitionSpec(None, columns or None)
    summed = jax.shard_map(
        on_each_device,
        in_specs=(rows, share, rows, rows),
        out_specs=((PartitionSpec(), rows), (rows, share) if gradients else ()),
        axis_names=set(shared),
        check_vma=False,
    )
    return summed(hidden_BTD, output_VD, targets_BT, weights_BT)


def _summed_rows(
    hidden_BTD: jax.Array,
    output_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    chunk: int,
    gradients: bool,
) -> tuple[tuple[jax.Array, jax.Array], _Pulled]:
    """Return `_summed` of one device's rows."""
    supervised_BT = weights_BT != 0
    compact, spread = fronted(supervised_BT, chunk)
    fronts = tuple(compact(x) for x in (hidden_BTD, targets_BT, weights_BT))

    def step(index: jax.Array, carry: tuple[Any, _Pulled]) -> tuple[Any, _Pulled]:
        losses_BT, pulled = carry
        hidden, targets, weights_BC = (cut(x, index, chunk) for x in fronts)
        supervised = weights_BC != 0
        hidden = where_supervised(hidden, supervised)
        logits_BCV = logits_of(hidden, output_VD)
        losses_BC, norms_BC = losses_and_norms(logits_BCV, targets, supervised)
        losses_BT = put(losses_BT, losses_BC, index, chunk)
        if not pulled:
            return losses_BT, ()
        probs_BCV = jnp.exp(logits_BCV - norms_BC[..., None])
        d_logits_BCV = d_logits_of(probs_BCV, targets) * weights_BC[..., None]
        d_hidden, more_VD = pulls(d_logits_BCV, hidden, output_VD)
        return losses_BT, (put(pulled[0], d_hidden, index, chunk), pulled[1] + more_VD)

    losses_BT = jnp.zeros(fronts[1].shape, wide_dtype(output_VD))
    zeros = (jnp.zeros_like(fronts[0]), jnp.zeros(output_VD.shape, wide_dtype(output_VD)))
    losses_BT, pulled = jax.lax.fori_loop(
        0, chunks(supervised_BT, chunk), step, (losses_BT, zeros if gradients else ())
    )
    losses_BT = spread(losses_BT)
    found = (losses_BT * weights_BT).sum(), losses_BT
    if not pulled:
        return found, ()
    return found, (spread(pulled[0]), pulled[1].astype(output_VD.dtype))
