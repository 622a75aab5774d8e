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
from cotjax.model.decoder import logits
from cotjax.model.params import Params, abstract_params
from cotjax.model.sharding import batch_sharding
from cotjax.sample.sampling import NO_ID, Past, Sampling, Scalars, choose

# Ids of a prefix that a decode takes before it chooses its own, one a step; more are read in a pass of their own, which costs as
# much as several steps.
FORCED_MOST = 8
# Why a slot made no more: its limit (or it is not yet at an end), a stop sequence, every id forbidden, logits that are not finite.
AT_LIMIT, AT_STOP, NONE_LEFT, NOT_FINITE = range(4)


@dataclass(frozen=True, eq=False)
class Programs:
    """The programs of one sampler. `size` is a program's own length, `room` the tokens that the cache has room for; lower them
    with the mesh set around.

    `new`: tokens that a decode may make. `stop_ZV`: what ends one, as stopping.stop_table lays it out. `pad_id` fills unused
    places.
    """

    config: ModelConfig
    mesh: Mesh
    slots: int
    new: int
    stop_ZV: np.ndarray
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
        return kv.cache_shardings(self.config, self.mesh, self.slots, self.new)

    def empty(self, size: int, room: int) -> Lowered:
        """() -> an empty cache with room for `size` tokens."""
        return jax.jit(partial(self._empty, size), out_shardings=self.cache).lower()

    def grow(self, size: int, room: int) -> Lowered:
        """(cache) -> the same with room for `size` tokens."""
        return jax.jit(lambda cache: kv.resized(cache, size), out_shardings=self.cache).lower(
            self.abstract_cache(room)
        )

    def prefill(self, size: int, room: int) -> Lowered:
        """(params, cache, hidden_BD, ids_BT, counts_B) -> (cache, hidden_BD), reading T = `size` tokens a slot at most."""
        jitted = jax.jit(
            partial(kv.prefill, self.config),
            donate_argnums=1,
            out_shardings=(self.cache, self.by_slot),
        )
        return jitted.lower(*self._state(room), self._rows(jnp.int32, size), self._rows(jnp.int32))

    def score(self, size: int, room: int) -> Lowered:
        """(params, cache, hidden_BD, ids_BT, counts_B) -> (cache, hidden_BD, logprobs_BT): prefill that tells how likely the ids are."""
        places = self.cache, self.by_slot, self.by_slot
        jitted = jax.jit(partial(kv.score, self.config), donate_argnums=1, out_shardings=places)
        return jitted.lower(*self._state(room), self._rows(jnp.int32, size), self._rows(jnp.int32))

    def decode(self, size: int, room: int) -> Lowered:
        """(params, cache, hidden_BD, limits_B, seeds_B2, scalars, stop_ZV, tokens_V, prefix_BP) -> (cache, ids_BM, logprobs_BM,
        counts_B, ended_B), with M = `new` tokens a slot at most and P = FORCED_MOST.

        `tokens_V`: bool, which ids are tokens. `ended_B`: AT_LIMIT, AT_STOP, NONE_LEFT or NOT_FINITE. `size`: 0, or that of
        read_BS, the last argument, all ids that each slot has read, prompt and prefix, filled up with vocab_size: only those
        programs look back (Sampling.looks_back).
        """
        places = self.cache, *(self.by_slot,) * 4
        jitted = jax.jit(
            partial(_decode, self.config, most=self.new, pad_id=self.pad_id),
            donate_argnums=1,
            out_shardings=places,
        )
        scalars = Sampling().scalars()
        tokens_V = np.ones(self.config.vocab_size, bool)
        whole = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.whole)
            for x in (*scalars, self.stop_ZV, tokens_V)
        ]
        read = [self._rows(jnp.int32, size)] if size else []
        slots = self._rows(jnp.int32), self._rows(jnp.uint32, 2)
        return jitted.lower(
            *self._state(room),
            *slots,
            Scalars(*whole[:-2]),
            *whole[-2:],
            self._rows(jnp.int32, FORCED_MOST),
            *read,
        )

    def _empty(self, room: int) -> kv.KVCache:
        return kv.empty(self.config, self.slots, room, self.new, kv.block_size(self.mesh))

    def _rows(self, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.slots, *shape), dtype, sharding=self.by_slot)

    def abstract_params(self) -> Params:
        """The parameters' shapes and places. They are in the compute dtype."""
        compute = self.config.compute_as
        shapes = abstract_params(self.config, self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, compute, sharding=x.sharding), shapes
        )

    def abstract_cache(self, room: int) -> kv.KVCache:
        """A cache's shapes and places."""
        shapes = jax.eval_shape(partial(self._empty, room))
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            shapes,
            self.cache,
        )

    def _state(self, room: int) -> tuple[Any, ...]:
        """Parameters, cache and hidden states, as prefill and decode take them."""
        return (
            self.abstract_params(),
            self.abstract_cache(room),
            self._rows(self.config.compute_as, self.config.width),
        )


class _Drawn(NamedTuple):
    """The state of a decode. With M the most new tokens and P the most ids of a prefix; at the top of the loop of a slot that was
    given the prefix p and has made ids a b, index 3:

        ids_BX          p a b . .  (X = P + M)      stop_B   where a b lead in stop_ZV      counts_B  2
        cache, behind   p a . . .      b is chosen but not yet read
        its room
    """

    index: jax.Array  # int32 scalar: tokens given or made so far in the slots that are still going
    cache: kv.KVCache  # the tokens given or made, and read, lie behind its room
    last_B: jax.Array  # int32: each slot's last id
    stop_B: jax.Array  # int32: the state in stop_ZV, of what was made alone
    ids_BX: jax.Array  # int32: what was given, then what was made; pad after the end
    logprobs_BX: jax.Array  # float32, of ids_BX
    counts_B: jax.Array  # int32: how many were made
    ended_B: jax.Array  # int32: why it is done, AT_LIMIT while it is not
    done_B: jax.Array  # bool: it makes no more
    past: Past | None  # what slots have read and made; None: nobody looks back


