"""Next-token cross-entropy that computes logits only for supervised targets, a chunk at a time.

With a vocabulary of 151,936 the float32 logits of 8 rows of 4,096 positions take 20 GB, and their
gradient as much again, most of it for prompts without a loss. Here the supervised positions of each
row are moved to its front, and the output projection runs over chunks of them; chunks that no row
reaches are skipped. The backward pass recomputes the logits of a chunk from the saved normalizers:
each loss may have a cotangent of its own. A weighted sum needs no second pass (weighted.py).

On several devices each one processes its own rows, at its own pace, against a full copy of the
projection (over `tensor`: of its share of the vocabulary). The gradients of the projection are
summed over devices once, at the end; the compiler by itself would sum them after every chunk.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

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

# What is returned beside losses: nothing, entropies, or entropies that have a gradient.
Entropy = Literal["none", "value", "gradient"]
_Found = tuple[jax.Array, ...]  # losses, and entropies where they are asked for: [B, T] each


@jax.named_scope("loss")
def supervised_cross_entropy(
    hidden_BTD: jax.Array,
    output_VD: jax.Array,
    targets_BT: jax.Array,
    supervised_BT: jax.Array,
    chunk: int | None = None,
) -> jax.Array:
    """Return -log softmax(hidden output^T)[target] in nats, float32 [B, T], 0 where not supervised.

    `supervised_BT` is bool. Equal to the loss over full logits, and so are its gradients with
    respect to `hidden_BTD` and `output_VD`. At most [B, chunk, V] logits exist at a time; None: the
    platform's (Forms.loss_chunk).
    """
    return _on_devices(hidden_BTD, output_VD, targets_BT, supervised_BT, chunk, entropy="none")[0]


@jax.named_scope("loss")
def losses_and_entropies(
    hidden_BTD: jax.Array,
    output_VD: jax.Array,
    targets_BT: jax.Array,
    supervised_BT: jax.Array,
    chunk: int | None = None,
    *,
    gradient: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Return `supervised_cross_entropy`, and the entropy of the same predictions in nats.

    Entropies are over the whole vocabulary, float32 [B, T], and 0 where not supervised. Without
    `gradient` they carry none.
    """
    entropy: Entropy = "gradient" if gradient else "value"
    losses_BT, entropies_BT = _on_devices(
        hidden_BTD, output_VD, targets_BT, supervised_BT, chunk, entropy=entropy
    )
    return losses_BT, entropies_BT


def _on_devices(
    hidden_BTD: jax.Array,
    output_VD: jax.Array,
    targets_BT: jax.Array,
    supervised_BT: jax.Array,
    chunk: int | None,
    *,
    entropy: Entropy,
) -> _Found:
    chunk = min(chunk or forms_here().loss_chunk, hidden_BTD.shape[1])
    shared, columns = shared_axes("batch"), shared_axes("embed")
    if not shared:
        return _of_rows(hidden_BTD, output_VD, targets_BT, supervised_BT, chunk, entropy)

    def on_each_device(
        hidden_BTD: jax.Array, output_VE: jax.Array, targets_BT: jax.Array, supervised_BT: jax.Array
    ) -> _Found:
        # Its transpose sums the gradients over devices and leaves each device its own columns.
        output_VD = gathered(output_VE, columns)
        return _of_rows(hidden_BTD, output_VD, targets_BT, supervised_BT, chunk, entropy)

    rows, share = PartitionSpec(shared), PartitionSpec(None, columns or None)
    losses = jax.shard_map(
        on_each_device,
        in_specs=(rows, share, rows, rows),
        out_specs=rows,
        axis_names=set(shared),
        check_vma=False,
    )
    return losses(hidden_BTD, output_VD, targets_BT, supervised_BT)


