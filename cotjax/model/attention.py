"""Causal attention with grouped key heads, for training rows that are packed trees and for decoding from a cache.

`tree_attention` is the compiler's own work and runs anywhere; model/kernels.py has the same on an accelerator's kernels.

Letters are those of model/decoder.py; besides, G is the number of query heads that one key head serves (N = K G), C the
length of a block of queries, R = G C the rows that meet one key head, and M the length of what lies beside a cache.
"""

from __future__ import annotations

from math import sqrt

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Finite, so that a row in which nothing is visible comes out as numbers instead of NaN.
_HIDDEN = -1e30

# Queries in one block of the training path: a block sees keys up to its own end alone, which spares nearly half of the
# square, and its scores are the largest temporary there is.
CHUNK = 128

# The name that a remat policy keeps attention's results under.
ATTENDED = "attended"


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


@jax.custom_vjp
def tree_attention(q_BNTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, segment_ids_BT: jax.Array, branches_BT: jax.Array) -> jax.Array:
    """Attention over whole rows by the rule of `visible`, each query seeing keys no later in the row. Returns [B, N, T, H].

    Scores and softmax are float32, block by block of queries. The backward pass computes a block's scores again from their
    saved normalisers, so that memory grows with T and not with its square (Dao et al., 2022, without their tiling of keys).
    """
    return _forward(q_BNTH, k_BKTH, v_BKTH, segment_ids_BT, branches_BT)[0]


_Residuals = tuple[jax.Array, ...]


def _forward(
    q_BNTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, segment_ids_BT: jax.Array, branches_BT: jax.Array
) -> tuple[jax.Array, _Residuals]:
    B, N, T, H = q_BNTH.shape
    outs, norms = [], []
    for start, end in _blocks(T):
        k_BKSH, v_BKSH = k_BKTH[:, :, :end], v_BKTH[:, :, :end]
        q_BKRH = _grouped(q_BNTH[:, :, start:end] * (1 / sqrt(H)), k_BKTH.shape[1])
        scores_BKRS = jnp.einsum("BKRH,BKSH->BKRS", q_BKRH, k_BKSH, preferred_element_type=jnp.float32)
        scores_BNCS = _hide(scores_BKRS, N, segment_ids_BT, branches_BT, start, end)
        top_BNC1 = scores_BNCS.max(axis=-1, keepdims=True)
        shares_BNCS = jnp.exp(scores_BNCS - top_BNC1)
        total_BNC1 = shares_BNCS.sum(axis=-1, keepdims=True)
        shares_BKRS = shares_BNCS.reshape(scores_BKRS.shape).astype(v_BKTH.dtype)
        out_BKRH = jnp.einsum("BKRS,BKSH->BKRH", shares_BKRS, v_BKSH, preferred_element_type=jnp.float32)
        outs.append((out_BKRH.reshape(B, N, end - start, H) / total_BNC1).astype(v_BKTH.dtype))
        norms.append(top_BNC1 + jnp.log(total_BNC1))
    # Named, so that a layer that is computed again in the backward pass may keep these two and spare the attention.
    out_BNTH = checkpoint_name(jnp.concatenate(outs, axis=2), ATTENDED)
    norm_BNT1 = checkpoint_name(jnp.concatenate(norms, axis=2), ATTENDED)
    return out_BNTH, (q_BNTH, k_BKTH, v_BKTH, segment_ids_BT, branches_BT, out_BNTH, norm_BNT1)


