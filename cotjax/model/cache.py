"""The key-value cache: append given tokens (`prefill`, `score`) or one sampled token a slot
(`step`), or score a tree of texts behind it (`score_tree`).

Letters are those of model/decoder.py; B counts slots, and S the tokens of one. Its arrays are as
their layout says (model/cache_layouts.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from cotjax.model.attention import hidden_bias, prefill_attention, step_attention
from cotjax.model.cache_layouts import Layout, Pairs, layout_of
from cotjax.model.config import ModelConfig
from cotjax.model.decoder import logits
from cotjax.model.layers import Raw
from cotjax.model.params import Params, are_fused, bind
from cotjax.model.platform import platform_here
from cotjax.model.ragged import ragged_step_attention
from cotjax.model.sharding import sharding, spec
from cotjax.model.token_kernels import (
    raw_step_attention,
    read_attention,
    reads_by_cudnn,
    step_attention_by,
    step_kernel_here,
)

# Tokens of all slots together whose logits are held at once when forced tokens are scored.
_SCORED_AT_ONCE = 512

# Keys and values of some tokens of every slot: of each layer [B, K, T, H], whatever the layout.
Tail = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]
TAIL_AXES = ("batch", "kv_heads", "length", "head_size")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of every slot, one pair of arrays a layer.

    A slot's prompt starts at index 0, without gaps, and an index is also the rotary position. Where
    the layout is `behind_capacity`, new tokens of one decode follow the capacity of all prompts:
    the t-th one of every slot is at index capacity + t, whatever the slots' lengths, and its
    position is lengths_B + t. Three slots of capacity eight and two new tokens (letters are tokens;
    `.` is never read):

        index      0 1 2 3 4 5 6 7  8 9    length
        slot 0     a b c d e . . .  v w         5    v has position 5
        slot 1     a b . . . . . .  x y         2
        slot 2     . . . . . . . .  . .         0    empty

    Else they are at their positions, directly behind the lengths. Extending slot 1 by `f g h`
    writes indices 2 to 4 and leaves the other rows as they are:

        slot 1     a b f g h . . .  . .         5

    A sample's prefix is written in the same way. Setting the length back then restores the slot,
    because nothing reads past the length except a decode its own new tokens.
    """

    keys: tuple[jax.Array, ...]  # L arrays, rotated, in the compute dtype
    values: tuple[jax.Array, ...]  # L arrays
    lengths_B: jax.Array  # int32: how many tokens of each slot are valid
    new: int = field(metadata={"static": True})  # tokens that one decode may make; whole blocks
    layout: Layout = field(metadata={"static": True})

    @property
    def capacity(self) -> int:
        """Tokens that a slot's prompt may hold."""
        return self.layout.tokens(self.keys[0]) - self.new


