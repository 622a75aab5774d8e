"""The programs of a sampler, as jax lowers them: make, grow and fill a key-value cache, decode from
it.

They are lowered for shapes and shardings alone, so a plan can compile them for devices that are not
attached.
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

# Ids of a prefix that a decode reads before it draws its own, one a step. Longer prefixes are read
# in a pass of their own, which costs as much as several steps.
FORCED_MOST = 8
# Why a slot drew no more: its limit (or it has not ended yet), a stop sequence, every id forbidden,
# logits that are not finite.
AT_LIMIT, AT_STOP, NONE_LEFT, NOT_FINITE = range(4)


@dataclass(frozen=True, eq=False)
class Programs:
    """The programs of one sampler. Lower them with the mesh set around.

    `capacity` is always that of the cache a program takes: tokens of a slot's prompt.

    `new`: tokens that a decode may draw. `stop_ZV`: what ends one (vocabulary.stop_table). `pad_id`
    fills unused positions.
    """

    config: ModelConfig
    mesh: Mesh
    slots: int
    new: int
    stop_ZV: np.ndarray
    pad_id: int

    @property
    def by_slot(self) -> NamedSharding:
        """The sharding of arrays of shape [slots, ...]."""
        return batch_sharding(self.mesh)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of arrays that every device holds a copy of."""
        return NamedSharding(self.mesh, PartitionSpec())

    @cached_property
    def cache(self) -> kv.KVCache:
        """The shardings of a cache."""
        return kv.cache_shardings(self.config, self.mesh, self.slots, self.new)

    def empty(self, capacity: int) -> Lowered:
        """() -> an empty cache of this capacity."""
        return jax.jit(partial(self._empty, capacity), out_shardings=self.cache).lower()

    def grow(self, larger: int, capacity: int) -> Lowered:
        """(cache) -> the same with the capacity `larger`."""
        return jax.jit(lambda cache: kv.resized(cache, larger), out_shardings=self.cache).lower(
            self.abstract_cache(capacity)
        )

    def prefill(self, tokens: int, capacity: int) -> Lowered:
        """(params, cache, hidden_BD, ids_BT, counts_B) -> (cache, hidden_BD), with T = `tokens`."""
        jitted = jax.jit(
            partial(kv.prefill, self.config),
            donate_argnums=1,
            out_shardings=(self.cache, self.by_slot),
        )
        return jitted.lower(
            *self._state(capacity), self._rows(jnp.int32, tokens), self._rows(jnp.int32)
        )

    def score(self, tokens: int, capacity: int) -> Lowered:
        """(params, cache, hidden_BD, ids_BT, counts_B) -> (cache, hidden_BD, logprobs_BT).

        `prefill` that also returns the log-probability of every id.
        """
        places = self.cache, self.by_slot, self.by_slot
        jitted = jax.jit(partial(kv.score, self.config), donate_argnums=1, out_shardings=places)
        return jitted.lower(
            *self._state(capacity), self._rows(jnp.int32, tokens), self._rows(jnp.int32)
        )

    def decode(self, read: int, capacity: int) -> Lowered:
        """(params, cache, hidden_BD, limits_B, seeds_B2, scalars, stop_ZV, tokens_V, prefix_BP)
        -> (cache, ids_BM, logprobs_BM, counts_B, ended_B), with M = `new` and P = FORCED_MOST.

        `tokens_V`: bool, which ids are tokens. `ended_B`: AT_LIMIT, AT_STOP, NONE_LEFT or
        NOT_FINITE. `read`: 0, or S of a last argument read_BS: all ids that each slot has read,
        prompt and prefix, padded with vocab_size. Only programs with it look back
        (Sampling.looks_back).
        """
        places = self.cache, *(self.by_slot,) * 4
        jitted = jax.jit(
            partial(_decode, self.config, most=self.new, pad_id=self.pad_id),
            donate_argnums=1,
            out_shardings=places,
        )
        scalars = Sampling().scalars()
        tokens_V = np.ones(self.config.vocab_size, bool)
        copies = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated)
            for x in (*scalars, self.stop_ZV, tokens_V)
        ]
        read_BS = [self._rows(jnp.int32, read)] if read else []
        slots = self._rows(jnp.int32), self._rows(jnp.uint32, 2)
        return jitted.lower(
            *self._state(capacity),
            *slots,
            Scalars(*copies[:-2]),
            *copies[-2:],
            self._rows(jnp.int32, FORCED_MOST),
            *read_BS,
        )

    def _empty(self, capacity: int) -> kv.KVCache:
        return kv.empty(self.config, self.slots, capacity, self.new, kv.block_size(self.mesh))

    def _rows(self, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.slots, *shape), dtype, sharding=self.by_slot)

    def abstract_params(self) -> Params:
        """Return the parameters' shapes and shardings, in the compute dtype."""
        compute = self.config.compute_as
        shapes = abstract_params(self.config, self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, compute, sharding=x.sharding), shapes
        )

    def abstract_cache(self, capacity: int) -> kv.KVCache:
        """Return a cache's shapes and shardings."""
        shapes = jax.eval_shape(partial(self._empty, capacity))
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            shapes,
            self.cache,
        )

    def _state(self, capacity: int) -> tuple[Any, ...]:
        """Return parameters, cache and hidden states, as prefill and decode take them."""
        return (
            self.abstract_params(),
            self.abstract_cache(capacity),
            self._rows(self.config.compute_as, self.config.width),
        )


