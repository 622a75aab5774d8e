"""The key-value cache: append given tokens (`prefill`, `score`) or one sampled token a slot
(`step`).

Letters are those of model/decoder.py; B counts slots, and S the tokens of one, in C blocks of Y.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from cotjax.model.attention import hidden_bias, prefill_attention, step_attention
from cotjax.model.config import ModelConfig
from cotjax.model.decoder import logits
from cotjax.model.params import Params, bind
from cotjax.model.platform import forms_of, platform_of
from cotjax.model.sharding import sharding, spec

# Tokens of all slots together whose logits are held at once when forced tokens are scored.
_SCORED_AT_ONCE = 512

_KEY_AXES = ("batch", "kv_heads", "length", "head_size", "length")
_VALUE_AXES = ("batch", "kv_heads", "length", "head_size")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys [B, K, C, H, Y] and values [B, K, C Y, H] of every slot, one pair of arrays a layer.

    A decode step's matmuls read both contiguously. Scores sum over H, so keys have tokens last, in
    C blocks of Y (platform.Forms.cache_block); on CPU a step then takes 0.4 of its time over
    [B, K, H, S], and a quarter of that over [B, K, S, H]. The sum of values is over tokens.

    A slot's prompt starts at index 0, without gaps, and an index is also the rotary position. New
    tokens of one decode follow the capacity of all prompts: the t-th one of every slot is at index
    capacity + t, whatever the slots' lengths, and its position is lengths_B + t. Three slots of
    capacity eight and two new tokens (letters are tokens; `.` is never read):

        index      0 1 2 3 4 5 6 7  8 9    length
        slot 0     a b c d e . . .  v w         5    v has position 5
        slot 1     a b . . . . . .  x y         2
        slot 2     . . . . . . . .  . .         0    empty

    Extending slot 1 by `f g h` writes indices 2 to 4 and leaves the other rows as they are:

        slot 1     a b f g h . . .  . .         5

    A sample's prefix is written in the same way. Setting the length back then restores the slot,
    because nothing reads past the length except a decode its own new tokens.
    """

    keys: tuple[jax.Array, ...]  # L arrays [B, K, C, H, Y], rotated, in the compute dtype
    values: tuple[jax.Array, ...]  # L arrays [B, K, S, H], S = C Y
    lengths_B: jax.Array  # int32: how many tokens of each slot are valid
    new: int = field(metadata={"static": True})  # tokens that one decode may make; whole blocks

    @property
    def capacity(self) -> int:
        """Tokens that a slot's prompt may hold."""
        return self.values[0].shape[2] - self.new

    @property
    def block(self) -> int:
        """Y: tokens of a block of keys."""
        return self.keys[0].shape[4]


def block_size(mesh: Mesh) -> int:
    """Return the tokens of a block of keys on these devices."""
    return forms_of(platform_of(mesh)).cache_block