def _of_rows(
    hidden_BTD: jax.Array,
    output_VD: jax.Array,
    targets_BT: jax.Array,
    supervised_BT: jax.Array,
    chunk: int,
    entropy: Entropy,
) -> _Found:
    compact, spread = fronted(supervised_BT, chunk)
    found = _compacted(
        compact(hidden_BTD), output_VD, compact(targets_BT), compact(supervised_BT), chunk, entropy
    )
    return tuple(spread(x) for x in found)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _compacted(
    hidden_BTD: jax.Array,
    output_VD: jax.Array,
    targets_BT: jax.Array,
    supervised_BT: jax.Array,
    chunk: int,
    entropy: Entropy,
) -> _Found:
    return _forward(hidden_BTD, output_VD, targets_BT, supervised_BT, chunk, entropy)[0]


def _forward(
    hidden_BTD: jax.Array,
    output_VD: jax.Array,
    targets_BT: jax.Array,
    supervised_BT: jax.Array,
    chunk: int,
    entropy: Entropy,
) -> tuple[_Found, tuple[jax.Array, ...]]:
    def step(index: jax.Array, carry: _Found) -> _Found:
        hidden, targets, supervised = (
            cut(x, index, chunk) for x in (hidden_BTD, targets_BT, supervised_BT)
        )
        hidden = where_supervised(hidden, supervised)
        logits_BCV = logits_of(hidden, output_VD)
        losses_BC, norms_BC = losses_and_norms(logits_BCV, targets, supervised)
        parts = [losses_BC, norms_BC]
        if entropy != "none":
            probs_BCV = jnp.exp(logits_BCV - norms_BC[..., None])
            entropies_BC = norms_BC - jnp.sum(probs_BCV * logits_BCV, axis=-1)
            parts.append(jnp.where(supervised, entropies_BC, 0.0))
        return tuple(put(x, part, index, chunk) for x, part in zip(carry, parts, strict=True))

    zeros_BT = jnp.zeros(supervised_BT.shape, wide_dtype(output_VD))
    losses_BT, norms_BT, *entropies = jax.lax.fori_loop(
        0, chunks(supervised_BT, chunk), step, (zeros_BT,) * (2 if entropy == "none" else 3)
    )
    saved = (hidden_BTD, output_VD, targets_BT, supervised_BT, norms_BT)
    if entropy == "gradient":
        saved = (*saved, *entropies)
    return (losses_BT, *entropies), saved


def _backward(
    chunk: int, entropy: Entropy, saved: tuple[jax.Array, ...], d_found: _Found
) -> tuple[jax.Array | None, ...]:
    d_losses_BT = d_found[0]
    hidden_BTD, output_VD, targets_BT, supervised_BT, norms_BT, *entropies = saved

    def step(index: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        d_hidden_BTD, d_output_VD = carry
        hidden, targets, supervised = (
            cut(x, index, chunk) for x in (hidden_BTD, targets_BT, supervised_BT)
        )
        hidden = where_supervised(hidden, supervised)
        d_losses_BC1 = jnp.where(supervised, cut(d_losses_BT, index, chunk), 0.0)[..., None]
        log_probs_BCV = logits_of(hidden, output_VD) - cut(norms_BT, index, chunk)[..., None]
        probs_BCV = jnp.exp(log_probs_BCV)
        d_logits_BCV = d_logits_of(probs_BCV, targets) * d_losses_BC1
        if entropy == "gradient":
            d_entropies = jnp.where(supervised, cut(d_found[1], index, chunk), 0.0)[..., None]
            above_BCV = log_probs_BCV + cut(entropies[0], index, chunk)[..., None]
            d_logits_BCV -= d_entropies * probs_BCV * above_BCV
        d_hidden, more_VD = pulls(d_logits_BCV, hidden, output_VD)
        return put(d_hidden_BTD, d_hidden, index, chunk), d_output_VD + more_VD

    start = (jnp.zeros_like(hidden_BTD), jnp.zeros(output_VD.shape, wide_dtype(output_VD)))
    d_hidden_BTD, d_output_VD = jax.lax.fori_loop(0, chunks(supervised_BT, chunk), step, start)
    return d_hidden_BTD, d_output_VD.astype(output_VD.dtype), None, None


_compacted.defvjp(_forward, _backward)
