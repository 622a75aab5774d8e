"""A decode step's attention on a TPU, by jax's kernel for ragged pages.

    jax.experimental.pallas.ops.tpu.ragged_paged_attention

It reads the pages that a slot fills and no more, so a slot pays for what it holds. The pages of a
slot are its own stretch of the cache (cache_layouts.Pairs), in order.

Letters are those of model/cache.py; k = 2 K counts keys and values side by side.
"""

from __future__ import annotations

from functools import partial
from math import sqrt

import jax
import jax.numpy as jnp

from cotjax.model.config import ModelConfig
from cotjax.model.platform import platform_here
from cotjax.model.sharding import on_each_device

# Tokens that the kernel holds of a slot at a time, and slots whose queries it holds.
_AT_ONCE, _SLOTS_AT_ONCE = 512, 8
_LANES = 128  # of a TPU's vector
_HIDDEN = -1e30

_QUERIES = ("batch", "heads", "length", "head_size")
_PAIRS = ("batch", "length", "kv_heads", "head_size")


def reads_ragged(config: ModelConfig, parts: int) -> bool:
    """Return whether the kernel takes this model, with its heads over so many devices.

    It wants 16-bit numbers, heads as wide as a vector, and key heads that fill whole tiles.
    """
    heads, rest = divmod(config.kv_heads, parts)
    fills = heads in (1, 2, 4) or (heads > 0 and heads % 8 == 0)
    narrow = config.compute_as.itemsize == 2
    return narrow and rest == 0 and fills and config.head_size % _LANES == 0


def ragged_step_attention(
    q_BN1H: jax.Array, pairs_BSkH: jax.Array, seen_B: jax.Array, page: int
) -> jax.Array:
    """Return attention [B, N, 1, H] of one query a slot over its first `seen_B` tokens.

    `seen_B`: at least 1. `page`: tokens of a page; S is a multiple of it. On a CPU, where tests
    force a TPU's forms, plain softmax takes the kernel's place.
    """
    attend = _plain if platform_here() == "cpu" else partial(_ragged, page=page)
    axes = (_QUERIES, _PAIRS, ("batch",))
    return on_each_device(attend, axes, _QUERIES, q_BN1H, pairs_BSkH, seen_B)


def pages_of(
    q_BN1H: jax.Array, pairs_BSkH: jax.Array, seen_B: jax.Array, page: int
) -> tuple[jax.Array, ...]:
    """Return the kernel's arrays: queries [B, N, H], pages [P, page, k, H], lengths, the pages of
    each slot, where each slot's queries begin, and the number of slots.
    """
    B, S, k, H = pairs_BSkH.shape
    pages_PYkH = pairs_BSkH.reshape(B * S // page, page, k, H)
    of_slot_BC = jnp.arange(B * S // page, dtype=jnp.int32).reshape(B, -1)
    begins = jnp.arange(B + 1, dtype=jnp.int32)
    slots = jnp.full((1,), B, jnp.int32)
    return q_BN1H[:, :, 0], pages_PYkH, seen_B, of_slot_BC, begins, slots


def _ragged(q_BN1H: jax.Array, pairs_BSkH: jax.Array, seen_B: jax.Array, page: int) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

    B, S, _, H = pairs_BSkH.shape
    out_BNH = ragged_paged_attention(
        *pages_of(q_BN1H, pairs_BSkH, seen_B, page),
        sm_scale=1 / sqrt(H),
        # Given, because the kernel's own table asks what device is attached here.
        num_kv_pages_per_block=min(max(1, _AT_ONCE // page), S // page),
        num_queries_per_block=min(_SLOTS_AT_ONCE, B),
    )
    return out_BNH[:, :, None]


def _plain(q_BN1H: jax.Array, pairs_BSkH: jax.Array, seen_B: jax.Array) -> jax.Array:
    B, N, _, H = q_BN1H.shape
    keys_BSKH, values_BSKH = pairs_BSkH[:, :, ::2], pairs_BSkH[:, :, 1::2]
    S, K = keys_BSKH.shape[1:3]
    q_BKGH = q_BN1H.reshape(B, K, N // K, H)
    wide = {"preferred_element_type": jnp.float32}
    scores_BKGS = jnp.einsum("BKGH,BSKH->BKGS", q_BKGH, keys_BSKH, **wide) / sqrt(H)
    seen_BS = jnp.arange(S)[None, :] < seen_B[:, None]
    shares_BKGS = jax.nn.softmax(jnp.where(seen_BS[:, None, None, :], scores_BKGS, _HIDDEN))
    shares_BKGS = shares_BKGS.astype(pairs_BSkH.dtype)
    out_BKGH = jnp.einsum("BKGS,BSKH->BKGH", shares_BKGS, values_BSKH, **wide)
    return out_BKGH.astype(q_BN1H.dtype).reshape(B, N, 1, H)
