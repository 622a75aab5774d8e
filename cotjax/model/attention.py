"""Causal attention with grouped key heads, for training rows that are packed trees and for decoding from a cache.

Letters are those of model/decoder.py; G is the number of query heads that one key head serves (N = K G), C the length of a
chunk of queries.
"""

from __future__ import annotations

from math import sqrt

import jax
import jax.numpy as jnp

# Finite, so that a row in which nothing is visible comes out as numbers instead of NaN.
_HIDDEN = -1e30

# Queries in one block of the training path: a block sees keys up to its own end alone, which spares nearly half of the
# square, and its scores are the largest temporary there is.
CHUNK = 128


def visible(
    query_segments_BT: jax.Array, query_branches_BT: jax.Array, key_segments_BS: jax.Array, key_branches_BS: jax.Array
) -> jax.Array:
    """What a tree lets a query see, before causality: [B, T, S], true where the key is of the query's own segment, and on
    the trunk (branch 0) or on the query's own branch.

    A packed row: one example (segment 1) whose trunk a b c d carries branch 1 (x y) after b and branch 2 (z) after d,
    then a short example (segment 2), then padding (segment 0):

        row        a b x y c d z p q .
        segments   1 1 1 1 1 1 1 2 2 0
        branches   0 0 1 1 0 0 2 0 0 0
        positions  0 1 2 3 2 3 4 0 1 0
        y sees     a b x y
        d sees     a b     c d              (not x y: a trunk token never sees a branch)
        z sees     a b     c d z
        q sees                   p q

    Padding sees padding alone. Nothing real ever sees it, so what it holds does not matter.
    """
    same_segment = query_segments_BT[:, :, None] == key_segments_BS[:, None, :]
    on_trunk = (key_branches_BS == 0)[:, None, :]
    same_branch = query_branches_BT[:, :, None] == key_branches_BS[:, None, :]
    return same_segment & (on_trunk | same_branch)


def tree_attention(
    q_BNTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, segment_ids_BT: jax.Array, branches_BT: jax.Array
) -> jax.Array:
    """Attention over whole rows by the rule of `visible`, each query seeing keys no later in the row. Returns [B, N, T, H].

    Scores and softmax are float32, block by block of queries; the backward pass computes a block's scores again instead of
    keeping them, so that memory grows with T and not with its square.
    """
    T = q_BNTH.shape[2]
    blocks = []
    for start in range(0, T, CHUNK):
        end = min(start + CHUNK, T)
        block = jax.checkpoint(_block_attention)
        blocks.append(
            block(
                q_BNTH[:, :, start:end],
                k_BKTH[:, :, :end],
                v_BKTH[:, :, :end],
                (segment_ids_BT[:, start:end], branches_BT[:, start:end], segment_ids_BT[:, :end], branches_BT[:, :end]),
            )
        )
    return jnp.concatenate(blocks, axis=2)


def _block_attention(q_BNCH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, ids: tuple[jax.Array, ...]) -> jax.Array:
    """The queries of one block, which are the last C of the S tokens given."""
    B, N, C, H = q_BNCH.shape
    K, S = k_BKSH.shape[1:3]
    causal_CS = jnp.arange(S - C, S)[:, None] >= jnp.arange(S)[None, :]
    seen_BCS = visible(*ids) & causal_CS[None]
    q_BKGCH = q_BNCH.reshape(B, K, N // K, C, H) * (1 / sqrt(H))
    scores_BKGCS = jnp.einsum("BKGCH,BKSH->BKGCS", q_BKGCH, k_BKSH, preferred_element_type=jnp.float32)
    scores_BKGCS = jnp.where(seen_BCS[:, None, None], scores_BKGCS, _HIDDEN)
    shares_BKGCS = jax.nn.softmax(scores_BKGCS, axis=-1).astype(v_BKSH.dtype)
    return jnp.einsum("BKGCS,BKSH->BKGCH", shares_BKGCS, v_BKSH).reshape(B, N, C, H)


def cached_attention(
    q_BNTH: jax.Array,
    cached_k_BKSH: jax.Array,
    cached_v_BKSH: jax.Array,
    lengths_B: jax.Array,
    fresh_k_BKMH: jax.Array,
    fresh_v_BKMH: jax.Array,
    seen_TM: jax.Array,
) -> jax.Array:
    """Attention over a cache, of which the first `lengths_B` tokens are valid, and over M fresh tokens beside it, of which
    query t sees those where `seen_TM` holds. Returns [B, N, T, H].

    The fresh tokens stay apart because writing them into the cache first, each slot at its own length, would cost the
    decode loop a scatter a layer; apart, a step writes at one index for all slots.
    """
    B, N, T, H = q_BNTH.shape
    K, S = cached_k_BKSH.shape[1:3]
    q_BKRH = q_BNTH.reshape(B, K, N // K * T, H) * (1 / sqrt(H))  # R: the G heads of a key head, and their queries
    valid_BS = jnp.arange(S)[None, :] < lengths_B[:, None]
    cached_BKRS = jnp.einsum("BKRH,BKSH->BKRS", q_BKRH, cached_k_BKSH, preferred_element_type=jnp.float32)
    cached_BKRS = jnp.where(valid_BS[:, None, None, :], cached_BKRS, _HIDDEN)
    fresh_BKRM = jnp.einsum("BKRH,BKMH->BKRM", q_BKRH, fresh_k_BKMH, preferred_element_type=jnp.float32)
    seen_RM = jnp.tile(seen_TM, (N // K, 1))
    fresh_BKRM = jnp.where(seen_RM[None, None], fresh_BKRM, _HIDDEN)

    # One softmax over both parts: a common maximum, and one division at the end.
    top_BKR1 = jnp.maximum(cached_BKRS.max(axis=-1, keepdims=True), fresh_BKRM.max(axis=-1, keepdims=True))
    cached_BKRS, fresh_BKRM = jnp.exp(cached_BKRS - top_BKR1), jnp.exp(fresh_BKRM - top_BKR1)
    total_BKR1 = cached_BKRS.sum(axis=-1, keepdims=True) + fresh_BKRM.sum(axis=-1, keepdims=True)
    out_BKRH = jnp.einsum("BKRS,BKSH->BKRH", cached_BKRS.astype(cached_v_BKSH.dtype), cached_v_BKSH)
    out_BKRH += jnp.einsum("BKRM,BKMH->BKRH", fresh_BKRM.astype(fresh_v_BKMH.dtype), fresh_v_BKMH)
    return (out_BKRH / total_BKR1.astype(out_BKRH.dtype)).reshape(B, N, T, H)