def empty(config: ModelConfig, slots: int, capacity: int, new: int, layout: Layout) -> KVCache:
    """Return empty slots for `capacity` prompt tokens and `new` more, each rounded up to blocks."""
    capacity, new = (-(-tokens // layout.block) * layout.block for tokens in (capacity, new))
    of_keys, of_values = layout.shapes(slots, config.kv_heads, capacity + new, config.head_size)
    keys = tuple(jnp.zeros(of_keys, config.compute_as) for _ in range(config.layers))
    values = tuple(jnp.zeros(of_values, config.compute_as) for _ in range(config.layers))
    return KVCache(keys, values, jnp.zeros(slots, jnp.int32), new, layout)


def cache_shardings(config: ModelConfig, mesh: Mesh, slots: int, new: int) -> KVCache:
    """Return a cache's shardings: slots over the batch axes, key heads over tensor.

    Raises UsageError where they do not divide.
    """
    layout, name = layout_of(config, mesh), "the key-value cache"
    of_keys, of_values = layout.shapes(slots, config.kv_heads, layout.block, config.head_size)
    keys: Any = sharding(mesh, of_keys, layout.key_axes, name=name)
    values: Any = sharding(mesh, of_values, layout.value_axes, name=name)
    lengths: Any = NamedSharding(mesh, spec(("batch",)))
    whole_blocks = -(-new // layout.block) * layout.block
    return KVCache(
        (keys,) * config.layers,
        (values,) * config.layers,
        lengths,
        whole_blocks,
        layout,
    )


def resized(cache: KVCache, capacity: int) -> KVCache:
    """Return the same cache with a larger capacity, rounded up to whole blocks."""
    more = -(-capacity // cache.layout.block) * cache.layout.block - cache.capacity
    pairs = zip(cache.keys, cache.values, strict=True)
    keys, values = zip(*(cache.layout.grown(*pair, more) for pair in pairs), strict=True)
    return replace(cache, keys=keys, values=values)


def tail(cache: KVCache, start_B: jax.Array, most: int) -> Tail:
    """Return keys and values of `most` tokens of each slot from index `start_B` on.

    What is past the end repeats the last token.
    """
    indices_BT = start_B[:, None] + jnp.arange(most)[None, :]
    indices_BT = jnp.minimum(indices_BT, cache.capacity + cache.new - 1)
    pairs = zip(cache.keys, cache.values, strict=True)
    keys, values = zip(*(cache.layout.at(*pair, indices_BT) for pair in pairs), strict=True)
    return keys, values


def restored(cache: KVCache, kept: Tail, start_B: jax.Array, counts_B: jax.Array) -> KVCache:
    """Write the first `counts_B` tokens of what `tail` returned back to where they were."""
    layers = zip(cache.keys, cache.values, *kept, strict=True)
    written = (cache.layout.written(*layer, start_B, counts_B) for layer in layers)
    keys, values = zip(*written, strict=True)
    return replace(cache, keys=keys, values=values)


def prefill(
    config: ModelConfig,
    params: Params,
    cache: KVCache,
    hidden_BD: jax.Array,
    ids_BT: jax.Array,
    counts_B: jax.Array,
) -> tuple[KVCache, jax.Array]:
    """Append the first `counts_B` of `ids_BT` to each slot; return cache and last hidden states [B,
    D].

    A slot of count 0 keeps its rows, its length and its `hidden_BD`. The caller checks that
    lengths + counts, and T, are at most the capacity.
    """
    cache, last_B1D = _read(config, params, cache, ids_BT, counts_B, jnp.maximum(counts_B - 1, 0))
    return cache, jnp.where(counts_B[:, None] > 0, last_B1D[:, 0], hidden_BD)


def score(
    config: ModelConfig,
    params: Params,
    cache: KVCache,
    hidden_BD: jax.Array,
    ids_BT: jax.Array,
    counts_B: jax.Array,
) -> tuple[KVCache, jax.Array, jax.Array]:
    """Like `prefill`; also return each id's log-probability given the ids before it, float32 [B,
    T].

    The first one's follows `hidden_BD`. Values past a slot's count are undefined.
    """
    cache, hidden_BTD = _read(config, params, cache, ids_BT, counts_B, None)
    before_BTD = jnp.concatenate([hidden_BD[:, None], hidden_BTD[:, :-1]], axis=1)
    logprobs_BT = _logprobs(config, params, before_BTD, ids_BT)
    last_BD = jnp.take_along_axis(hidden_BTD, jnp.maximum(counts_B - 1, 0)[:, None, None], axis=1)[
        :, 0
    ]
    return cache, jnp.where(counts_B[:, None] > 0, last_BD, hidden_BD), logprobs_BT


def score_tree(
    config: ModelConfig,
    params: Params,
    cache: KVCache,
    hidden_BD: jax.Array,
    ids_BT: jax.Array,
    depths_BT: jax.Array,
    ends_BT: jax.Array,
    parents_BE: jax.Array,
    targets_BE: jax.Array,
) -> jax.Array:
    """Return log-probabilities [B, E] of ids in a tree of texts behind each slot's prompt.

    The tokens of a tree are in depth-first order: a token's descendants follow it up to index
    `ends_BT`. It sees the prompt, its ancestors and itself, and its position is its slot's length
    plus `depths_BT`. Of target e the log-probability is that of the id `targets_BE` right after
    the token `parents_BE`, where -1 is the prompt's last, whose hidden states are `hidden_BD`.

    "go to sink", "go to bed" and "look", each with its end `.`, of which no token is read:

        index      0   1   2     3    4        parents  -1  0   1    2  1    3  -1    4
        ids        go  to  sink  bed  look     targets  go  to  sink .  bed  .  look  .
        depths     0   1   2     2    0
        ends       3   3   2     3    4        bed sees go, to and bed

    Nothing is written: the cache stays as it is.
    """
    index_T = jnp.arange(ids_BT.shape[1])
    before_TT = index_T[:, None] >= index_T[None, :]
    seen_BTT = before_TT[None] & (index_T[None, :, None] <= ends_BT[:, None, :])

    def attend(layer: int, q_BNTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array) -> jax.Array:
        cached = cache.keys[layer], cache.values[layer]
        return _attend(cache, q_BNTH, k_BKTH.swapaxes(2, 3), v_BKTH, seen_BTT, *cached)

    positions_BT = cache.lengths_B[:, None] + depths_BT
    hidden_BTD = bind(config, params).hidden_states(ids_BT, positions_BT, attend)
    after_BTD = jnp.concatenate([hidden_BD[:, None], hidden_BTD], axis=1)
    before_BED = jnp.take_along_axis(after_BTD, parents_BE[:, :, None] + 1, axis=1)
    return _logprobs(config, params, before_BED, targets_BE)


def _logprobs(
    config: ModelConfig, params: Params, before_BTD: jax.Array, ids_BT: jax.Array
) -> jax.Array:
    """Return each id's log-probability, float32 [B, T], given the hidden states before it."""

    def score_one(at: tuple[jax.Array, jax.Array]) -> jax.Array:
        before_BD, ids_B = at
        logits_BV = logits(config, params, before_BD)
        return jnp.take_along_axis(logits_BV, ids_B[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(
            logits_BV, axis=-1
        )

    # A few tokens of every slot at a time: the logits of all would be the largest array.
    few = max(1, _SCORED_AT_ONCE // ids_BT.shape[0])
    logprobs_TB = jax.lax.map(
        score_one, (before_BTD.swapaxes(0, 1), ids_BT.swapaxes(0, 1)), batch_size=few
    )
    return logprobs_TB.swapaxes(0, 1)


def _read(
    config: ModelConfig,
    params: Params,
    cache: KVCache,
    ids_BT: jax.Array,
    counts_B: jax.Array,
    at_B: jax.Array | None,
) -> tuple[KVCache, jax.Array]:
    """Append ids to each slot; return the cache and hidden states.

    Hidden states are those of tokens `at_B`, [B, 1, D], or of all tokens, [B, T, D].
    """
    T = ids_BT.shape[1]
    positions_BT = cache.lengths_B[:, None] + jnp.arange(T)[None, :]
    seen_BTT = (jnp.arange(T)[:, None] >= jnp.arange(T)[None, :])[None]
    # The last layer's one query a row (Transformer.hidden_states, at_B).
    seen_B1T = seen_BTT if at_B is None else (jnp.arange(T)[None, :] <= at_B[:, None])[:, None]
    keys, values = list(cache.keys), list(cache.values)
    by_cudnn = not cache.layout.behind_capacity and reads_by_cudnn(config, platform_here())

    def attend(index: int, q_BNTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array) -> jax.Array:
        # Written first, and old tokens are read from the new arrays, which can then reuse the old
        # ones' memory.
        cached = cache.layout.written(
            keys[index], values[index], k_BKTH, v_BKTH, cache.lengths_B, counts_B
        )
        keys[index], values[index] = cached
        one = q_BNTH.shape[2] != T
        if not by_cudnn:
            seen = seen_B1T if one else seen_BTT
            return _attend(cache, q_BNTH, k_BKTH.swapaxes(2, 3), v_BKTH, seen, *cached)
        fresh = k_BKTH.swapaxes(1, 2), v_BKTH.swapaxes(1, 2)
        asked_B = at_B if one else None
        return read_attention(
            q_BNTH.swapaxes(1, 2), fresh, cached, cache.lengths_B, asked_B
        ).swapaxes(1, 2)

    hidden = bind(config, params).hidden_states(ids_BT, positions_BT, attend, at_B=at_B)
    return replace(
        cache, keys=tuple(keys), values=tuple(values), lengths_B=cache.lengths_B + counts_B
    ), hidden


def _attend(
    cache: KVCache,
    q_BNTH: jax.Array,
    k_BKHM: jax.Array,
    v_BKMH: jax.Array,
    seen_BTM: jax.Array,
    keys: jax.Array,
    values: jax.Array,
) -> jax.Array:
    """Return attention over fresh tokens (`seen_BTM`) and the prompts in `keys` and `values`.

    The cache gives lengths and sizes alone: its arrays may already have been replaced.
    """
    valid_BS = jnp.arange(cache.capacity)[None, :] < cache.lengths_B[:, None]
    # How far the longest slot reaches: a first prompt attends to no cached token, and later pieces
    # rarely to the whole capacity.
    block = cache.layout.block
    reaches = sorted({0, *(-(-cache.capacity // block // parts) for parts in (4, 2, 1))})
    reach = (cache.lengths_B.max() > block * jnp.array(reaches[:-1])).sum()

    def to(blocks: int, keys: jax.Array, values: jax.Array) -> jax.Array:
        if blocks == 0:
            return prefill_attention(q_BNTH, k_BKHM, v_BKMH, seen_BTM, None)
        length = blocks * block
        cached = *cache.layout.first(keys, values, length), valid_BS[:, :length]
        return prefill_attention(q_BNTH, k_BKHM, v_BKMH, seen_BTM, cached)

    branches = [partial(to, blocks) for blocks in reaches]
    return jax.lax.switch(reach, branches, keys, values)


def step(
    config: ModelConfig, params: Params, cache: KVCache, ids_B: jax.Array, index: jax.Array
) -> tuple[KVCache, jax.Array]:
    """Append each slot's `index`-th new token; return the cache and hidden states [B, D].

    Prompts stay as they are. `index` is a scalar: all slots are at the same new token, whatever
    their lengths. The hidden states predict the next token.
    """
    if not cache.layout.behind_capacity:
        return _step_by_token(config, params, cache, ids_B, index)
    block = cache.layout.block
    place = cache.capacity + index
    indices_1S = jnp.arange(cache.capacity + cache.new)[None, :]
    new_1S = (indices_1S >= cache.capacity) & (indices_1S <= place)
    bias_BS = hidden_bias((indices_1S < cache.lengths_B[:, None]) | new_1S)
    keys, values = list(cache.keys), list(cache.values)

    def attend(layer: int, q_BN1H: jax.Array, k_BK1H: jax.Array, v_BK1H: jax.Array) -> jax.Array:
        k_BK1H1 = k_BK1H[..., None]
        keys[layer] = jax.lax.dynamic_update_slice(
            keys[layer], k_BK1H1, (0, 0, place // block, 0, place % block)
        )
        values[layer] = jax.lax.dynamic_update_slice_in_dim(values[layer], v_BK1H, place, axis=2)
        return step_attention(q_BN1H, keys[layer], values[layer], bias_BS)

    positions_B1 = (cache.lengths_B + index)[:, None]
    hidden_B1D = bind(config, params).hidden_states(ids_B[:, None], positions_B1, attend)
    return replace(cache, keys=tuple(keys), values=tuple(values)), hidden_B1D[:, 0]


def _step_by_token(
    config: ModelConfig, params: Params, cache: KVCache, ids_B: jax.Array, index: jax.Array
) -> tuple[KVCache, jax.Array]:
    """`step` where a slot's new tokens are behind its own length."""
    kernel = step_kernel_here(config, are_fused(params))
    places_B, ones_B = cache.lengths_B + index, jnp.ones_like(cache.lengths_B)
    keys, values = list(cache.keys), list(cache.values)

    def attend(layer: int, q_BN1H: jax.Array, k_BK1H: jax.Array, v_BK1H: jax.Array) -> jax.Array:
        cached = cache.layout.written(keys[layer], values[layer], k_BK1H, v_BK1H, places_B, ones_B)
        keys[layer], values[layer] = cached
        if isinstance(cache.layout, Pairs):
            return ragged_step_attention(q_BN1H, cached[0], places_B + 1, cache.layout.block)
        return step_attention_by(kernel, q_BN1H, *cached, places_B + 1)

    def attend_raw(layer: int, raw: Raw) -> jax.Array:
        out_BN1H, *cached = raw_step_attention(
            raw, keys[layer], values[layer], places_B, config.norm_eps
        )
        keys[layer], values[layer] = cached
        return out_BN1H

    raw = kernel == "triton"
    hidden_B1D = bind(config, params).hidden_states(
        ids_B[:, None], places_B[:, None], attend_raw if raw else attend, raw=raw
    )
    return replace(cache, keys=tuple(keys), values=tuple(values)), hidden_B1D[:, 0]