def empty(config: ModelConfig, slots: int, capacity: int, new: int, block: int) -> KVCache:
    """Return empty slots for `capacity` prompt tokens and `new` more, each rounded up to blocks."""
    K, H, dtype = config.kv_heads, config.head_size, config.compute_as
    prompt_blocks, new_blocks = -(-capacity // block), -(-new // block)
    C = prompt_blocks + new_blocks
    keys = tuple(jnp.zeros((slots, K, C, H, block), dtype) for _ in range(config.layers))
    values = tuple(jnp.zeros((slots, K, C * block, H), dtype) for _ in range(config.layers))
    return KVCache(keys, values, jnp.zeros(slots, jnp.int32), new_blocks * block)


def cache_shardings(config: ModelConfig, mesh: Mesh, slots: int, new: int) -> KVCache:
    """Return a cache's shardings: slots over the batch axes, key heads over tensor.

    Raises UsageError where they do not divide.
    """
    K, H, name, block = config.kv_heads, config.head_size, "the key-value cache", block_size(mesh)
    keys: Any = sharding(mesh, (slots, K, 1, H, block), _KEY_AXES, name=name)
    values: Any = sharding(mesh, (slots, K, block, H), _VALUE_AXES, name=name)
    lengths: Any = NamedSharding(mesh, spec(("batch",)))
    whole_blocks = -(-new // block) * block
    return KVCache(
        (keys,) * config.layers,
        (values,) * config.layers,
        lengths,
        whole_blocks,
    )


def resized(cache: KVCache, capacity: int) -> KVCache:
    """Return the same cache with a larger capacity, rounded up to whole blocks."""
    more = -(-capacity // cache.block) - cache.capacity // cache.block
    return replace(
        cache,
        keys=tuple(
            jnp.pad(keys, ((0, 0), (0, 0), (0, more), (0, 0), (0, 0))) for keys in cache.keys
        ),
        values=tuple(
            jnp.pad(values, ((0, 0), (0, 0), (0, more * cache.block), (0, 0)))
            for values in cache.values
        ),
    )


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
    last_BD = jnp.take_along_axis(hidden_BTD, jnp.maximum(counts_B - 1, 0)[:, None, None], axis=1)[
        :, 0
    ]
    return cache, jnp.where(counts_B[:, None] > 0, last_BD, hidden_BD), logprobs_TB.swapaxes(0, 1)


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
    T, capacity = ids_BT.shape[1], cache.capacity
    positions_BT = cache.lengths_B[:, None] + jnp.arange(T)[None, :]
    valid_BS = jnp.arange(capacity)[None, :] < cache.lengths_B[:, None]
    seen_BTT = (jnp.arange(T)[:, None] >= jnp.arange(T)[None, :])[None]
    # The last layer's one query a row (Transformer.hidden_states, at_B).
    seen_B1T = seen_BTT if at_B is None else (jnp.arange(T)[None, :] <= at_B[:, None])[:, None]
    # How far the longest slot reaches: a first prompt attends to no cached token, and later pieces
    # rarely to the whole capacity.
    reaches = sorted({0, *(-(-capacity // cache.block // parts) for parts in (4, 2, 1))})
    reach = (cache.lengths_B.max() > cache.block * jnp.array(reaches[:-1])).sum()
    keys, values = list(cache.keys), list(cache.values)

    def attend(index: int, q_BNTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array) -> jax.Array:
        k_BKHT = k_BKTH.swapaxes(2, 3)
        # Written first, and old tokens are read from the new arrays, which can then reuse the old
        # ones' memory.
        keys[index] = _write_keys(keys[index], k_BKHT, cache.lengths_B, counts_B)
        values[index] = _write_values(values[index], v_BKTH, cache.lengths_B, counts_B)
        seen = seen_BTT if q_BNTH.shape[2] == T else seen_B1T

        def to(blocks: int, keys_BKCHY: jax.Array, values_BKSH: jax.Array) -> jax.Array:
            if blocks == 0:
                return prefill_attention(q_BNTH, k_BKHT, v_BKTH, seen, None)
            length = blocks * cache.block
            keys_BKHCY = keys_BKCHY[:, :, :blocks].swapaxes(2, 3)
            cached = (
                keys_BKHCY.reshape(*keys_BKHCY.shape[:3], length),
                values_BKSH[:, :, :length],
                valid_BS[:, :length],
            )
            return prefill_attention(q_BNTH, k_BKHT, v_BKTH, seen, cached)

        return jax.lax.switch(
            reach, [partial(to, blocks) for blocks in reaches], keys[index], values[index]
        )

    hidden = bind(config, params).hidden_states(ids_BT, positions_BT, attend, at_B=at_B)
    return replace(
        cache, keys=tuple(keys), values=tuple(values), lengths_B=cache.lengths_B + counts_B
    ), hidden


def _write_keys(
    old_BKCHY: jax.Array, new_BKHT: jax.Array, start_B: jax.Array, counts_B: jax.Array
) -> jax.Array:
    """Write the first `counts_B` of the `new` tokens of each slot into `old`, from index `start_B`
    on.

    Only the blocks that they touch are read, changed and written back.
    """
    blocks, block, T = old_BKCHY.shape[2], old_BKCHY.shape[4], new_BKHT.shape[3]
    touched = min((T + block - 2) // block + 1, blocks)

    def write(
        old_KCHY: jax.Array, new_KHT: jax.Array, begun: jax.Array, count: jax.Array
    ) -> jax.Array:
        # A window that would reach past the end is moved back (a slice update would move it
        # silently).
        start = jnp.minimum(begun // block, blocks - touched)
        window_KCHY = jax.lax.dynamic_slice_in_dim(old_KCHY, start, touched, axis=1)
        ahead_S, new_KHS = _shifted(new_KHT, begun - start * block, touched * block, axis=2)
        new_KCHY = new_KHS.reshape(*new_KHS.shape[:2], touched, block).swapaxes(1, 2)
        is_new_CY = ((ahead_S >= 0) & (ahead_S < count)).reshape(1, touched, 1, block)
        return jax.lax.dynamic_update_slice_in_dim(
            old_KCHY, jnp.where(is_new_CY, new_KCHY, window_KCHY), start, axis=1
        )

    return jax.vmap(write)(old_BKCHY, new_BKHT, start_B, counts_B)


def _write_values(
    old_BKSH: jax.Array, new_BKTH: jax.Array, start_B: jax.Array, counts_B: jax.Array
) -> jax.Array:
    """Like `_write_keys`, for values, which are not in blocks."""
    S, T = old_BKSH.shape[2], new_BKTH.shape[2]

    def write(
        old_KSH: jax.Array, new_KTH: jax.Array, begun: jax.Array, count: jax.Array
    ) -> jax.Array:
        start = jnp.minimum(begun, S - T)
        window_KTH = jax.lax.dynamic_slice_in_dim(old_KSH, start, T, axis=1)
        ahead_T, new_KTH = _shifted(new_KTH, begun - start, T, axis=1)
        is_new_T = ((ahead_T >= 0) & (ahead_T < count)).reshape(1, T, 1)
        return jax.lax.dynamic_update_slice_in_dim(
            old_KSH, jnp.where(is_new_T, new_KTH, window_KTH), start, axis=1
        )

    return jax.vmap(write)(old_BKSH, new_BKTH, start_B, counts_B)


def _shifted(new: jax.Array, by: jax.Array, length: int, axis: int) -> tuple[jax.Array, jax.Array]:
    """Return `new` padded to `length` and rolled by `by`, after the index of the token at each
    place.

    The index is negative before the first token.
    """
    filled = jnp.pad(
        new, [(0, length - new.shape[axis]) if i == axis else (0, 0) for i in range(new.ndim)]
    )
    return jnp.arange(length) - by, jnp.roll(filled, by, axis)


def step(
    config: ModelConfig, params: Params, cache: KVCache, ids_B: jax.Array, index: jax.Array
) -> tuple[KVCache, jax.Array]:
    """Append each slot's `index`-th new token; return the cache and hidden states [B, D].

    Prompts stay as they are. `index` is a scalar: all slots are at the same new token, whatever
    their lengths. The hidden states predict the next token.
    """
    place = cache.capacity + index
    indices_1S = jnp.arange(cache.capacity + cache.new)[None, :]
    new_1S = (indices_1S >= cache.capacity) & (indices_1S <= place)
    bias_BS = hidden_bias((indices_1S < cache.lengths_B[:, None]) | new_1S)
    keys, values = list(cache.keys), list(cache.values)

    def attend(layer: int, q_BN1H: jax.Array, k_BK1H: jax.Array, v_BK1H: jax.Array) -> jax.Array:
        k_BK1H1 = k_BK1H[..., None]
        keys[layer] = jax.lax.dynamic_update_slice(
            keys[layer], k_BK1H1, (0, 0, place // cache.block, 0, place % cache.block)
        )
        values[layer] = jax.lax.dynamic_update_slice_in_dim(values[layer], v_BK1H, place, axis=2)
        return step_attention(q_BN1H, keys[layer], values[layer], bias_BS)

    positions_B1 = (cache.lengths_B + index)[:, None]
    hidden_B1D = bind(config, params).hidden_states(ids_B[:, None], positions_B1, attend)
    return replace(cache, keys=tuple(keys), values=tuple(values)), hidden_B1D[:, 0]
