"""Attention over a key-value cache by token (cache_layouts.Tokens), by the kernels of a GPU.

    kernel   what it is                                            needs
    triton   Pallas kernel, one program a slot and key head; it    jax's Triton lowering, fused
             norms, rotates, writes the new token and attends      weights, 16-bit, H a power of two
    cudnn    jax.nn.dot_product_attention with lengths             cuDNN, 16-bit
    xla      two matmuls and a softmax                             nothing

`step_kernel_here` and `reads_by_cudnn` choose among them: the first of platform.Forms.token_kernels
that runs, else xla. On a CPU, where tests force a GPU's forms, the Pallas kernel is interpreted and
cuDNN's place is taken by XLA's implementation of the same function.

Letters are those of model/cache.py; G is the number of query heads of one key head, and g = G + 2
counts its query heads, its key and its value.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from math import sqrt
from typing import Any, Literal

import jax
import jax.numpy as jnp

from cotjax.model.config import ModelConfig
from cotjax.model.layers import Raw
from cotjax.model.platform import forms_of, has_triton, platform_here
from cotjax.model.sharding import on_each_device

KERNELS = ("triton", "cudnn", "xla")

# Keys that a program of the Triton kernel reads at once, its warps, and the blocks in flight. On an
# H200, 64 slots of 544 tokens, 8 key heads: 43 us; blocks of 128 50 us; of 32 with 2 warps 43 us.
_BLOCK, _WARPS, _STAGES = 64, 4, 2
# Where slots are few, a row is cut into parts of at least so many tokens, until there are so many
# programs: two for each of an H200's 132 processors. (With 64 slots two parts take 48 us.)
_LEAST, _PROGRAMS = 512, 264
# The least rows of a tensor core's operand.
_ROWS = 16
_HIDDEN = -1e30


def step_kernel_here(config: ModelConfig, fused: bool) -> str:
    """Return the kernel of KERNELS for a decode step, by the devices of the trace.

    `fused`: whether the weights are (model/fused.py).
    """
    platform = platform_here()
    for kernel in forms_of(platform).token_kernels:
        if kernel == "triton" and fused and _triton_runs(config, platform):
            return kernel
        if kernel == "cudnn" and _cudnn_runs(config, platform):
            return kernel
    return "xla"


def reads_by_cudnn(config: ModelConfig, platform: str) -> bool:
    """Return whether passes over prompts have an attention that holds no scores."""
    return "cudnn" in forms_of(platform).token_kernels and _cudnn_runs(config, platform)


def _triton_runs(config: ModelConfig, platform: str) -> bool:
    H = config.head_size
    # float32 would be rounded to TF32 by a tensor core, but not by the interpreter.
    exact = config.compute_dtype != "float32" or platform == "cpu"
    return has_triton() and exact and (platform == "cpu" or H >= _ROWS) and H & (H - 1) == 0


@lru_cache(maxsize=64)
def _cudnn_runs(config: ModelConfig, platform: str) -> bool:
    if platform == "cpu":
        return True
    shapes = [
        jax.ShapeDtypeStruct((1, 2, heads, config.head_size), config.compute_as)
        for heads in (config.heads, config.kv_heads, config.kv_heads)
    ]
    try:
        jax.eval_shape(partial(jax.nn.dot_product_attention, implementation="cudnn"), *shapes)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def _attention(*arrays: jax.Array, **how: Any) -> jax.Array:
    """Return cuDNN's attention, or on a CPU XLA's of the same function."""
    implementation: Literal["cudnn", "xla"] = "xla" if platform_here() == "cpu" else "cudnn"
    return jax.nn.dot_product_attention(*arrays, implementation=implementation, **how)


_SLOTS = ("batch",)
_QUERIES = ("batch", "length", "heads", "head_size")
_CACHED = ("batch", "length", "kv_heads", "head_size")


def read_attention(
    q_BTNH: jax.Array,
    fresh: tuple[jax.Array, jax.Array],
    cached: tuple[jax.Array, jax.Array],
    lengths_B: jax.Array,
    at_B: jax.Array | None,
) -> jax.Array:
    """Return attention [B, T, N, H] of a pass over prompts, of tokens that the cache holds already.

    `fresh`: the pass's own keys and values [B, T, K, H], of which token t is at index
    `lengths_B` + t of `cached`, [B, S, K, H]. `at_B`: the queries are those of this token alone,
    q_B1NH.
    """
    arrays = (q_BTNH, *fresh, *cached, lengths_B, *([] if at_B is None else [at_B]))
    axes = (_QUERIES, *(_CACHED,) * 4, *(_SLOTS,) * (len(arrays) - 5))
    return on_each_device(_read_attention, axes, _QUERIES, *arrays)


def _read_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    keys_BSKH: jax.Array,
    values_BSKH: jax.Array,
    lengths_B: jax.Array,
    at_B: jax.Array | None = None,
) -> jax.Array:
    S, T = keys_BSKH.shape[1], k_BTKH.shape[1]
    if at_B is not None:
        seen_B = jnp.minimum(lengths_B + at_B + 1, S)
        return _attention(q_BTNH, keys_BSKH, values_BSKH, key_value_seq_lengths=seen_B)

    def first(keys_BSKH: jax.Array, values_BSKH: jax.Array) -> jax.Array:
        return _attention(q_BTNH, k_BTKH, v_BTKH, is_causal=True)

    def to(length: int, keys_BSKH: jax.Array, values_BSKH: jax.Array) -> jax.Array:
        ends_BT = lengths_B[:, None] + jnp.arange(T)[None, :]
        seen_B1TS = (jnp.arange(length)[None, None, :] <= ends_BT[:, :, None])[:, None]
        return _attention(q_BTNH, keys_BSKH[:, :length], values_BSKH[:, :length], mask=seen_B1TS)

    # How far the longest slot reaches: a first prompt attends to itself alone.
    reaches = sorted({-(-S // parts) for parts in (4, 2, 1)})
    longest = lengths_B.max()
    reach = (longest + T > jnp.array(reaches[:-1], jnp.int32)).sum()
    which = jnp.where(longest == 0, 0, 1 + reach)
    branches: list[Callable[..., jax.Array]] = [first]
    branches += [partial(to, length) for length in reaches]
    return jax.lax.switch(which, branches, keys_BSKH, values_BSKH)


def step_attention_by(
    kernel: str,
    q_BN1H: jax.Array,
    keys_BSKH: jax.Array,
    values_BSKH: jax.Array,
    seen_B: jax.Array,
) -> jax.Array:
    """Return attention [B, N, 1, H] of one query a slot over its first `seen_B` tokens.

    `kernel`: "cudnn" or "xla".
    """
    if kernel == "cudnn":
        out_B1NH = on_each_device(
            lambda q, k, v, seen_B: _attention(q, k, v, key_value_seq_lengths=seen_B),
            (_QUERIES, _CACHED, _CACHED, _SLOTS),
            _QUERIES,
            q_BN1H.swapaxes(1, 2),
            keys_BSKH,
            values_BSKH,
            seen_B,
        )
        return out_B1NH.swapaxes(1, 2)
    B, N, _, H = q_BN1H.shape
    S, K = keys_BSKH.shape[1:3]
    q_BKGH = (q_BN1H * (1 / sqrt(H))).reshape(B, K, N // K, H)
    scores_BKGS = jnp.einsum(
        "BKGH,BSKH->BKGS", q_BKGH, keys_BSKH, preferred_element_type=jnp.float32
    )
    seen_BS = jnp.arange(S)[None, :] < seen_B[:, None]
    scores_BKGS = jnp.where(seen_BS[:, None, None, :], scores_BKGS, _HIDDEN)
    shares_BKGS = jnp.exp(scores_BKGS - scores_BKGS.max(axis=-1, keepdims=True))
    out_BKGH = (
        jnp.einsum(
            "BKGS,BSKH->BKGH",
            shares_BKGS.astype(values_BSKH.dtype),
            values_BSKH,
            preferred_element_type=jnp.float32,
        )
        / shares_BKGS.sum(axis=-1)[..., None]
    )
    return out_BKGH.astype(q_BN1H.dtype).reshape(B, N, 1, H)


def raw_step_attention(
    raw: Raw, keys_BSKH: jax.Array, values_BSKH: jax.Array, places_B: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Write each slot's new token at `places_B` and attend to it and all before it, by Triton.

    Returns attention [B, N, 1, H] and the arrays of the cache, written in place. `eps`: the norms'.
    """
    cos_B11H, sin_B11H = raw.rope
    of_slot, whole = ("batch", "head_size"), ("head_size",)
    arrays: list[Any] = [raw.qkv_BTKgH[:, 0], cos_B11H[:, 0, 0], sin_B11H[:, 0, 0]]
    axes: list[Any] = [("batch", "kv_heads", "group", "head_size"), of_slot, of_slot]
    norms = [] if raw.q_norm_H is None else [raw.q_norm_H, raw.k_norm_H]
    arrays += [keys_BSKH, values_BSKH, places_B, *norms]
    axes += [_CACHED, _CACHED, _SLOTS, *([whole] * len(norms))]
    out_axes = (("batch", "kv_heads", "group", "head_size"), _CACHED, _CACHED)
    kernel = partial(_raw_step, eps=eps)
    out_BKGH, keys_BSKH, values_BSKH = on_each_device(kernel, tuple(axes), out_axes, *arrays)
    B, K, G, H = out_BKGH.shape
    return out_BKGH.reshape(B, K * G, 1, H), keys_BSKH, values_BSKH


