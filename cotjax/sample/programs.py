"""What the sampler runs on the devices: the programs that make, grow, fill and decode from a key-value cache, as jax lowers them.

They are lowered for shapes and shardings alone, so that a plan can compile them for devices that are not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Lowered

from cotjax.model import cache as kv
from cotjax.model.config import ModelConfig
from cotjax.model.decoder import Params, abstract_params, logits
from cotjax.model.sharding import batch_sharding
from cotjax.sample.sampling import NO_ID, choose, stops


@dataclass(frozen=True, eq=False)
class Programs:
    """The programs of one sampler. `size` is a program's own length, `room` the tokens that the cache has room for; lower them
    with the mesh set around.

    `stop_ZW`: the stop sequences, as sampling.stop_table lays them out. `pad_id` fills unused places.
    """

    config: ModelConfig
    mesh: Mesh
    slots: int
    stop_ZW: np.ndarray
    pad_id: int

    @property
    def by_slot(self) -> NamedSharding:
        """Where arrays of shape [slots, ...] live."""
        return batch_sharding(self.mesh)

    @property
    def whole(self) -> NamedSharding:
        """Everywhere."""
        return NamedSharding(self.mesh, PartitionSpec())

    @cached_property
    def cache(self) -> kv.KVCache:
        """Where a cache lives."""
        return kv.cache_shardings(self.config, self.mesh, self.slots)

    def empty(self, size: int, room: int) -> Lowered:
        """() -> an empty cache with room for `size` tokens."""
        return jax.jit(lambda: kv.empty(self.config, self.slots, size), out_shardings=self.cache).lower()

    def grow(self, size: int, room: int) -> Lowered:
        """(cache) -> the same with room for `size` tokens."""
        return jax.jit(lambda cache: kv.resized(cache, size), out_shardings=self.cache).lower(self.abstract_cache(room))

    def prefill(self, size: int, room: int) -> Lowered:
        """(params, cache, hidden_BD, ids_BT, counts_B) -> (cache, hidden_BD), reading T = `size` tokens a slot at most."""
        jitted = jax.jit(partial(kv.prefill, self.config), donate_argnums=1, out_shardings=(self.cache, self.by_slot))
        return jitted.lower(*self._state(room), self._rows(jnp.int32, size), self._rows(jnp.int32))

    def decode(self, size: int, room: int) -> Lowered:
        """(params, cache, hidden_BD, limits_B, seeds_B2, temperature, stop_ZW) -> (ids_BM, logprobs_BM, counts_B, stopped_B), with
        M = `size` new tokens a slot at most.
        """
        jitted = jax.jit(partial(_decode, self.config, most=size, pad_id=self.pad_id), out_shardings=self.by_slot)
        whole = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.whole) for x in (np.float32(0), self.stop_ZW)]
        return jitted.lower(*self._state(room), self._rows(jnp.int32), self._rows(jnp.uint32, 2), *whole)

    def _rows(self, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.slots, *shape), dtype, sharding=self.by_slot)

    def abstract_params(self) -> Params:
        """The parameters' shapes and places. They are in the compute dtype."""
        compute = self.config.compute_as
        shapes = abstract_params(self.config, self.mesh)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, compute, sharding=x.sharding), shapes)

    def abstract_cache(self, room: int) -> kv.KVCache:
        """A cache's shapes and places."""
        shapes = jax.eval_shape(lambda: kv.empty(self.config, self.slots, room))
        return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, self.cache)

    def _state(self, room: int) -> tuple[Any, ...]:
        """Parameters, cache and hidden states, as prefill and decode take them."""
        return self.abstract_params(), self.abstract_cache(room), self._rows(self.config.compute_as, self.config.width)


class _Drawn(NamedTuple):
    """The state of a decode. With M the most new tokens and W the longest stop sequence; at the top of the loop a slot
    that has made ids a b c, index 3:

        ids_BM      a b c . .      recent_BW   b c (W = 2)      counts_B  3
        tail        a b . . .      c is chosen but not yet read
    """

    index: jax.Array  # int32 scalar: tokens made so far by the slots that are still going
    tail: kv.Tail  # keys and values of the tokens made and read
    last_B: jax.Array  # int32: each slot's last id
    recent_BW: jax.Array  # int32: the last W ids, NO_ID before the first
    ids_BM: jax.Array  # int32: what was made; pad after the end
    logprobs_BM: jax.Array  # float32, of ids_BM
    counts_B: jax.Array  # int32: how many of ids_BM count
    stopped_B: jax.Array  # bool: a stop sequence was made
    done_B: jax.Array  # bool: stopped, or at its limit


def _decode(
    config: ModelConfig,
    params: Params,
    cache: kv.KVCache,
    hidden_BD: jax.Array,
    limits_B: jax.Array,
    seeds_B2: jax.Array,
    temperature: jax.Array,
    stop_ZW: jax.Array,
    *,
    most: int,
    pad_id: int,
) -> tuple[jax.Array, ...]:
    """Makes up to `limits_B` tokens (0: the slot sits out) after `hidden_BD`: ids [B, M], logprobs, counts, stopped."""
    B, W = limits_B.shape[0], stop_ZW.shape[1]

    def draw(state: _Drawn, hidden_BD: jax.Array) -> _Drawn:
        """Chooses the next token of every slot that is still going."""
        ids_B, logprobs_B = choose(logits(config, params, hidden_BD), temperature, seeds_B2, state.index)
        ids_B = jnp.where(state.done_B, pad_id, ids_B)
        recent_BW = jnp.concatenate([state.recent_BW[:, 1:], ids_B[:, None]], axis=1)
        counts_B = state.counts_B + ~state.done_B
        stopped_B = state.stopped_B | (~state.done_B & stops(recent_BW, stop_ZW))
        return _Drawn(
            index=state.index + 1,
            tail=state.tail,
            last_B=ids_B,
            recent_BW=recent_BW,
            ids_BM=jax.lax.dynamic_update_slice_in_dim(state.ids_BM, ids_B[:, None], state.index, axis=1),
            logprobs_BM=jax.lax.dynamic_update_slice_in_dim(state.logprobs_BM, logprobs_B[:, None], state.index, axis=1),
            counts_B=counts_B,
            stopped_B=stopped_B,
            done_B=stopped_B | (counts_B >= limits_B),
        )

    def go_on(state: _Drawn) -> _Drawn:
        tail, hidden_BD = kv.step(config, params, cache, state.tail, state.last_B, state.index - 1)
        return draw(state._replace(tail=tail), hidden_BD)

    start = _Drawn(
        index=jnp.int32(0),
        tail=kv.empty_tail(config, B, most),
        last_B=jnp.full(B, pad_id, jnp.int32),
        recent_BW=jnp.full((B, W), NO_ID, jnp.int32),
        ids_BM=jnp.full((B, most), pad_id, jnp.int32),
        logprobs_BM=jnp.zeros((B, most), jnp.float32),
        counts_B=jnp.zeros(B, jnp.int32),
        stopped_B=jnp.zeros(B, bool),
        done_B=limits_B == 0,
    )
    end = jax.lax.while_loop(lambda state: ~state.done_B.all(), go_on, draw(start, hidden_BD))
    return end.ids_BM, end.logprobs_BM, end.counts_B, end.stopped_B
