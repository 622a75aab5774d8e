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
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cotjax.errors import UsageError
from cotjax.model import cache as kv
from cotjax.model.config import ModelConfig
from cotjax.model.decoder import Params
from cotjax.model.sharding import param_shardings
from cotjax.sample.programs import Programs
from cotjax.sample.sampling import seed_words, stop_table

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
        self.programs = Programs(config, mesh, slots, stop_table(stop), pad_id)
        self._reads = read_buckets(slots)
        self._by_slot, self._whole = self.programs.by_slot, self.programs.whole
        self._compiled: dict[tuple[Any, ...], Any] = {}
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
        return len(self._compiled)

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
        most = bucket(int(limits_B.max()), NEW_BUCKETS)
        decode = self._program("decode", most)
        made = decode(
            self._params,
            self._cache,
            hidden_BD,
            *self._put_by_slot(limits_B, seeds_B2),
            *self._put_whole(np.float32(temperature), self.programs.stop_ZW),
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
        config, slots, room = self.config, self.slots, bucket(1, ROOM_BUCKETS, self.max_length)
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
            tokens = bucket(max(map(len, passing.values())), self._reads, self._cache.room)
            ids_BT, counts_B = np.full((self.slots, tokens), self.pad_id, np.int32), np.zeros(self.slots, np.int32)
            for slot, ids in passing.items():
                ids_BT[slot, : len(ids)], counts_B[slot] = ids, len(ids)
            prefill = self._program("prefill", tokens)
            self._cache, hidden_BD = prefill(self._params, self._cache, hidden_BD, *self._put_by_slot(ids_BT, counts_B))
        return hidden_BD

    def _make_room(self, length: int) -> None:
        room = bucket(length, ROOM_BUCKETS, self.max_length)
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
        if key not in self._compiled:
            with jax.set_mesh(self.mesh):
                self._compiled[key] = getattr(self.programs, name)(size, room).compile()
        return self._compiled[key]

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


def read_buckets(slots: int) -> list[int]:
    """Tokens of a slot that this many slots may read in one pass."""
    return [size for size in READ_BUCKETS if size <= 32 or size * slots <= READ_AT_ONCE]


def bucket(size: int, buckets: Sequence[int], most: int | None = None) -> int:
    """The smallest bucket that holds `size`, at most `most`; past the last one, the next multiple of it."""
    for bucket in buckets:
        if size <= bucket:
            return bucket if most is None else min(bucket, most)
    rounded = -(-size // buckets[-1]) * buckets[-1]
    return rounded if most is None else min(rounded, most)