def _raw_step(
    qkv_BKgH: jax.Array,
    cos_BH: jax.Array,
    sin_BH: jax.Array,
    keys_BSKH: jax.Array,
    values_BSKH: jax.Array,
    places_B: jax.Array,
    *norms: jax.Array,
    eps: float,
) -> tuple[jax.Array, ...]:
    from jax.experimental import pallas as pl

    B, K, g, H = qkv_BKgH.shape
    parts = max(1, min(_PROGRAMS // (B * K), keys_BSKH.shape[1] // _LEAST))
    out_type = qkv_BKgH.dtype if parts == 1 else jnp.float32
    outs = [jax.ShapeDtypeStruct((B, K, parts, g - 2, H), out_type)]
    outs += [jax.ShapeDtypeStruct((B, K, parts, g - 2), jnp.float32)] * (2 if parts > 1 else 0)
    inputs = (places_B, qkv_BKgH, cos_BH, sin_BH, keys_BSKH, values_BSKH, *norms)
    interpret = platform_here() == "cpu"
    *attended, keys_BSKH, values_BSKH = pl.pallas_call(
        partial(_step_kernel, parts=parts, eps=eps, normed=bool(norms)),
        grid=(K, B, parts),
        out_shape=(*outs, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs[4:6])),
        input_output_aliases={4: len(outs), 5: len(outs) + 1},
        interpret=interpret,
        compiler_params=None if interpret else _triton_params(),
        name="decode_attention",
    )(*inputs)
    if parts == 1:
        return attended[0][:, :, 0], keys_BSKH, values_BSKH
    out_BKPGH, top_BKPG, total_BKPG = attended
    fade_BKPG = jnp.exp(top_BKPG - top_BKPG.max(axis=2, keepdims=True))
    total_BKG = (total_BKPG * fade_BKPG).sum(axis=2)
    out_BKGH = (out_BKPGH * fade_BKPG[..., None]).sum(axis=2) / total_BKG[..., None]
    return out_BKGH.astype(qkv_BKgH.dtype), keys_BSKH, values_BSKH


def _triton_params() -> Any:
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES)


