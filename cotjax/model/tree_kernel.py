"""Attention over packed trees as a flash-attention kernel for GPUs, in Pallas.

In a packed row (attention.visible draws one) segments and branches are runs of tokens. Whoever sees
a key follows it, and comes before the end of the key's run. So the whole rule is causality and one
number a key: the first query that no longer sees it. The kernels read that number beside each key,
[B, T] instead of a mask [B, T, T], and skip blocks in which nothing is seen. The algorithm is
FlashAttention-2's (Dao, 2023), the mask by columns FlashMask's (Wang et al., 2024).

Letters are those of model/decoder.py; besides, G is the number of query heads that one key head
serves, C and Y are the tokens of a block of queries and of keys, and I and J count such blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import log2, sqrt
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from cotjax.model.attention import ATTENDED

_HIDDEN = -1e30  # finite, as in attention.py
_LOG2_E = log2(2.718281828459045)  # scores are in base 2, whose exponential a GPU computes
_Carry = tuple[Any, ...]


@dataclass(frozen=True)
class Blocks:
    """Of one kernel: queries and keys of a block, warps of a program, stages of its loads."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiling:
    """Blocks of the forward kernel, and of the gradients of keys and values, and of queries.

    The defaults were the fastest of seven on one H200, at a head size of 128.
    """

    forward: Blocks = Blocks(128, 64, 8, 3)
    of_keys: Blocks = Blocks(64, 64, 4, 2)
    of_queries: Blocks = Blocks(64, 64, 4, 2)

    @property
    def multiple(self) -> int:
        """What the length of a row must be a multiple of."""
        each = (self.forward, self.of_keys, self.of_queries)
        return max(max(blocks.queries, blocks.keys) for blocks in each)