def _backward(residuals: _Residuals, d_out_BNTH: jax.Array) -> tuple[jax.Array | None, ...]:
    q_BNTH, k_BKTH, v_BKTH, segment_ids_BT, branches_BT, out_BNTH, norm_BNT1 = residuals
    B, N, T, H = q_BNTH.shape
    K, compute = k_BKTH.shape[1], k_BKTH.dtype
    q_BNTH = q_BNTH * (1 / sqrt(H))
    pull_BNT1 = (d_out_BNTH.astype(jnp.float32) * out_BNTH.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    k_BKHT, v_BKHT = _turned(k_BKTH), _turned(v_BKTH)
    d_q, d_k_BKHT, d_v_BKHT = [], jnp.zeros(k_BKHT.shape, jnp.float32), jnp.zeros(v_BKHT.shape, jnp.float32)
    for start, end in _blocks(T):
        q_BKRH, d_out_BKRH = _grouped(q_BNTH[:, :, start:end], K), _grouped(d_out_BNTH[:, :, start:end], K)
        scores_BKRS = jnp.einsum("BKRH,BKHS->BKRS", q_BKRH, k_BKHT[..., :end], preferred_element_type=jnp.float32)
        scores_BNCS = _hide(scores_BKRS, N, segment_ids_BT, branches_BT, start, end)
        shares_BNCS = jnp.exp(scores_BNCS - norm_BNT1[:, :, start:end])
        d_shares_BKRS = jnp.einsum("BKRH,BKHS->BKRS", d_out_BKRH, v_BKHT[..., :end], preferred_element_type=jnp.float32)
        d_scores_BNCS = shares_BNCS * (d_shares_BKRS.reshape(shares_BNCS.shape) - pull_BNT1[:, :, start:end])
        shares_BKRS = shares_BNCS.reshape(scores_BKRS.shape).astype(compute)
        d_scores_BKRS = d_scores_BNCS.reshape(scores_BKRS.shape).astype(compute)
        add = {"preferred_element_type": jnp.float32}
        d_v_BKHT = d_v_BKHT.at[..., :end].add(jnp.einsum("BKHR,BKRS->BKHS", _turned(d_out_BKRH), shares_BKRS, **add))
        d_k_BKHT = d_k_BKHT.at[..., :end].add(jnp.einsum("BKHR,BKRS->BKHS", _turned(q_BKRH), d_scores_BKRS, **add))
        d_q_BKRH = jnp.einsum("BKRS,BKSH->BKRH", d_scores_BKRS, k_BKTH[:, :, :end], **add)
        d_q.append(d_q_BKRH.reshape(B, N, end - start, H) * (1 / sqrt(H)))
    d_k_BKTH, d_v_BKTH = d_k_BKHT.swapaxes(-1, -2), d_v_BKHT.swapaxes(-1, -2)
    return jnp.concatenate(d_q, axis=2).astype(compute), d_k_BKTH.astype(compute), d_v_BKTH.astype(compute), None, None


tree_attention.defvjp(_forward, _backward)


def _blocks(T: int) -> list[tuple[int, int]]:
    """Where each block of queries starts and ends."""
    return [(start, min(start + CHUNK, T)) for start in range(0, T, CHUNK)]


def _grouped(x_BNCH: jax.Array, K: int) -> jax.Array:
    """[B, N, C, H] -> [B, K, R, H] with R = G C: one matmul a key head serves all its query heads."""
    B, N, C, H = x_BNCH.shape
    return x_BNCH.reshape(B, K, N // K * C, H)


def _turned(x: jax.Array) -> jax.Array:
    """The last two axes swapped, in memory too: a CPU matmul whose operands lie crosswise takes twice the time, and the
    compiler would fold the swap back into the matmul."""
    return jax.lax.optimization_barrier(x.swapaxes(-1, -2))


def _hide(scores_BKRS: jax.Array, N: int, segment_ids_BT: jax.Array, branches_BT: jax.Array, start: int, end: int) -> jax.Array:
    """The scores of queries start .. end to keys 0 .. end as [B, N, C, S], those that the rule hides at a large negative."""
    B, S = scores_BKRS.shape[0], scores_BKRS.shape[-1]
    seen_BCS = visible(segment_ids_BT[:, start:end], branches_BT[:, start:end], segment_ids_BT[:, :end], branches_BT[:, :end])
    causal_CS = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
    scores_BNCS = scores_BKRS.reshape(B, N, end - start, S)
    return jnp.where((seen_BCS & causal_CS[None])[:, None], scores_BNCS, _HIDDEN)


def cached_attention(
    q_BNTH: jax.Array,
    cached_k_BKHS: jax.Array,
    cached_v_BKSH: jax.Array,
    lengths_B: jax.Array,
    fresh_k_BKHM: jax.Array,
    fresh_v_BKMH: jax.Array,
    seen_TM: jax.Array,
) -> jax.Array:
    """Attention over a cache, of which the first `lengths_B` tokens are valid, and over M fresh tokens beside it, of which
    query t sees those where `seen_TM` holds. Returns [B, N, T, H].

    The fresh tokens stay apart because writing them into the cache first, each slot at its own length, would cost the
    decode loop a scatter a layer; apart, a step writes at one index for all slots.
    """
    B, N, T, H = q_BNTH.shape
    K, S = cached_v_BKSH.shape[1:3]
    q_BKRH = _grouped(q_BNTH * (1 / sqrt(H)), K)
    valid_BS = jnp.arange(S)[None, :] < lengths_B[:, None]
    cached_BKRS = jnp.einsum("BKRH,BKHS->BKRS", q_BKRH, cached_k_BKHS, preferred_element_type=jnp.float32)
    cached_BKRS = jnp.where(valid_BS[:, None, None, :], cached_BKRS, _HIDDEN)
    fresh_BKRM = jnp.einsum("BKRH,BKHM->BKRM", q_BKRH, fresh_k_BKHM, preferred_element_type=jnp.float32)
    seen_RM = jnp.tile(seen_TM, (N // K, 1))
    fresh_BKRM = jnp.where(seen_RM[None, None], fresh_BKRM, _HIDDEN)

    # One softmax over both parts: a common maximum, and one division at the end.
    top_BKR1 = jnp.maximum(cached_BKRS.max(axis=-1, keepdims=True), fresh_BKRM.max(axis=-1, keepdims=True))
    cached_BKRS, fresh_BKRM = jnp.exp(cached_BKRS - top_BKR1), jnp.exp(fresh_BKRM - top_BKR1)
    total_BKR1 = cached_BKRS.sum(axis=-1, keepdims=True) + fresh_BKRM.sum(axis=-1, keepdims=True)
    wide = {"preferred_element_type": jnp.float32}
    out_BKRH = jnp.einsum("BKRS,BKSH->BKRH", cached_BKRS.astype(cached_v_BKSH.dtype), cached_v_BKSH, **wide)
    out_BKRH += jnp.einsum("BKRM,BKMH->BKRH", fresh_BKRM.astype(fresh_v_BKMH.dtype), fresh_v_BKMH, **wide)
    return (out_BKRH / total_BKR1).astype(q_BNTH.dtype).reshape(B, N, T, H)