def _step_kernel(*refs: Any, parts: int, eps: float, normed: bool) -> None:
    """One program: key head k, slot b, and one of the parts of its tokens. References are whole
    arrays.

    Softmax runs over blocks of keys with a running maximum (Dao et al., 2022). That of the first
    part begins with the new token, which is not read from the cache.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    places_ref, qkv_ref, cos_ref, sin_ref, keys_in, values_in, *norm_refs = refs[
        : 8 if normed else 6
    ]
    out_ref, *sum_refs, keys_ref, values_ref = refs[8 if normed else 6 :]
    k, b, part = pl.program_id(0), pl.program_id(1), pl.program_id(2) if parts > 1 else 0
    G, H, dtype = qkv_ref.shape[2] - 2, qkv_ref.shape[3], keys_in.dtype
    # A tensor core wants more rows than there are query heads: they repeat, and a repeated row
    # writes what its first one writes.
    R = pl.next_power_of_2(max(_ROWS, G))
    rows_R, columns_H = jnp.arange(R, dtype=jnp.int32) % G, jnp.arange(H, dtype=jnp.int32)
    all_RH = tuple(jnp.broadcast_to(x, (R, H)) for x in (rows_R[:, None], columns_H[None]))
    turn = partial(_turned, qkv_ref, cos_ref[b, :], sin_ref[b, :], eps=eps)
    q_RH = turn((b, k, *all_RH), norm_refs[0] if normed else None)
    k_H, v_H = turn((b, k, G, columns_H), norm_refs[1] if normed else None), qkv_ref[b, k, G + 1, :]
    place, scale = places_ref[b], 1 / sqrt(H)
    blocks = (place + _BLOCK - 1) // _BLOCK
    of_part = (blocks + parts - 1) // parts
    begin, end = part * of_part, jnp.minimum((part + 1) * of_part, blocks)

    def attend(index: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        out_RH, top_R, total_R = carry
        start = (begin + index) * _BLOCK
        seen_Y = start + jnp.arange(_BLOCK, dtype=jnp.int32) < place
        at = (b, pl.ds(start, _BLOCK), k, slice(None))
        keys_YH = triton.load(keys_in.at[at], mask=seen_Y[:, None], other=0.0)
        scores_RY = jnp.where(seen_Y[None], triton.dot(q_RH, keys_YH.T) * scale, _HIDDEN)
        new_top_R = jnp.maximum(top_R, scores_RY.max(axis=-1))
        shares_RY = jnp.exp(scores_RY - new_top_R[:, None])
        fade_R = jnp.exp(top_R - new_top_R)
        values_YH = triton.load(values_in.at[at], mask=seen_Y[:, None], other=0.0)
        out_RH = out_RH * fade_R[:, None] + triton.dot(shares_RY.astype(dtype), values_YH)
        return out_RH, new_top_R, total_R * fade_R + shares_RY.sum(axis=-1)

    first_R = (q_RH.astype(jnp.float32) * k_H.astype(jnp.float32)[None]).sum(axis=-1) * scale
    mine = jnp.float32(part == 0)
    begun = (
        jnp.broadcast_to(v_H.astype(jnp.float32)[None], (R, H)) * mine,
        jnp.where(part == 0, first_R, _HIDDEN),
        jnp.ones(R, jnp.float32) * mine,
    )
    out_RH, top_R, total_R = jax.lax.fori_loop(0, jnp.maximum(end - begin, 0), attend, begun)
    if parts == 1:
        out_RH = (out_RH / total_R[:, None]).astype(dtype)
    out_ref[b, k, part, *all_RH] = out_RH
    for ref, sums_R in zip(sum_refs, (top_R, total_R), strict=False):
        ref[b, k, part, rows_R] = sums_R

    @pl.when(part == 0)
    def _() -> None:
        keys_ref[b, place, k, :], values_ref[b, place, k, :] = k_H, v_H


def _turned(
    qkv_ref: Any, cos_H: Any, sin_H: Any, at: tuple[Any, ...], norm_ref: Any, *, eps: float
) -> Any:
    """Return heads `at` normed and rotated, [..., H], rounded where the layers round."""
    (*heads, columns), H, dtype = at, qkv_ref.shape[-1], qkv_ref.dtype
    across_columns = (columns + H // 2) % H
    own = qkv_ref[*heads, columns].astype(jnp.float32)
    across = qkv_ref[*heads, across_columns].astype(jnp.float32)
    if norm_ref is not None:
        scale = jax.lax.rsqrt((own * own).sum(axis=-1, keepdims=True) / H + eps)
        own, across = (
            ((x * scale).astype(dtype) * norm_ref[where]).astype(jnp.float32)
            for x, where in ((own, columns), (across, across_columns))
        )
    if own.ndim == 2:
        cos_H, sin_H = cos_H[None], sin_H[None]
    return (own * cos_H + across * sin_H).astype(dtype)