def _decode(
    config: ModelConfig,
    params: Params,
    cache: kv.KVCache,
    hidden_BD: jax.Array,
    limits_B: jax.Array,
    seeds_B2: jax.Array,
    scalars: Scalars,
    stop_ZV: jax.Array,
    tokens_V: jax.Array,
    prefix_BP: jax.Array,
    read_BS: jax.Array | None = None,
    *,
    most: int,
    pad_id: int,
) -> tuple[Any, ...]:
    """Makes up to `limits_B` tokens (0: the slot sits out) after `hidden_BD` and the ids of `prefix_BP`, which ends where NO_ID
    begins: the cache, its prompts as they were, ids [B, M], logprobs, counts, ended. `read_BS` holds prompts and prefixes."""
    rows = jnp.arange(limits_B.shape[0])
    B, P = prefix_BP.shape
    given_B = (prefix_BP != NO_ID).sum(axis=1)
    given_BX = jnp.pad(prefix_BP, ((0, 0), (0, most)), constant_values=NO_ID)

    def draw(state: _Drawn, hidden_BD: jax.Array) -> _Drawn:
        """The next token of every slot that is still going: the prefix's, or one that is chosen."""
        # A draw's noise is that of the place among what the slot makes, so that it does not depend on how the prefix was read.
        chosen_B, logprobs_B = choose(
            logits(config, params, hidden_BD),
            scalars,
            seeds_B2,
            state.counts_B,
            state.past,
            tokens_V,
        )
        given_now_B = jax.lax.dynamic_index_in_dim(given_BX, state.index, axis=1, keepdims=False)
        asked_B = (given_now_B == NO_ID) & ~state.done_B
        finite_B = jnp.isfinite(logprobs_B)
        chooses_B = asked_B & finite_B & (chosen_B != NO_ID)
        ids_B = jnp.where(
            chooses_B, chosen_B, jnp.where(state.done_B | asked_B, pad_id, given_now_B)
        )
        stop_B = jnp.where(chooses_B, stop_ZV[state.stop_B, ids_B].astype(jnp.int32), state.stop_B)
        counts_B = state.counts_B + chooses_B
        now_B = jnp.where(
            finite_B,
            jnp.where(
                chooses_B, jnp.where(stop_B == stop_ZV.shape[0], AT_STOP, AT_LIMIT), NONE_LEFT
            ),
            NOT_FINITE,
        )
        ended_B = jnp.where(asked_B, now_B, state.ended_B)
        return _Drawn(
            index=state.index + 1,
            cache=state.cache,
            last_B=ids_B,
            stop_B=stop_B,
            ids_BX=jax.lax.dynamic_update_slice_in_dim(
                state.ids_BX, ids_B[:, None], state.index, axis=1
            ),
            logprobs_BX=jax.lax.dynamic_update_slice_in_dim(
                state.logprobs_BX, logprobs_B[:, None], state.index, axis=1
            ),
            counts_B=counts_B,
            ended_B=ended_B,
            done_B=(ended_B != AT_LIMIT) | (counts_B >= limits_B),
            past=None if state.past is None else grown(state.past, ids_B, chooses_B),
        )

    def grown(past: Past, ids_B: jax.Array, made_B: jax.Array) -> Past:
        """The past with these ids, where they were made: it has the prefix from the start."""
        ids_B = jnp.where(
            made_B, ids_B, config.vocab_size
        )  # which fills up the row, is no id, and is never seen
        return Past(
            past.ids_BS.at[rows, past.lengths_B].set(ids_B),
            past.lengths_B + made_B,
            past.seen_BV.at[rows, ids_B].set(True),
        )

    def first_past(read_BS: jax.Array) -> Past:
        seen_BV = jnp.zeros((B, config.vocab_size), bool).at[rows[:, None], read_BS].set(True)
        ids_BS = jnp.pad(read_BS, ((0, 0), (0, P + most)), constant_values=config.vocab_size)
        return Past(ids_BS, (read_BS < config.vocab_size).sum(axis=1), seen_BV)

    def go_on(state: _Drawn) -> _Drawn:
        cache, hidden_BD = kv.step(config, params, state.cache, state.last_B, state.index - 1)
        return draw(state._replace(cache=cache), hidden_BD)

    start = _Drawn(
        index=jnp.int32(0),
        cache=cache,
        last_B=jnp.full(B, pad_id, jnp.int32),
        stop_B=jnp.zeros(B, jnp.int32),
        ids_BX=jnp.full((B, P + most), pad_id, jnp.int32),
        logprobs_BX=jnp.zeros((B, P + most), jnp.float32),
        counts_B=jnp.zeros(B, jnp.int32),
        ended_B=jnp.full(B, AT_LIMIT, jnp.int32),
        done_B=limits_B == 0,
        past=None if read_BS is None else first_past(read_BS),
    )
    end = jax.lax.while_loop(lambda state: ~state.done_B.all(), go_on, draw(start, hidden_BD))

    def own(x_BX: jax.Array) -> jax.Array:
        """[B, M] of [B, P + M]: each slot's from the end of its prefix on."""
        return jax.vmap(partial(jax.lax.dynamic_slice_in_dim, slice_size=most))(x_BX, given_B)

    return end.cache, own(end.ids_BX), own(end.logprobs_BX), end.counts_B, end.ended_B
