"""The key-value cache: what a slot has read, and the two ways to go on from it.

`prefill` reads tokens that are there; `step` reads one that was just made. Letters are those of model/decoder.py; B counts
slots, S the tokens a slot has room for, and M the tokens a decode may make.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from cotjax.model.attention import cached_attention
from cotjax.model.config import ModelConfig
from cotjax.model.decoder import Params, bind
from cotjax.model.sharding import sharding, spec

_KEY_AXES = ("batch", "kv_heads", "head_size", "length")
_VALUE_AXES = ("batch", "kv_heads", "length", "head_size")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys [B, K, H, S] and values [B, K, S, H] of every slot's prompt, a pair of arrays a layer.

    Each lies as its matmul reads it, in one stretch a head: the scores q k sum over H, so keys have tokens last (on CPU a
    decode step's scores take a fifth of the time that they take over [B, K, S, H]); the values' sum is over S.

    A slot is a row of `lengths_B`; its tokens lie from index 0, without gaps, and an index is also the rotary position.
    Three slots with room for eight tokens (letters are tokens; `.` is whatever lies there, which nothing reads):

        index      0 1 2 3 4 5 6 7    length
        slot 0     a b c d e . . .         5
        slot 1     a b . . . . . .         2
        slot 2     . . . . . . . .         0    empty

    Extending slot 1 by `f g h` writes indices 2 to 4 and leaves the other rows as they are:

        slot 1     a b f g h . . .         5

    A branch's prefix is written in the same way; then the length is set back, and the slot is as it was, because nothing
    ever reads past the length.
    """

    keys: tuple[jax.Array, ...]  # L arrays [B, K, H, S], rotated, in the compute dtype
    values: tuple[jax.Array, ...]  # L arrays [B, K, S, H]
    lengths_B: jax.Array  # int32: how many tokens of each slot are valid

    @property
    def room(self) -> int:
        """S: the tokens that every slot has room for."""
        return self.values[0].shape[2]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tail:
    """Keys [B, K, H, M] and values [B, K, M, H] of the tokens that one decode has made, beside the cache.

    Index t holds the t-th new token of every slot, whatever the slots' lengths; its position is lengths_B + t.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


def empty(config: ModelConfig, slots: int, room: int) -> KVCache:
    """A cache of empty slots."""
    return KVCache(*_zeros(config, slots, room), lengths_B=jnp.zeros(slots, jnp.int32))


def empty_tail(config: ModelConfig, slots: int, room: int) -> Tail:
    """Room for a decode's new tokens."""
    return Tail(*_zeros(config, slots, room))


def _zeros(config: ModelConfig, slots: int, room: int) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    K, H, dtype = config.kv_heads, config.head_size, config.compute_as
    keys = tuple(jnp.zeros((slots, K, H, room), dtype) for _ in range(config.layers))
    return keys, tuple(jnp.zeros((slots, K, room, H), dtype) for _ in range(config.layers))


def cache_shardings(config: ModelConfig, mesh: Mesh, slots: int) -> KVCache:
    """Where a cache lives: slots over the batch axes, key heads over tensor. Raises UsageError where they do not divide."""
    K, H, name = config.kv_heads, config.head_size, "the key-value cache"
    keys = sharding(mesh, (slots, K, H, 1), _KEY_AXES, name=name)
    values = sharding(mesh, (slots, K, 1, H), _VALUE_AXES, name=name)
    return KVCache((keys,) * config.layers, (values,) * config.layers, NamedSharding(mesh, spec(("batch",))))


def resized(cache: KVCache, room: int) -> KVCache:
    """The same cache with more room a slot."""
    more = (0, room - cache.room)
    return replace(
        cache,
        keys=tuple(jnp.pad(keys_BKHS, ((0, 0), (0, 0), (0, 0), more)) for keys_BKHS in cache.keys),
        values=tuple(jnp.pad(values_BKSH, ((0, 0), (0, 0), more, (0, 0))) for values_BKSH in cache.values),
    )


