"""Generation over slots: each slot's prompt is cached once, grows turn by turn, and can be branched from.

    sampler.load(params)
    sampler.extend({0: prompt_ids, 3: other_ids})                              # read the prompts
    prompt_actions = sampler.branch({0: open_action, 3: open_action}, max_new=16)  # both actions from one state:
    cot_actions = sampler.branch({0: open_think, 3: open_think}, max_new=128)      # only their own tokens cost
    sampler.extend({0: executed_0 + observed_0, 3: executed_3 + observed_3})   # the next turn
    sampler.reset([3])                                                         # an episode ended

Arrays have static shapes, so each program is compiled for a few lengths, the buckets below, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cotjax.errors import UsageError
from cotjax.model import cache as kv
from cotjax.model.config import ModelConfig
from cotjax.model.decoder import Params, abstract_params, logits
from cotjax.model.sharding import batch_sharding, param_shardings
from cotjax.sample.sampling import NO_ID, choose, seed_words, stop_table, stops

# Tokens of a slot read in one pass, and about how many of all slots together: longer pieces take several passes, which
# bounds the scores' memory (on CPU, passes twice as large cost a third of the speed in page faults).
READ_BUCKETS = (8, 32, 64, 128, 256, 512)
READ_AT_ONCE = 4096
# Room of a slot's cache: decoding reads all of it at every step, so it grows with the longest slot.
ROOM_BUCKETS = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768)
# Tokens that one branch may make.
NEW_BUCKETS = (16, 64, 256, 1024, 4096, 16384)


@dataclass(frozen=True)
class Generation:
    """What one branch made."""

    ids: list[int]  # the new tokens, after the prefix; the stop sequence is part of them
    logprobs: list[float]  # of each, natural logarithm, under the model at temperature 1
    stopped: bool  # a stop sequence ended it; False: it ran into max_new or into max_length


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


class Sampler:
    """Decodes over a fixed number of slots, with one key-value cache row a slot.

    A slot's text does not depend on its neighbours or its place, up to the last bit of rounding: the buckets follow the
    longest slot, and a sum over another number of places may round another way.

    Slots are spread over the mesh's batch axes; on several processes, give each a mesh of its own devices.
    """

    def __init__(self, config: ModelConfig, mesh: Mesh, *, slots: int, max_length: int, stop: Sequence[Sequence[int]], pad_id: int):
        """`max_length`: tokens a slot may hold, prompt, prefix and new ones together. `stop`: id sequences that end a
        generation. `pad_id`: what fills unused places; any id of the vocabulary.

        Raises UsageError when slots do not divide over the mesh, or lengths or ids are out of range.
        """
        if slots < 1:
            raise UsageError(f"sampler: slots is {slots}; it must be 1 or more")
        if not 1 <= max_length <= config.max_length:
            raise UsageError(f"sampler: max_length is {max_length}; the model's positions allow 1 to {config.max_length}")
        self.config, self.mesh, self.slots, self.max_length, self.pad_id = config, mesh, slots, max_length, pad_id
        for sequence in (*stop, [pad_id]):
            self._check_ids(sequence, "stop or pad_id")
        self._stop_ZW = stop_table(stop)
        self._reads = [size for size in READ_BUCKETS if size <= 32 or size * slots <= READ_AT_ONCE]
        self._cache_shardings = kv.cache_shardings(config, mesh, slots)
        self._by_slot, self._whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
        self._programs: dict[tuple[Any, ...], Any] = {}
        self._params: Params | None = None
        self._lengths = np.zeros(slots, np.int32)
        self._cache: kv.KVCache
        self._hidden_BD: jax.Array
        self._forget()

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each slot's cached prompt, int32 [slots]."""
        return self._lengths.copy()

    @property
    def compilations(self) -> int:
        """Programs compiled so far: at most one for each combination of buckets met."""
        return len(self._programs)

    def load(self, params: Params) -> None:
        """Places a checkpoint's weights, in the compute dtype, and empties every slot."""
        compute = self.config.compute_as
        shardings = param_shardings(self.config, self.mesh)
        cast = jax.tree.map(lambda x: np.asarray(x).astype(compute) if isinstance(x, np.ndarray) else x.astype(compute), params)
        # A copy: a trainer may donate its own arrays to the next step.
        self._params = jax.device_put(cast, shardings, may_alias=False)
        self._forget()

    def reset(self, slots: Iterable[int]) -> None:
        """Empties these slots."""
        emptied = list(slots)
        self._check_slots(emptied)
        self._lengths[emptied] = 0
        if not self._lengths.any():
            self._forget()

    def extend(self, pieces: Mapping[int, Sequence[int]]) -> None:
        """Appends ids to these slots' cached prompts; the other slots stay as they are.

        Raises UsageError, before any slot changes, when one would hold more than max_length.
        """
        self._check_slots(pieces)
        for slot, ids in pieces.items():
            self._check_ids(ids, f"slot {slot}")
            length = int(self._lengths[slot]) + len(ids)
            if length > self.max_length:
                raise UsageError(f"sampler: slot {slot} would hold {length} tokens; max_length is {self.max_length}")
        self._hidden_BD = self._read(pieces, self._hidden_BD)
        for slot, ids in pieces.items():
            self._lengths[slot] += len(ids)

    def branch(
        self,
        prefixes: Mapping[int, Sequence[int]],
        *,
        max_new: int,
        temperature: float = 0.0,
        seeds: Mapping[int, int] | None = None,
    ) -> dict[int, Generation]:
        """Decodes from each of these slots' cached prompt plus its prefix (which may be empty), and leaves every slot's
        prompt as it was: the next extend or branch gives what it would have given without this one.

        Greedy at temperature 0; else each slot samples with its own seed of `seeds`, 0 .. 2**64 - 1. A slot makes up to
        `max_new` tokens, fewer where a stop sequence or max_length ends it.

        Raises UsageError for an empty slot with an empty prefix, one with no room left, or sampling without seeds.
        """
        self._check_branch(prefixes, max_new, temperature, seeds)
        if not prefixes:
            return {}
        limits_B = np.zeros(self.slots, np.int32)
        seeds_B2 = np.zeros((self.slots, 2), np.uint32)
        for slot, ids in prefixes.items():
            limits_B[slot] = min(max_new, self.max_length - int(self._lengths[slot]) - len(ids))
            if temperature > 0:
                seeds_B2[slot] = seed_words(seeds[slot])
        hidden_BD = self._read(prefixes, self._hidden_BD)
        most = _bucket(int(limits_B.max()), NEW_BUCKETS)
        decode = self._program("decode", most)
        made = decode(
            self._params,
            self._cache,
            hidden_BD,
            *self._put_by_slot(limits_B, seeds_B2),
            *self._put_whole(np.float32(temperature), self._stop_ZW),
        )
        ids_BM, logprobs_BM, counts_B, stopped_B = map(np.asarray, made)
        return {
            slot: Generation(ids_BM[slot, : counts_B[slot]].tolist(), logprobs_BM[slot, : counts_B[slot]].tolist(), bool(stopped_B[slot]))
            for slot in prefixes
        }

    # Below: the cache and its programs.

    def _forget(self) -> None:
        """Empties every slot and gives back the cache's memory beyond the smallest room."""
        self._lengths[:] = 0
        config, slots, room = self.config, self.slots, _bucket(1, ROOM_BUCKETS, self.max_length)
        self._cache = self._program("empty", room)()
        zeros_BD = np.zeros((slots, config.width), config.compute_as)
        (self._hidden_BD,) = self._put_by_slot(zeros_BD)

    def _read(self, pieces: Mapping[int, Sequence[int]], hidden_BD: jax.Array) -> jax.Array:
        """Reads the pieces into the cache, from the lengths the cache has on; returns the last hidden states."""
        if self._params is None:
            raise UsageError("sampler: no weights; call load(params) first")
        self._set_lengths()  # a branch before this one read its prefixes into the room past the prompts; forget them
        longest = max((len(ids) for ids in pieces.values()), default=0)
        self._make_room(max((int(self._lengths[slot]) + len(ids) for slot, ids in pieces.items()), default=0))
        most = min(self._reads[-1], self._cache.room)
        for start in range(0, longest, most):
            passing = {slot: ids[start : start + most] for slot, ids in pieces.items()}
            tokens = _bucket(max(map(len, passing.values())), self._reads, self._cache.room)
            ids_BT, counts_B = np.full((self.slots, tokens), self.pad_id, np.int32), np.zeros(self.slots, np.int32)
            for slot, ids in passing.items():
                ids_BT[slot, : len(ids)], counts_B[slot] = ids, len(ids)
            prefill = self._program("prefill", tokens)
            self._cache, hidden_BD = prefill(self._params, self._cache, hidden_BD, *self._put_by_slot(ids_BT, counts_B))
        return hidden_BD

    def _make_room(self, length: int) -> None:
        room = _bucket(length, ROOM_BUCKETS, self.max_length)
        if room > self._cache.room:
            self._cache = self._program("grow", room)(self._cache)

    def _set_lengths(self) -> None:
        (lengths_B,) = self._put_by_slot(self._lengths)
        self._cache = replace(self._cache, lengths_B=lengths_B)

    def _put_by_slot(self, *arrays: np.ndarray) -> tuple[jax.Array, ...]:
        # Copies, because a device array may share a numpy array's memory, and `_lengths` changes in place.
        return tuple(jax.device_put(array.copy(), self._by_slot) for array in arrays)

    def _put_whole(self, *arrays: np.ndarray) -> tuple[jax.Array, ...]:
        return tuple(jax.device_put(array, self._whole) for array in arrays)

    def _program(self, name: str, size: int) -> Callable[..., Any]:
        """The compiled program of this name for this size and the cache's present room."""
        room = 0 if name == "empty" else self._cache.room
        key = (name, size, room)
        if key not in self._programs:
            with jax.set_mesh(self.mesh):
                self._programs[key] = getattr(self, f"_compile_{name}")(size, room)
        return self._programs[key]

    def _compile_empty(self, room: int, _: int) -> Any:
        make = jax.jit(lambda: kv.empty(self.config, self.slots, room), out_shardings=self._cache_shardings)
        return make.lower().compile()

    def _compile_grow(self, room: int, old: int) -> Any:
        grow = jax.jit(lambda cache: kv.resized(cache, room), out_shardings=self._cache_shardings)
        return grow.lower(self._abstract_cache(old)).compile()

    def _compile_prefill(self, tokens: int, room: int) -> Any:
        read = partial(kv.prefill, self.config)
        jitted = jax.jit(read, donate_argnums=1, out_shardings=(self._cache_shardings, self._by_slot))
        ids_BT, counts_B = self._abstract((self.slots, tokens), jnp.int32), self._abstract((self.slots,), jnp.int32)
        return jitted.lower(*self._abstract_state(room), ids_BT, counts_B).compile()

    def _compile_decode(self, most: int, room: int) -> Any:
        jitted = jax.jit(partial(_decode, self.config, most=most, pad_id=self.pad_id), out_shardings=self._by_slot)
        limits_B, seeds_B2 = self._abstract((self.slots,), jnp.int32), self._abstract((self.slots, 2), jnp.uint32)
        whole = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._whole) for x in (np.float32(0), self._stop_ZW)]
        return jitted.lower(*self._abstract_state(room), limits_B, seeds_B2, *whole).compile()

    def _abstract(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._by_slot)

    def _abstract_cache(self, room: int) -> kv.KVCache:
        shapes = jax.eval_shape(lambda: kv.empty(self.config, self.slots, room))
        return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, self._cache_shardings)

    def _abstract_state(self, room: int) -> tuple[Any, ...]:
        """Parameters, cache and hidden states, as every program takes them."""
        config = replace(self.config, param_dtype=self.config.compute_dtype)
        hidden_BD = self._abstract((self.slots, config.width), config.compute_as)
        return abstract_params(config, self.mesh), self._abstract_cache(room), hidden_BD

    # Below: what callers may get wrong.

    def _check_slots(self, slots: Iterable[int]) -> None:
        for slot in slots:
            if not 0 <= slot < self.slots:
                raise UsageError(f"sampler: slot {slot} is not one of 0 .. {self.slots - 1}")

    def _check_ids(self, ids: Sequence[int], where: str) -> None:
        if len(ids) and not 0 <= min(ids) <= max(ids) < self.config.vocab_size:
            raise UsageError(f"sampler: {where} has an id outside the vocabulary, 0 .. {self.config.vocab_size - 1}")

    def _check_branch(
        self, prefixes: Mapping[int, Sequence[int]], max_new: int, temperature: float, seeds: Mapping[int, int] | None
    ) -> None:
        if max_new < 1:
            raise UsageError(f"sampler: max_new is {max_new}; it must be 1 or more")
        if temperature < 0:
            raise UsageError(f"sampler: temperature is {temperature}; it must be 0 or more")
        self._check_slots(prefixes)
        for slot, ids in prefixes.items():
            self._check_ids(ids, f"slot {slot}'s prefix")
            length = int(self._lengths[slot]) + len(ids)
            if length == 0:
                raise UsageError(f"sampler: slot {slot} is empty; extend it, or give the branch a prefix")
            if length >= self.max_length:
                raise UsageError(f"sampler: slot {slot} and its prefix fill max_length, {self.max_length}; nothing can follow")
            if temperature > 0 and (seeds is None or slot not in seeds):
                raise UsageError(f"sampler: temperature is {temperature} but slot {slot} has no seed")


def _bucket(size: int, buckets: Sequence[int], most: int | None = None) -> int:
    """The smallest bucket that holds `size`, at most `most`; past the last one, the next multiple of it."""
    for bucket in buckets:
        if size <= bucket:
            return bucket if most is None else min(bucket, most)
    rounded = -(-size // buckets[-1]) * buckets[-1]
    return rounded if most is None else min(rounded, most)


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
