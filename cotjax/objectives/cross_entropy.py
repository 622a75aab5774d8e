"""Next-token cross-entropy that computes logits only where a target is supervised, a few positions at a time.

With a vocabulary of 151,936 the logits of 8 rows of 4,096 positions would take 20 GB in float32, and as much again for their
gradient, most of it for prompts that nobody is trained on. Here each row's supervised positions are moved to its front, and the
output projection runs over chunks of them; chunks that no row reaches are not computed. The backward pass computes a chunk's
logits again from the saved normalisers.

On several devices each works off its own rows, at its own pace, against a whole copy of the projection (over `tensor` its share of
the vocabulary), and their gradients of it are added up once at the end. Left to the compiler, they would be after every chunk.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from cotjax.model.sharding import shared_axes

CHUNK = 128  # positions of every row at a time


def supervised_cross_entropy(
    hidden_BTD: jax.Array,
    output_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    chunk: int = CHUNK,
) -> jax.Array:
    """-log softmax(hidden output^T)[target] in nats, times the weight: float32 [B, T], exactly 0 where the weight is 0.

    Equal to the loss over whole logits, and so are its gradients with respect to `hidden_BTD` and `output_VD`; no gradient
    reaches the weights. At most [B, chunk, V] logits exist at a time.
    """
    chunk = min(chunk, hidden_BTD.shape[1])
    shared, columns = shared_axes("batch"), shared_axes("embed")
    if not shared:
        return _of_rows(hidden_BTD, output_VD, targets_BT, weights_BT, chunk)

    def on_each_device(
        hidden_BTD: jax.Array, output_VE: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
    ) -> jax.Array:
        # Its transpose adds up the devices' gradients and leaves each its own columns.
        output_VD = (
            jax.lax.all_gather(output_VE, columns, axis=1, tiled=True) if columns else output_VE
        )
        return _of_rows(hidden_BTD, output_VD, targets_BT, weights_BT, chunk)

    rows, share = PartitionSpec(shared), PartitionSpec(None, columns or None)
    losses = jax.shard_map(
        on_each_device,
        in_specs=(rows, share, rows, rows),
        out_specs=rows,
        axis_names=set(shared),
        check_vma=False,
    )
    return losses(hidden_BTD, output_VD, targets_BT, weights_BT)


def _of_rows(
    hidden_BTD: jax.Array,
    output_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    chunk: int,
) -> jax.Array:
    T = hidden_BTD.shape[1]
    whole = -(-T // chunk) * chunk
    # Supervised positions go to the front, each in its order; what is not supervised lies behind.
    supervised_BT = weights_BT > 0
    ahead_BT, behind_BT = jnp.cumsum(supervised_BT, axis=1), jnp.cumsum(~supervised_BT, axis=1)
    place_BT = jnp.where(supervised_BT, ahead_BT, ahead_BT[:, -1:] + behind_BT) - 1
    order_BT = jnp.broadcast_to(jnp.arange(T)[None], place_BT.shape)
    front_BT = jnp.put_along_axis(
        jnp.zeros_like(place_BT), place_BT, order_BT, axis=1, inplace=False
    )
    compact = partial(_compact, front_BT=front_BT, whole=whole)
    losses_BT = _compacted(
        compact(hidden_BTD), output_VD, compact(targets_BT), compact(weights_BT), chunk
    )[:, :T]
    return jnp.take_along_axis(losses_BT, place_BT, axis=1)


def _compact(x: jax.Array, front_BT: jax.Array, whole: int) -> jax.Array:
    index = front_BT.reshape(front_BT.shape + (1,) * (x.ndim - 2))
    x = jnp.take_along_axis(x, index, axis=1)
    return jnp.pad(x, ((0, 0), (0, whole - x.shape[1]), *((0, 0),) * (x.ndim - 2)))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _compacted(
    hidden_BTD: jax.Array,
    output_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    chunk: int,
) -> jax.Array:
    return _forward(hidden_BTD, output_VD, targets_BT, weights_BT, chunk)[0]


def _forward(
    hidden_BTD: jax.Array,
    output_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    chunk: int,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    def step(index: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        losses_BT, norms_BT = found
        hidden, targets, weights = (
            _cut(x, index, chunk) for x in (hidden_BTD, targets_BT, weights_BT)
        )
        hidden = _where_supervised(hidden, weights)
        logits_BCV = _logits(hidden, output_VD)
        norms_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
        of_target_BC = jnp.take_along_axis(logits_BCV, targets[..., None], axis=-1)[..., 0]
        losses_BC = jnp.where(weights > 0, (norms_BC - of_target_BC) * weights, 0.0)
        return _put(losses_BT, losses_BC, index, chunk), _put(norms_BT, norms_BC, index, chunk)

    nothing_BT = jnp.zeros(weights_BT.shape, jnp.float32)
    losses_BT, norms_BT = jax.lax.fori_loop(
        0, _chunks(weights_BT, chunk), step, (nothing_BT, nothing_BT)
    )
    return losses_BT, (hidden_BTD, output_VD, targets_BT, weights_BT, norms_BT)


def _backward(
    chunk: int, saved: tuple[jax.Array, ...], d_losses_BT: jax.Array
) -> tuple[jax.Array | None, ...]:
    hidden_BTD, output_VD, targets_BT, weights_BT, norms_BT = saved

    def step(index: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        d_hidden_BTD, d_output_VD = found
        hidden, targets, weights = (
            _cut(x, index, chunk) for x in (hidden_BTD, targets_BT, weights_BT)
        )
        hidden = _where_supervised(hidden, weights)
        pull_BC1 = jnp.where(weights > 0, weights * _cut(d_losses_BT, index, chunk), 0.0)[..., None]
        shares_BCV = jnp.exp(_logits(hidden, output_VD) - _cut(norms_BT, index, chunk)[..., None])
        is_target_BCV = targets[..., None] == jnp.arange(output_VD.shape[0])[None, None, :]
        d_logits_BCV = (jnp.where(is_target_BCV, shares_BCV - 1, shares_BCV) * pull_BC1).astype(
            output_VD.dtype
        )
        d_hidden_BCD = jnp.einsum(
            "BCV,VD->BCD", d_logits_BCV, output_VD, preferred_element_type=jnp.float32
        )
        d_output_VD += jnp.einsum(
            "BCV,BCD->VD", d_logits_BCV, hidden, preferred_element_type=jnp.float32
        )
        return _put(d_hidden_BTD, d_hidden_BCD.astype(hidden.dtype), index, chunk), d_output_VD

    start = (jnp.zeros_like(hidden_BTD), jnp.zeros(output_VD.shape, jnp.float32))
    d_hidden_BTD, d_output_VD = jax.lax.fori_loop(0, _chunks(weights_BT, chunk), step, start)
    return d_hidden_BTD, d_output_VD.astype(output_VD.dtype), None, None


_compacted.defvjp(_forward, _backward)


def _chunks(weights_BT: jax.Array, chunk: int) -> jax.Array:
    """How many chunks hold a supervised position, of the row that has most."""
    return (jnp.max(jnp.sum(weights_BT > 0, axis=1)) + chunk - 1) // chunk


def _where_supervised(hidden_BCD: jax.Array, weights_BC: jax.Array) -> jax.Array:
    """What is not finite where nothing is supervised would reach the output's gradient as 0 times NaN."""
    return jnp.where(weights_BC[..., None] > 0, hidden_BCD, 0)


def _logits(hidden_BCD: jax.Array, output_VD: jax.Array) -> jax.Array:
    return jnp.einsum("BCD,VD->BCV", hidden_BCD, output_VD, preferred_element_type=jnp.float32)


def _cut(x: jax.Array, index: jax.Array, chunk: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk, axis=1)


def _put(whole: jax.Array, part: jax.Array, index: jax.Array, chunk: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, index * chunk, axis=1)
