"""Causal attention with grouped key heads, for training rows that are packed trees and for decoding
from a cache.

`tree_attention` is the compiler's own work and runs anywhere; model/kernels.py has the same on an
accelerator's kernels.

Letters are those of model/decoder.py; besides, G is the number of query heads that one key head
serves (N = K G), C the length of a block of queries, R = G C the rows that meet one key head, and M
the number of keys outside a cache. A cache's keys are C blocks of Y tokens.
"""

from __future__ import annotations

from functools import reduce
from math import sqrt

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cotjax.model.platform import forms_here
from cotjax.model.products import transposed, wide_einsum

# Finite, so that a row in which nothing is visible comes out as numbers instead of NaN.
_HIDDEN = -1e30

# Queries in one block of the training path: a block sees keys up to its own end alone, which spares
# nearly half of the square, and its scores are the largest temporary there is.
CHUNK = 128

# The name that a remat policy keeps attention's results under.
ATTENDED = "attended"


def visible(
    query_segments_BT: jax.Array,
    query_branches_BT: jax.Array,
    key_segments_BS: jax.Array,
    key_branches_BS: jax.Array,
) -> jax.Array:
    """What a tree lets a query see, before causality: [B, T, S], true where the key is of the
    query's own segment, and on the trunk (branch 0) or on the query's own branch.

    A packed row: one example (segment 1) whose trunk a b c d carries branch 1 (x y) after b and
    branch 2 (z) after d, then a short example (segment 2), then padding (segment 0):

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
def tree_attention(
    q_BNTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    segment_ids_BT: jax.Array,
    branches_BT: jax.Array,
) -> jax.Array:
    """Return attention [B, N, T, H] over whole rows by the rule of `visible`, causally.

    Scores and softmax are float32, block by block of queries. The backward pass recomputes a
    block's scores from their saved normalisers, so memory grows with T and not with its square (Dao
    et al., 2022, without their tiling of keys).
    """
    return _forward(q_BNTH, k_BKTH, v_BKTH, segment_ids_BT, branches_BT)[0]


_Residuals = tuple[jax.Array, ...]


def _forward(
    q_BNTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    segment_ids_BT: jax.Array,
    branches_BT: jax.Array,
) -> tuple[jax.Array, _Residuals]:
    B, N, T, H = q_BNTH.shape
    outs, norms = [], []
    for start, end in _blocks(T):
        k_BKSH, v_BKSH = k_BKTH[:, :, :end], v_BKTH[:, :, :end]
        q_BKRH = _grouped(q_BNTH[:, :, start:end] * (1 / sqrt(H)), k_BKTH.shape[1])
        scores_BKRS = wide_einsum("BKRH,BKSH->BKRS", q_BKRH, k_BKSH)
        scores_BNCS = _hide(scores_BKRS, N, segment_ids_BT, branches_BT, start, end)
        top_BNC1 = scores_BNCS.max(axis=-1, keepdims=True)
        shares_BNCS = jnp.exp(scores_BNCS - top_BNC1)
        total_BNC1 = shares_BNCS.sum(axis=-1, keepdims=True)
        shares_BKRS = shares_BNCS.reshape(scores_BKRS.shape).astype(v_BKTH.dtype)
        out_BKRH = wide_einsum("BKRS,BKSH->BKRH", shares_BKRS, v_BKSH)
        outs.append((out_BKRH.reshape(B, N, end - start, H) / total_BNC1).astype(v_BKTH.dtype))
        norms.append(top_BNC1 + jnp.log(total_BNC1))
    # Named, so that a layer that is computed again in the backward pass may keep these two and
    # spare the attention.
    out_BNTH = checkpoint_name(jnp.concatenate(outs, axis=2), ATTENDED)
    norm_BNT1 = checkpoint_name(jnp.concatenate(norms, axis=2), ATTENDED)
    return out_BNTH, (q_BNTH, k_BKTH, v_BKTH, segment_ids_BT, branches_BT, out_BNTH, norm_BNT1)


def _backward(residuals: _Residuals, d_out_BNTH: jax.Array) -> tuple[jax.Array | None, ...]:
    q_BNTH, k_BKTH, v_BKTH, segment_ids_BT, branches_BT, out_BNTH, norm_BNT1 = residuals
    B, N, T, H = q_BNTH.shape
    K, compute = k_BKTH.shape[1], k_BKTH.dtype
    q_BNTH = q_BNTH * (1 / sqrt(H))
    pull_BNT1 = (d_out_BNTH.astype(jnp.float32) * out_BNTH.astype(jnp.float32)).sum(
        axis=-1, keepdims=True
    )
    k_BKHT, v_BKHT = transposed(k_BKTH), transposed(v_BKTH)
    d_q, d_k_BKHT, d_v_BKHT = (
        [],
        jnp.zeros(k_BKHT.shape, jnp.float32),
        jnp.zeros(v_BKHT.shape, jnp.float32),
    )
    for start, end in _blocks(T):
        q_BKRH, d_out_BKRH = (
            _grouped(q_BNTH[:, :, start:end], K),
            _grouped(d_out_BNTH[:, :, start:end], K),
        )
        scores_BKRS = wide_einsum("BKRH,BKHS->BKRS", q_BKRH, k_BKHT[..., :end])
        scores_BNCS = _hide(scores_BKRS, N, segment_ids_BT, branches_BT, start, end)
        shares_BNCS = jnp.exp(scores_BNCS - norm_BNT1[:, :, start:end])
        d_shares_BKRS = wide_einsum("BKRH,BKHS->BKRS", d_out_BKRH, v_BKHT[..., :end])
        d_scores_BNCS = shares_BNCS * (
            d_shares_BKRS.reshape(shares_BNCS.shape) - pull_BNT1[:, :, start:end]
        )
        shares_BKRS = shares_BNCS.reshape(scores_BKRS.shape).astype(compute)
        d_scores_BKRS = d_scores_BNCS.reshape(scores_BKRS.shape).astype(compute)
        d_v_BKHT = d_v_BKHT.at[..., :end].add(
            wide_einsum("BKHR,BKRS->BKHS", transposed(d_out_BKRH), shares_BKRS)
        )
        d_k_BKHT = d_k_BKHT.at[..., :end].add(
            wide_einsum("BKHR,BKRS->BKHS", transposed(q_BKRH), d_scores_BKRS)
        )
        d_q_BKRH = wide_einsum("BKRS,BKSH->BKRH", d_scores_BKRS, k_BKTH[:, :, :end])
        d_q.append(d_q_BKRH.reshape(B, N, end - start, H) * (1 / sqrt(H)))
    d_k_BKTH, d_v_BKTH = d_k_BKHT.swapaxes(-1, -2), d_v_BKHT.swapaxes(-1, -2)
    return (
        jnp.concatenate(d_q, axis=2).astype(compute),
        d_k_BKTH.astype(compute),
        d_v_BKTH.astype(compute),
        None,
        None,
    )


tree_attention.defvjp(_forward, _backward)


def _blocks(T: int) -> list[tuple[int, int]]:
    """Return the start and end of each block of queries."""
    return [(start, min(start + CHUNK, T)) for start in range(0, T, CHUNK)]


def _grouped(x_BNCH: jax.Array, K: int) -> jax.Array:
    """Return [B, N, C, H] as [B, K, R, H], R = G C: one matmul a key head for all its queries."""
    B, N, C, H = x_BNCH.shape
    return x_BNCH.reshape(B, K, N // K * C, H)


def _hide(
    scores_BKRS: jax.Array,
    N: int,
    segment_ids_BT: jax.Array,
    branches_BT: jax.Array,
    start: int,
    end: int,
) -> jax.Array:
    """Return scores of queries start .. end, [B, N, C, S], a large negative where hidden."""
    B, S = scores_BKRS.shape[0], scores_BKRS.shape[-1]
    seen_BCS = visible(
        segment_ids_BT[:, start:end],
        branches_BT[:, start:end],
        segment_ids_BT[:, :end],
        branches_BT[:, :end],
    )
    causal_CS = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
    scores_BNCS = scores_BKRS.reshape(B, N, end - start, S)
    return jnp.where((seen_BCS & causal_CS[None])[:, None], scores_BNCS, _HIDDEN)


def prefill_attention(
    q_BNTH: jax.Array,
    fresh_k_BKHM: jax.Array,
    fresh_v_BKMH: jax.Array,
    seen_BTM: jax.Array,
    cached: tuple[jax.Array, jax.Array, jax.Array] | None,
) -> jax.Array:
    """Return attention [B, N, T, H] over M fresh tokens and the cached ones.

    Query t of row b sees the fresh tokens where `seen_BTM` holds. `cached`: keys [B, K, H, S],
    values [B, K, S, H] and which of them a row sees, [B, S]; or None. Fresh tokens are passed
    separately, because writing them into the cache first, each slot at its own length, costs a
    scatter before the matmul.
    """
    B, N, T, H = q_BNTH.shape
    K = fresh_k_BKHM.shape[1]
    q_BKRH = _grouped(q_BNTH * (1 / sqrt(H)), K)
    parts = [(fresh_k_BKHM, fresh_v_BKMH, jnp.tile(seen_BTM, (1, N // K, 1)))]
    if cached is not None:
        keys_BKHS, values_BKSH, seen_BS = cached
        parts.append((keys_BKHS, values_BKSH, seen_BS[:, None, :]))

    # One softmax over both parts: a common maximum, and one division at the end.
    scores = [wide_einsum("BKRH,BKHS->BKRS", q_BKRH, k_BKHS) for k_BKHS, _, _ in parts]
    scores = [
        jnp.where(seen[:, None], each, _HIDDEN)
        for each, (_, _, seen) in zip(scores, parts, strict=True)
    ]
    top_BKR1 = reduce(jnp.maximum, [each.max(axis=-1, keepdims=True) for each in scores])
    shares = [jnp.exp(each - top_BKR1) for each in scores]
    total_BKR1 = reduce(jnp.add, [each.sum(axis=-1, keepdims=True) for each in shares])
    outs = [
        wide_einsum("BKRS,BKSH->BKRH", each.astype(v_BKSH.dtype), v_BKSH)
        for each, (_, v_BKSH, _) in zip(shares, parts, strict=True)
    ]
    return (reduce(jnp.add, outs) / total_BKR1).astype(q_BNTH.dtype).reshape(B, N, T, H)


def step_attention(
    q_BN1H: jax.Array, keys_BKCHY: jax.Array, values_BKSH: jax.Array, bias_BS: jax.Array
) -> jax.Array:
    """Return attention [B, N, 1, H] of one query a row over cached keys and values.

    Keys are C blocks of Y tokens, values S = C Y tokens. `bias_BS` is added to the scores: 0 where
    a row sees a token, a large negative where it does not (`hidden_bias`).
    """
    B, N, _, H = q_BN1H.shape
    K, C, _, Y = keys_BKCHY.shape[1:]
    q_BKCGH = jnp.broadcast_to(
        _grouped(q_BN1H * (1 / sqrt(H)), K)[:, :, None], (B, K, C, N // K, H)
    )
    # A matmul a block: each reads a stretch of memory from end to end.
    scores_BKCGY = wide_einsum("BKCGH,BKCHY->BKCGY", q_BKCGH, keys_BKCHY)
    scores_BKCGY = scores_BKCGY + bias_BS.reshape(B, 1, C, 1, Y)
    shares_BKCGY = jnp.exp(scores_BKCGY - scores_BKCGY.max(axis=(2, 4), keepdims=True))
    total_BKG1 = shares_BKCGY.sum(axis=(2, 4))[..., None]
    shares_BKGS = shares_BKCGY.swapaxes(2, 3).reshape(B, K, N // K, C * Y)
    out_BKGH = wide_einsum("BKGS,BKSH->BKGH", shares_BKGS.astype(values_BKSH.dtype), values_BKSH)
    return (out_BKGH / total_BKG1).astype(q_BN1H.dtype).reshape(B, N, 1, H)


def hidden_bias(seen_BS: jax.Array) -> jax.Array:
    """Return what `step_attention` adds to scores, float32 [B, S], from what a row sees."""
    bias_BS = jnp.where(seen_BS, 0.0, _HIDDEN).astype(jnp.float32)
    return jax.lax.optimization_barrier(bias_BS) if forms_here().mask_once else bias_BS
