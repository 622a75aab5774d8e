"""Next-token cross-entropy that computes logits only for supervised targets, a chunk at a time.

With a vocabulary of 151,936 the float32 logits of 8 rows of 4,096 positions take 20 GB, and their
gradient as much again, most of it for prompts without a loss. Here the supervised positions of each
row are moved to its front, and the output projection runs over chunks of them; chunks that no row
reaches are skipped. The backward pass recomputes the logits of a chunk from the saved normalizers.

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
from cotjax.model.sharding import shared_axes

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
        output_VD = (
            jax.lax.all_gather(output_VE, columns, axis=1, tiled=True) if columns else output_VE
        )
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
    T = hidden_BTD.shape[1]
    padded = -(-T // chunk) * chunk
    # Supervised positions go to the front in their order, the others after them.
    ahead_BT, behind_BT = jnp.cumsum(supervised_BT, axis=1), jnp.cumsum(~supervised_BT, axis=1)
    index_BT = jnp.where(supervised_BT, ahead_BT, ahead_BT[:, -1:] + behind_BT) - 1
    order_BT = jnp.broadcast_to(jnp.arange(T)[None], index_BT.shape)
    front_BT = jnp.put_along_axis(
        jnp.zeros_like(index_BT), index_BT, order_BT, axis=1, inplace=False
    )
    compact = partial(_compact, front_BT=front_BT, padded=padded)
    found = _compacted(
        compact(hidden_BTD), output_VD, compact(targets_BT), compact(supervised_BT), chunk, entropy
    )
    return tuple(jnp.take_along_axis(x[:, :T], index_BT, axis=1) for x in found)


def _compact(x: jax.Array, front_BT: jax.Array, padded: int) -> jax.Array:
    index = front_BT.reshape(front_BT.shape + (1,) * (x.ndim - 2))
    x = jnp.take_along_axis(x, index, axis=1)
    return jnp.pad(x, ((0, 0), (0, padded - x.shape[1]), *((0, 0),) * (x.ndim - 2)))


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
            _cut(x, index, chunk) for x in (hidden_BTD, targets_BT, supervised_BT)
        )
        hidden = _where_supervised(hidden, supervised)
        logits_BCV = _logits(hidden, output_VD)
        norms_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
        of_target_BC = jnp.take_along_axis(logits_BCV, targets[..., None], axis=-1)[..., 0]
        parts = [jnp.where(supervised, norms_BC - of_target_BC, 0.0), norms_BC]
        if entropy != "none":
            probs_BCV = jnp.exp(logits_BCV - norms_BC[..., None])
            entropies_BC = norms_BC - jnp.sum(probs_BCV * logits_BCV, axis=-1)
            parts.append(jnp.where(supervised, entropies_BC, 0.0))
        return tuple(_put(x, part, index, chunk) for x, part in zip(carry, parts, strict=True))

    zeros_BT = jnp.zeros(supervised_BT.shape, jnp.float32)
    losses_BT, norms_BT, *entropies = jax.lax.fori_loop(
        0, _chunks(supervised_BT, chunk), step, (zeros_BT,) * (2 if entropy == "none" else 3)
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
            _cut(x, index, chunk) for x in (hidden_BTD, targets_BT, supervised_BT)
        )
        hidden = _where_supervised(hidden, supervised)
        d_losses_BC1 = jnp.where(supervised, _cut(d_losses_BT, index, chunk), 0.0)[..., None]
        log_probs_BCV = _logits(hidden, output_VD) - _cut(norms_BT, index, chunk)[..., None]
        probs_BCV = jnp.exp(log_probs_BCV)
        is_target_BCV = targets[..., None] == jnp.arange(output_VD.shape[0])[None, None, :]
        d_logits_BCV = jnp.where(is_target_BCV, probs_BCV - 1, probs_BCV) * d_losses_BC1
        if entropy == "gradient":
            d_entropies = jnp.where(supervised, _cut(d_found[1], index, chunk), 0.0)[..., None]
            above_BCV = log_probs_BCV + _cut(entropies[0], index, chunk)[..., None]
            d_logits_BCV -= d_entropies * probs_BCV * above_BCV
        d_logits_BCV = d_logits_BCV.astype(output_VD.dtype)
        # One axis of positions: a sum over two makes a CPU copy the larger operand crosswise.
        d_logits_RV = d_logits_BCV.reshape(-1, output_VD.shape[0])
        d_hidden_RD = jnp.einsum(
            "RV,VD->RD", d_logits_RV, output_VD, preferred_element_type=jnp.float32
        )
        d_output_VD += jnp.einsum(
            "RV,RD->VD",
            d_logits_RV,
            hidden.reshape(-1, hidden.shape[-1]),
            preferred_element_type=jnp.float32,
        )
        d_hidden = d_hidden_RD.astype(hidden.dtype).reshape(hidden.shape)
        return _put(d_hidden_BTD, d_hidden, index, chunk), d_output_VD

    start = (jnp.zeros_like(hidden_BTD), jnp.zeros(output_VD.shape, jnp.float32))
    d_hidden_BTD, d_output_VD = jax.lax.fori_loop(0, _chunks(supervised_BT, chunk), step, start)
    return d_hidden_BTD, d_output_VD.astype(output_VD.dtype), None, None


_compacted.defvjp(_forward, _backward)


def _chunks(supervised_BT: jax.Array, chunk: int) -> jax.Array:
    """Return how many chunks hold a supervised position of the row that has the most."""
    return (jnp.max(jnp.sum(supervised_BT, axis=1)) + chunk - 1) // chunk


def _where_supervised(hidden_BCD: jax.Array, supervised_BC: jax.Array) -> jax.Array:
    """Zero the hidden states that are not supervised.

    A NaN among them would reach the gradient of the output projection as 0 * NaN.
    """
    return jnp.where(supervised_BC[..., None], hidden_BCD, 0)


def _logits(hidden_BCD: jax.Array, output_VD: jax.Array) -> jax.Array:
    return jnp.einsum("BCD,VD->BCV", hidden_BCD, output_VD, preferred_element_type=jnp.float32)


def _cut(x: jax.Array, index: jax.Array, chunk: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk, axis=1)


def _put(padded: jax.Array, part: jax.Array, index: jax.Array, chunk: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(padded, part, index * chunk, axis=1)