class _Drawn(NamedTuple):
    """The state of a decode, with M the most new tokens and P the most ids of a prefix.

    At the top of the loop, of a slot with the forced prefix p that has drawn a b, at position 3:

        ids_BX          p a b . .  (X = P + M)   stop_B    state in stop_ZV after a b
        cache, behind   p a . . .                counts_B  2
        its capacity    b is drawn but not yet read
    """

    position: jax.Array  # int32 scalar: tokens forced or drawn so far in the slots not done
    cache: kv.KVCache  # forced and drawn tokens, once read, follow its capacity
    last_B: jax.Array  # int32: each slot's last id
    stop_B: jax.Array  # int32: the state in stop_ZV, of drawn tokens alone
    ids_BX: jax.Array  # int32: forced, then drawn; pad after the end
    logprobs_BX: jax.Array  # float32, of ids_BX
    counts_B: jax.Array  # int32: tokens drawn
    ended_B: jax.Array  # int32: why it is done, AT_LIMIT while it is not
    done_B: jax.Array  # bool: it draws no more
    past: Past | None  # tokens read and drawn; None: no slot looks back


def _decode(
    config: ModelConfig,
    params: Params,
    cache: kv.KVCache,
    hidden_BD: jax.Array,
    limits_B: jax.Array,
    seeds_B2: jax.Array,
    scalars: Scalars[jax.Array],
    stop_ZV: jax.Array,
    tokens_V: jax.Array,
    prefix_BP: jax.Array,
    read_BS: jax.Array | None = None,
    *,
    most: int,
    pad_id: int,
) -> tuple[Any, ...]:
    """Draw up to `limits_B` tokens (0: none) after `hidden_BD` and the ids of `prefix_BP`.

    A prefix ends at its first NO_ID. `read_BS` holds prompts and prefixes. Returns the cache, its
    prompts unchanged, ids [B, M], logprobs, counts, ended.
    """
    rows = jnp.arange(limits_B.shape[0])
    B, P = prefix_BP.shape
    forced_B = (prefix_BP != NO_ID).sum(axis=1)
    forced_BX = jnp.pad(prefix_BP, ((0, 0), (0, most)), constant_values=NO_ID)

    def draw(state: _Drawn, hidden_BD: jax.Array) -> _Drawn:
        """Return the state with each slot's next token: the prefix's, or one drawn."""
        # The noise follows a token's index among the drawn ones, so it does not depend on how the
        # prefix was read.
        drawn_B, logprobs_B = choose(
            logits(config, params, hidden_BD),
            scalars,
            seeds_B2,
            state.counts_B,
            state.past,
            tokens_V,
        )
        next_forced_B = jax.lax.dynamic_index_in_dim(
            forced_BX, state.position, axis=1, keepdims=False
        )
        draws_B = (next_forced_B == NO_ID) & ~state.done_B
        finite_B = jnp.isfinite(logprobs_B)
        accepted_B = draws_B & finite_B & (drawn_B != NO_ID)
        ids_B = jnp.where(
            accepted_B, drawn_B, jnp.where(state.done_B | draws_B, pad_id, next_forced_B)
        )
        stop_B = jnp.where(accepted_B, stop_ZV[state.stop_B, ids_B].astype(jnp.int32), state.stop_B)
        counts_B = state.counts_B + accepted_B
        reason_B = jnp.where(
            finite_B,
            jnp.where(
                accepted_B, jnp.where(stop_B == stop_ZV.shape[0], AT_STOP, AT_LIMIT), NONE_LEFT
            ),
            NOT_FINITE,
        )
        ended_B = jnp.where(draws_B, reason_B, state.ended_B)
        return _Drawn(
            position=state.position + 1,
            cache=state.cache,
            last_B=ids_B,
            stop_B=stop_B,
            ids_BX=jax.lax.dynamic_update_slice_in_dim(
                state.ids_BX, ids_B[:, None], state.position, axis=1
            ),
            logprobs_BX=jax.lax.dynamic_update_slice_in_dim(
                state.logprobs_BX, logprobs_B[:, None], state.position, axis=1
            ),
            counts_B=counts_B,
            ended_B=ended_B,
            done_B=(ended_B != AT_LIMIT) | (counts_B >= limits_B),
            past=None if state.past is None else grown(state.past, ids_B, accepted_B),
        )

    def grown(past: Past, ids_B: jax.Array, accepted_B: jax.Array) -> Past:
        """Return the past with the ids that were drawn; it has the prefix from the start."""
        # vocab_size pads the row: it is no id.
        ids_B = jnp.where(accepted_B, ids_B, config.vocab_size)
        return Past(
            past.ids_BS.at[rows, past.lengths_B].set(ids_B),
            past.lengths_B + accepted_B,
            past.seen_BV.at[rows, ids_B].set(True),
        )

    def first_past(read_BS: jax.Array) -> Past:
        seen_BV = jnp.zeros((B, config.vocab_size), bool).at[rows[:, None], read_BS].set(True)
        ids_BS = jnp.pad(read_BS, ((0, 0), (0, P + most)), constant_values=config.vocab_size)
        return Past(ids_BS, (read_BS < config.vocab_size).sum(axis=1), seen_BV)

    def advance(state: _Drawn) -> _Drawn:
        cache, hidden_BD = kv.step(config, params, state.cache, state.last_B, state.position - 1)
        return draw(state._replace(cache=cache), hidden_BD)

    start = _Drawn(
        position=jnp.int32(0),
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
    end = jax.lax.while_loop(lambda state: ~state.done_B.all(), advance, draw(start, hidden_BD))

    def own(x_BX: jax.Array) -> jax.Array:
        """Return [B, M] of [B, P + M]: each slot's part after its prefix."""
        return jax.vmap(partial(jax.lax.dynamic_slice_in_dim, slice_size=most))(x_BX, forced_B)

    return end.cache, own(end.ids_BX), own(end.logprobs_BX), end.counts_B, end.ended_B