def prefill(
    config: ModelConfig, params: Params, cache: KVCache, hidden_BD: jax.Array, ids_BT: jax.Array, counts_B: jax.Array
) -> tuple[KVCache, jax.Array]:
    """Appends the first `counts_B` of `ids_BT` to each slot; returns the cache and each slot's last hidden state [B, D].

    A slot of count 0 keeps its rows, its length and its `hidden_BD`. The caller sees to it that lengths + counts fit into
    the room, and that T does.
    """
    T = ids_BT.shape[1]
    positions_BT = cache.lengths_B[:, None] + jnp.arange(T)[None, :]
    seen_TT = jnp.arange(T)[:, None] >= jnp.arange(T)[None, :]
    fresh: list[tuple[jax.Array, jax.Array]] = []

    def attend(index: int, q_BNTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array) -> jax.Array:
        k_BKHT = k_BKTH.swapaxes(2, 3)
        fresh.append((k_BKHT, v_BKTH))
        return cached_attention(q_BNTH, cache.keys[index], cache.values[index], cache.lengths_B, k_BKHT, v_BKTH, seen_TT)

    hidden_BTD = bind(config, params).hidden_states(ids_BT, positions_BT, attend)
    last_BD = jnp.take_along_axis(hidden_BTD, jnp.maximum(counts_B - 1, 0)[:, None, None], axis=1)[:, 0]
    begun_B, keys, values = cache.lengths_B, [], []
    for index, (k_BKHT, v_BKTH) in enumerate(fresh):
        keys.append(_write(cache.keys[index], k_BKHT, begun_B, counts_B, axis=2))
        values.append(_write(cache.values[index], v_BKTH, begun_B, counts_B, axis=1))
    cache = KVCache(tuple(keys), tuple(values), begun_B + counts_B)
    return cache, jnp.where(counts_B[:, None] > 0, last_BD, hidden_BD)


def _write(old: jax.Array, new: jax.Array, begun_B: jax.Array, counts_B: jax.Array, axis: int) -> jax.Array:
    """Each slot's `old` with the first `counts_B` of the `new` tokens from index `begun_B` on; `axis`: a slot's token axis.

    A window that would reach past the end is moved back (a slice update would move it silently), so the new tokens move
    forward in it. What is not new keeps its value.
    """

    def write(old: jax.Array, new: jax.Array, begun: jax.Array, count: jax.Array) -> jax.Array:
        T = new.shape[axis]
        start = jnp.minimum(begun, old.shape[axis] - T)
        ahead_T = jnp.arange(T) - (begun - start)
        is_new_T = ((ahead_T >= 0) & (ahead_T < count)).reshape([T if i == axis else 1 for i in range(3)])
        window = jax.lax.dynamic_slice_in_dim(old, start, T, axis)
        window = jnp.where(is_new_T, jnp.roll(new, begun - start, axis), window)
        return jax.lax.dynamic_update_slice_in_dim(old, window, start, axis)

    return jax.vmap(write)(old, new, begun_B, counts_B)


def step(config: ModelConfig, params: Params, cache: KVCache, tail: Tail, ids_B: jax.Array, index: jax.Array) -> tuple[Tail, jax.Array]:
    """Reads each slot's `index`-th new token; returns the tail with it and the hidden states [B, D] that predict the next.

    The cache is only read. `index` is a scalar: all slots are at the same new token, whatever their lengths.
    """
    seen_1M = jnp.arange(tail.values[0].shape[2])[None, :] <= index
    keys, values = list(tail.keys), list(tail.values)

    def attend(layer: int, q_BN1H: jax.Array, k_BK1H: jax.Array, v_BK1H: jax.Array) -> jax.Array:
        keys[layer] = jax.lax.dynamic_update_slice_in_dim(keys[layer], k_BK1H.swapaxes(2, 3), index, axis=3)
        values[layer] = jax.lax.dynamic_update_slice_in_dim(values[layer], v_BK1H, index, axis=2)
        return cached_attention(q_BN1H, cache.keys[layer], cache.values[layer], cache.lengths_B, keys[layer], values[layer], seen_1M)

    positions_B1 = (cache.lengths_B + index)[:, None]
    hidden_B1D = bind(config, params).hidden_states(ids_B[:, None], positions_B1, attend)
    return Tail(tuple(keys), tuple(values)), hidden_B1D[:, 0]