def runs(segment_ids_BT: jax.Array, branches_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return of each token, int32 [B, T], the first query after it that does not see it, and the
    first key that it sees.

    A trunk's tokens are seen to the end of their segment, a branch's to the end of the branch.
    Padding (segment 0) is seen by itself alone.
    """
    T = segment_ids_BT.shape[1]
    index_1T = jnp.arange(T, dtype=jnp.int32)[None]

    def begins(x_BT: jax.Array) -> jax.Array:
        return jnp.pad(x_BT[:, 1:] != x_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True)

    def end(begins_BT: jax.Array) -> jax.Array:
        later_BT = jnp.where(begins_BT, index_1T, T)[:, 1:]
        later_BT = jnp.pad(later_BT, ((0, 0), (0, 1)), constant_values=T)
        return jax.lax.cummin(later_BT, axis=1, reverse=True)

    segments_BT = begins(segment_ids_BT)
    branch_ends_BT = end(segments_BT | begins(branches_BT))
    ends_BT = jnp.where(branches_BT == 0, end(segments_BT), branch_ends_BT)
    starts_BT = jax.lax.cummax(jnp.where(segments_BT, index_1T, 0), axis=1)
    padding_BT = segment_ids_BT == 0
    return (
        jnp.where(padding_BT, index_1T + 1, ends_BT),
        jnp.where(padding_BT, index_1T, starts_BT),
    )


def kernel_attention(
    q_BNTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    segment_ids_BT: jax.Array,
    branches_BT: jax.Array,
    *,
    tiling: Tiling | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Return attention [B, N, T, H] by the rule of attention.visible, causally.

    Each segment, and each branch of a segment, must be one run of tokens, as packing makes them.
    H is a power of two from 16 to 128. `interpret` runs without a GPU, slowly.
    """
    tiling = tiling or Tiling()
    T = q_BNTH.shape[2]
    short = -T % tiling.multiple
    if short:
        heads = [(0, 0), (0, 0), (0, short), (0, 0)]
        q_BNTH, k_BKTH, v_BKTH = (jnp.pad(x, heads) for x in (q_BNTH, k_BKTH, v_BKTH))
        segment_ids_BT, branches_BT = (
            jnp.pad(x, heads[1:3]) for x in (segment_ids_BT, branches_BT)
        )
    rows = runs(segment_ids_BT, branches_BT)
    return _attention(q_BNTH, k_BKTH, v_BKTH, *rows, tiling, interpret)[:, :, :T]


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attention(
    q_BNTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    ends_BT: jax.Array,
    starts_BT: jax.Array,
    tiling: Tiling,
    interpret: bool,
) -> jax.Array:
    return _forward(q_BNTH, k_BKTH, v_BKTH, ends_BT, starts_BT, tiling, interpret)[0]


def _forward(
    q_BNTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    ends_BT: jax.Array,
    starts_BT: jax.Array,
    tiling: Tiling,
    interpret: bool,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """A program of the kernel has a block of queries, and reads all that they see."""
    (B, N, T, H), blocks = q_BNTH.shape, tiling.forward
    C, Y, G = blocks.queries, blocks.keys, N // k_BKTH.shape[1]
    first_BI, whole_BI = _seen_keys(ends_BT, starts_BT, blocks)

    def kernel(first: Any, whole: Any, ends: Any, q: Any, k: Any, v: Any, out: Any, norms: Any):
        i = T // C - 1 - pl.program_id(0)
        q_CH = q[...]

        def step(masked: bool, j: Any, carry: _Carry) -> _Carry:
            out_CH, top_C, total_C = carry
            at = pl.ds(j * Y, Y)
            scores_CY = _dot(q_CH, k[at, :].T) * (_LOG2_E / sqrt(H))
            if masked:
                seen_CY = _seen(i * C, C, j * Y, ends[at])
                scores_CY = jnp.where(seen_CY, scores_CY, _HIDDEN)
            higher_C = jnp.maximum(top_C, scores_CY.max(axis=1))
            shares_CY = jnp.exp2(scores_CY - higher_C[:, None])
            scale_C = jnp.exp2(top_C - higher_C)
            added_CH = _dot(shares_CY.astype(v.dtype), v[at, :])
            return (
                out_CH * scale_C[:, None] + added_CH,
                higher_C,
                total_C * scale_C + shares_CY.sum(axis=1),
            )

        lowest_C, zero_C = jnp.full((C,), _HIDDEN, jnp.float32), jnp.zeros((C,), jnp.float32)
        carry = (jnp.zeros((C, H), jnp.float32), lowest_C, zero_C)
        carry = jax.lax.fori_loop(first[0], whole[0], partial(step, False), carry)
        carry = jax.lax.fori_loop(whole[0], ((i + 1) * C + Y - 1) // Y, partial(step, True), carry)
        out_CH, top_C, total_C = carry
        out[...] = (out_CH / total_C[:, None]).astype(out.dtype)
        norms[...] = top_C + jnp.log2(total_C)

    specs = _Specs(T // C, C, T, H, G)
    out_BNTH, norms_BNT = _call(
        kernel,
        "tree_attention",
        blocks,
        interpret,
        grid=(T // C, N, B),
        in_specs=[specs.number, specs.number, specs.row, specs.block, specs.keys, specs.keys],
        out_specs=[specs.block, specs.numbers],
        out_shape=[
            jax.ShapeDtypeStruct(q_BNTH.shape, v_BKTH.dtype),
            jax.ShapeDtypeStruct((B, N, T), jnp.float32),
        ],
    )(first_BI, whole_BI, ends_BT, q_BNTH, k_BKTH, v_BKTH)
    out_BNTH = checkpoint_name(out_BNTH, ATTENDED)
    norms_BNT = checkpoint_name(norms_BNT, ATTENDED)
    return out_BNTH, (q_BNTH, k_BKTH, v_BKTH, ends_BT, starts_BT, out_BNTH, norms_BNT)


def _backward(
    tiling: Tiling, interpret: bool, saved: tuple[jax.Array, ...], d_out_BNTH: jax.Array
) -> tuple[jax.Array | None, ...]:
    q_BNTH, k_BKTH, v_BKTH, ends_BT, starts_BT, out_BNTH, norms_BNT = saved
    pull_BNT = jnp.sum(d_out_BNTH.astype(jnp.float32) * out_BNTH.astype(jnp.float32), axis=-1)
    shared = (q_BNTH, k_BKTH, v_BKTH, d_out_BNTH.astype(v_BKTH.dtype), norms_BNT, pull_BNT)
    d_k_BKTH, d_v_BKTH = _of_keys(tiling.of_keys, interpret, ends_BT, shared)
    d_q_BNTH = _of_queries(tiling.of_queries, interpret, starts_BT, ends_BT, shared)
    return d_q_BNTH, d_k_BKTH, d_v_BKTH, None, None


_attention.defvjp(_forward, _backward)


def _of_keys(
    blocks: Blocks,
    interpret: bool,
    ends_BT: jax.Array,
    shared: tuple[jax.Array, ...],
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of keys and values; `shared`: as in `_backward`.

    A program has a block of keys, and reads all queries that see them, of one head after another.
    """
    q_BNTH, k_BKTH, v_BKTH = shared[:3]
    (B, N, T, H), K = q_BNTH.shape, k_BKTH.shape[1]
    C, Y, G = blocks.queries, blocks.keys, N // K
    last_BJ = -(-ends_BT.reshape(B, T // Y, Y).max(axis=2) // C)

    def kernel(
        last: Any, ends: Any, q: Any, k: Any, v: Any, d_out: Any, norms: Any, pull: Any,
        d_k: Any, d_v: Any,
    ):  # fmt: skip
        j = pl.program_id(0)
        k_YH, v_YH, ends_Y = k[...], v[...], ends[...]
        first = j * Y // C
        count = last[0] - first

        def step(n: Any, carry: _Carry) -> _Carry:
            d_k_YH, d_v_YH = carry
            g, i = n // count, first + n % count
            at = pl.ds(i * C, C)
            q_CH, d_out_CH = q[g, at, :], d_out[g, at, :]
            scores_YC = _dot(k_YH, q_CH.T) * (_LOG2_E / sqrt(H))
            seen_YC = _seen(i * C, C, j * Y, ends_Y, keys_first=True)
            shares_YC = jnp.exp2(jnp.where(seen_YC, scores_YC, _HIDDEN) - norms[g, at][None])
            d_v_YH += _dot(shares_YC.astype(v.dtype), d_out_CH)
            d_scores_YC = shares_YC * (_dot(v_YH, d_out_CH.T) - pull[g, at][None])
            return d_k_YH + _dot(d_scores_YC.astype(k.dtype), q_CH), d_v_YH

        # Loops of their own for the blocks that need no mask were slower.
        zero_YH = jnp.zeros((Y, H), jnp.float32)
        d_k_YH, d_v_YH = jax.lax.fori_loop(0, G * count, step, (zero_YH, zero_YH))
        d_k[...] = (d_k_YH * (1 / sqrt(H))).astype(d_k.dtype)
        d_v[...] = d_v_YH.astype(d_v.dtype)

    number = pl.BlockSpec((None, 1), lambda j, k, b: (b, j))
    block = pl.BlockSpec((None, None, Y, H), lambda j, k, b: (b, k, j, 0))
    group = pl.BlockSpec((None, G, T, H), lambda j, k, b: (b, k, 0, 0))
    numbers = pl.BlockSpec((None, G, T), lambda j, k, b: (b, k, 0))
    d_k_BKTH, d_v_BKTH = _call(
        kernel,
        "tree_attention_of_keys",
        blocks,
        interpret,
        grid=(T // Y, K, B),
        in_specs=[
            *(number, pl.BlockSpec((None, Y), lambda j, k, b: (b, j))),
            *(group, block, block, group, numbers, numbers),
        ],
        out_specs=[block, block],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k_BKTH, v_BKTH)],
    )(last_BJ, ends_BT, *shared)
    return d_k_BKTH, d_v_BKTH


def _of_queries(
    blocks: Blocks,
    interpret: bool,
    starts_BT: jax.Array,
    ends_BT: jax.Array,
    shared: tuple[jax.Array, ...],
) -> jax.Array:
    """Return the gradients of queries, by programs like those of the forward kernel.

    `shared`: as in `_backward`.
    """
    q_BNTH, k_BKTH = shared[:2]
    B, N, T, H = q_BNTH.shape
    C, Y, G = blocks.queries, blocks.keys, N // k_BKTH.shape[1]

    def kernel(
        first: Any, ends: Any, q: Any, k: Any, v: Any, d_out: Any, norms: Any, pull: Any, d_q: Any
    ):  # fmt: skip
        i = T // C - 1 - pl.program_id(0)
        q_CH, d_out_CH, norms_C, pull_C = q[...], d_out[...], norms[...], pull[...]

        def step(j: Any, d_q_CH: Any) -> Any:
            at = pl.ds(j * Y, Y)
            k_YH = k[at, :]
            scores_CY = _dot(q_CH, k_YH.T) * (_LOG2_E / sqrt(H))
            seen_CY = _seen(i * C, C, j * Y, ends[at])
            shares_CY = jnp.exp2(jnp.where(seen_CY, scores_CY, _HIDDEN) - norms_C[:, None])
            d_scores_CY = shares_CY * (_dot(d_out_CH, v[at, :].T) - pull_C[:, None])
            return d_q_CH + _dot(d_scores_CY.astype(k.dtype), k_YH)

        last = ((i + 1) * C + Y - 1) // Y
        d_q_CH = jax.lax.fori_loop(first[0], last, step, jnp.zeros((C, H), jnp.float32))
        d_q[...] = (d_q_CH * (1 / sqrt(H))).astype(d_q.dtype)

    specs = _Specs(T // C, C, T, H, G)
    return _call(
        kernel,
        "tree_attention_of_queries",
        blocks,
        interpret,
        grid=(T // C, N, B),
        in_specs=[
            *(specs.number, specs.row, specs.block, specs.keys, specs.keys),
            *(specs.block, specs.numbers, specs.numbers),
        ],
        out_specs=specs.block,
        out_shape=jax.ShapeDtypeStruct(q_BNTH.shape, q_BNTH.dtype),
    )(starts_BT[:, ::C] // Y, ends_BT, *shared)


class _Specs:
    """What a program that has a block of queries is given, on a grid of (I, N, B).

    The last blocks see most keys, and are computed first.
    """

    def __init__(self, I: int, C: int, T: int, H: int, G: int):  # noqa: E741
        self.number = pl.BlockSpec((None, 1), lambda i, n, b: (b, I - 1 - i))
        self.row = pl.BlockSpec((None, T), lambda i, n, b: (b, 0))
        self.block = pl.BlockSpec((None, None, C, H), lambda i, n, b: (b, n, I - 1 - i, 0))
        self.numbers = pl.BlockSpec((None, None, C), lambda i, n, b: (b, n, I - 1 - i))
        self.keys = pl.BlockSpec((None, None, T, H), lambda i, n, b: (b, n // G, 0, 0))


def _seen_keys(
    ends_BT: jax.Array, starts_BT: jax.Array, blocks: Blocks
) -> tuple[jax.Array, jax.Array]:
    """Return of each block of queries, int32 [B, I], the first block of keys that it sees, and the
    first of which it does not see all.
    """
    (B, T), C, Y = ends_BT.shape, blocks.queries, blocks.keys
    first_BI = starts_BT[:, ::C] // Y
    index_J, query_ends_I = jnp.arange(T // Y), (jnp.arange(T // C) + 1) * C
    lowest_BJ = ends_BT.reshape(B, T // Y, Y).min(axis=2)
    causal_IJ = (index_J[None] + 1) * Y <= query_ends_I[:, None] - C
    whole_BIJ = (lowest_BJ[:, None] >= query_ends_I[None, :, None]) & causal_IJ[None]
    whole_BIJ |= index_J[None, None] < first_BI[..., None]
    whole_BI = jnp.cumprod(whole_BIJ.astype(jnp.int32), axis=2).sum(axis=2, dtype=jnp.int32)
    return first_BI, jnp.maximum(whole_BI, first_BI)


def _seen(query: Any, C: int, key: Any, ends_Y: Any, *, keys_first: bool = False) -> Any:
    """Return which of C queries from `query` on see which of the keys from `key` on.

    [C, Y], or with `keys_first` [Y, C].
    """
    index_C, index_Y = query + jnp.arange(C), key + jnp.arange(ends_Y.shape[0])
    if keys_first:
        return (index_C[None] >= index_Y[:, None]) & (index_C[None] < ends_Y[:, None])
    return (index_C[:, None] >= index_Y[None]) & (index_C[:, None] < ends_Y[None])


def _dot(x: Any, y: Any) -> Any:
    """Return the float32 product of two blocks."""
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


def _call(
    kernel: Callable[..., None], name: str, blocks: Blocks, interpret: bool, **kwargs: Any
) -> Any:
    params = triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages)
    return pl.pallas_call(kernel, name=name, interpret=interpret, compiler_params=params, **kwargs)
