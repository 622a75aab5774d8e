"""The device's side of a sampler: its weights, its key-value cache and the programs that run on
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled, Lowered

from cotjax.errors import UsageError
from cotjax.model.cache import KVCache
from cotjax.model.fused import fuse
from cotjax.model.params import Params, param_shardings
from cotjax.model.platform import decode_options
from cotjax.sample.buckets import CAPACITY_BUCKETS, bucket, tree_buckets
from cotjax.sample.decoding import FORCED_MOST
from cotjax.sample.programs import Programs
from cotjax.sample.sampling import NO_ID, Sampling, Scalars, seed_words
from cotjax.sample.trees import Tree
from cotjax.sample.vocabulary import Stop, heightened

# States of a stop table come in multiples of this, so that most tables share a program.
_STATES = 32
Pieces = Mapping[int, Sequence[int]]  # slot -> ids


@dataclass(frozen=True)
class Drawn:
    """What one decode drew, on the host."""

    ids_BM: np.ndarray
    logprobs_BM: np.ndarray
    counts_B: np.ndarray  # tokens drawn
    ended_B: np.ndarray  # decoding.AT_LIMIT, AT_STOP, NONE_LEFT or NOT_FINITE


class Runner:
    """Runs a sampler's programs, each compiled when it is first needed.

    It knows slots by their lengths; which ids they hold is the sampler's.
    """

    def __init__(self, programs: Programs, max_length: int, tokens_V: np.ndarray):
        """`max_length`: tokens a slot may hold. `tokens_V`: bool, which ids may be drawn."""
        self.programs, self.max_length = programs, max_length
        self.reads, self.trees = programs.reads, tree_buckets(programs.slots)
        self.params: Params | None = None
        self._compiled: dict[tuple[object, ...], Compiled] = {}
        (self._tokens,) = self._put_replicated(tokens_V)
        # Stop sequences, None for the sampler's own -> their table. Shared with twins.
        self._stops: dict[object, jax.Array] = {}
        self.stop_at(None, lambda own: programs.stop_ZV)
        self.clear()

    def twin(self) -> Runner:
        """Return a runner with a cache of its own and the same weights and compiled programs."""
        twin = copy(self)
        twin.clear()
        return twin

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return len(self._compiled)

    @property
    def compilations_bound(self) -> int:
        """The most programs that this sampler ever compiles.

        For each capacity that a slot can need: one that makes or grows the cache; four for each
        size of `reads`, which read and score a piece, and keep and restore the end of a
        prompt; one for each size of `tree_buckets`; and two that decode, of which one looks back
        (Sampling.looks_back), for each height of the stop tables that were used so far.
        """
        lengths = (*range(1, self.max_length, CAPACITY_BUCKETS[0]), self.max_length)
        capacities = {bucket(length, CAPACITY_BUCKETS, self.max_length) for length in lengths}
        heights = {len(table) for table in self._stops.values()}
        return len(capacities) * (1 + 4 * len(self.reads) + len(self.trees) + 2 * len(heights))

    def stop_at(self, stop: Stop | None, table_of: Callable[[Stop], np.ndarray]) -> None:
        """Let the next decodes end at these sequences, whose table is made the first time."""
        key: object = None
        if stop is not None:
            key = tuple(each if isinstance(each, str) else tuple(each) for each in stop)
        if key not in self._stops:
            (self._stops[key],) = self._put_replicated(heightened(table_of(stop or ()), _STATES))
        self._stop = self._stops[key]

    def load(self, params: Params) -> None:
        """Place a checkpoint's weights, in the compute dtype."""
        config = self.programs.config

        def cast(x: Any) -> Any:
            x = np.asarray(x) if isinstance(x, np.ndarray) else x
            return x.astype(config.compute_as)

        # A copy: a trainer may donate its own arrays to the next step.
        self.params = jax.device_put(
            jax.tree.map(cast, params), param_shardings(config, self.programs.mesh), may_alias=False
        )
        if self.programs.fused:
            self.params = fuse(config, self.programs.mesh, self.params)

    def wait(self) -> None:
        """Return once the weights are on the devices."""
        jax.block_until_ready(self.params)

    def clear(self) -> None:
        """Make an empty cache of the smallest capacity, and give back the memory of a larger
        one.
        """
        programs = self.programs
        capacity = bucket(1, CAPACITY_BUCKETS, self.max_length)
        self.cache: KVCache = self._program(programs.empty, capacity)()
        zeros_BD = np.zeros((programs.slots, programs.config.width), programs.config.compute_as)
        (self.hidden_BD,) = self._put_by_slot(zeros_BD)

    def unload(self) -> None:
        """Free the weights and the cache. `load` and `clear` make them again."""
        self.params = None
        for array in jax.tree.leaves((self.cache, self.hidden_BD)):
            array.delete()

    def read(
        self,
        lengths_B: np.ndarray,
        pieces: Pieces,
        logprobs: Mapping[int, list[float]] | None = None,
    ) -> jax.Array:
        """Read the pieces into the cache behind `lengths_B`; return the last hidden states [B, D].

        `logprobs`: slot -> the list that its ids' log-probabilities are appended to; None scores
        nothing. Raises UsageError before `load`.
        """
        if self.params is None:
            raise UsageError("sampler: no weights; call load(params) first")
        # Also forgets prefixes that an earlier call read behind the prompts.
        self.cache = replace(self.cache, lengths_B=self._put_by_slot(lengths_B)[0])
        hidden_BD = self.hidden_BD
        self._reserve(
            max((int(lengths_B[slot]) + len(ids) for slot, ids in pieces.items()), default=0)
        )
        longest = max((len(ids) for ids in pieces.values()), default=0)
        most = min(self.reads[-1], self.cache.capacity)
        for start in range(0, longest, most):
            part = {slot: ids[start : start + most] for slot, ids in pieces.items()}
            hidden_BD, scored_BT = self._read_once(part, hidden_BD, logprobs is not None)
            if logprobs is not None:
                for slot, ids in part.items():
                    logprobs[slot].extend(scored_BT[slot, : len(ids)].tolist())
        return hidden_BD

    def _read_once(
        self, pieces: Pieces, hidden_BD: jax.Array, score: bool
    ) -> tuple[jax.Array, np.ndarray]:
        programs, capacity = self.programs, self.cache.capacity
        tokens = bucket(max(map(len, pieces.values())), self.reads, capacity)
        ids_BT = np.full((programs.slots, tokens), programs.pad_id, np.int32)
        counts_B = np.zeros(programs.slots, np.int32)
        for slot, ids in pieces.items():
            ids_BT[slot, : len(ids)], counts_B[slot] = ids, len(ids)
        arrays = self.params, self.cache, hidden_BD, *self._put_by_slot(ids_BT, counts_B)
        if score:
            program = self._program(programs.score, tokens, capacity)
            self.cache, hidden_BD, scored_BT = program(*arrays)
            return hidden_BD, np.asarray(scored_BT)
        self.cache, hidden_BD = self._program(programs.prefill, tokens, capacity)(*arrays)
        return hidden_BD, np.empty((programs.slots, 0))

    def score_trees(self, hidden_BD: jax.Array, trees: Mapping[int, Tree]) -> dict[int, np.ndarray]:
        """Return the log-probabilities of the targets of each slot's tree, by one pass.

        The trees are behind what was read last, which is where `hidden_BD` is from.
        """
        programs, capacity = self.programs, self.cache.capacity
        tokens = bucket(
            max(max(len(tree.ids), -(-len(tree.targets) // 2)) for tree in trees.values()),
            self.trees,
        )
        shape = programs.slots, tokens
        ids_BT = np.full(shape, programs.pad_id, np.int32)
        depths_BT = np.zeros(shape, np.int32)
        # Padding sees itself alone, besides the prompt.
        ends_BT = np.broadcast_to(np.arange(tokens, dtype=np.int32), shape).copy()
        parents_BE = np.full((programs.slots, 2 * tokens), -1, np.int32)
        targets_BE = np.full((programs.slots, 2 * tokens), programs.pad_id, np.int32)
        for slot, tree in trees.items():
            for array, values in (
                (ids_BT, tree.ids),
                (depths_BT, tree.depths),
                (ends_BT, tree.ends),
                (parents_BE, tree.parents),
                (targets_BE, tree.targets),
            ):
                array[slot, : len(values)] = values
        arrays = self._put_by_slot(ids_BT, depths_BT, ends_BT, parents_BE, targets_BE)
        program = self._program(programs.score_tree, tokens, capacity)
        logprobs_BE = np.asarray(program(self.params, self.cache, hidden_BD, *arrays))
        return {slot: logprobs_BE[slot, : len(tree.targets)] for slot, tree in trees.items()}

    @contextmanager
    def without_last(self, lengths_B: np.ndarray, counts: Mapping[int, int]) -> Iterator[None]:
        """Let the block overwrite the last `counts` tokens of these slots; write them back after.

        Lengths are the caller's: it reads from `lengths_B` - counts on.
        """
        counts_B = np.zeros(self.programs.slots, np.int32)
        for slot, count in counts.items():
            counts_B[slot] = count
        tokens = bucket(int(counts_B.max()), self.reads, self.cache.capacity)
        where = self._put_by_slot(lengths_B - counts_B, counts_B)
        kept = self._program(self.programs.tail, tokens, self.cache.capacity)(self.cache, where[0])
        try:
            yield
        finally:
            # The cache may have grown.
            restore = self._program(self.programs.restore, tokens, self.cache.capacity)
            self.cache = restore(self.cache, kept, *where)

    def decode(
        self,
        hidden_BD: jax.Array,
        limits: Mapping[int, int],
        seeds: Mapping[int, int],
        sampling: Sampling,
        prefixes: Pieces,
        before: Pieces,
    ) -> Drawn:
        """Draw up to `limits` tokens in each slot after `hidden_BD` and the slot's prefix.

        `prefixes`: at most FORCED_MOST ids a slot that the decode itself reads; a slot without one
        follows `hidden_BD`. `before`: all ids that a slot has read, its prefix among them, where
        `sampling` looks back.
        """
        programs, capacity = self.programs, self.cache.capacity
        limits_B = np.zeros(programs.slots, np.int32)
        seeds_B2 = np.zeros((programs.slots, 2), np.uint32)
        prefix_BP = np.full((programs.slots, FORCED_MOST), NO_ID, np.int32)
        # A prefix that the decode itself reads is cached behind the capacity.
        size = capacity + FORCED_MOST if sampling.looks_back else 0
        read_BS = np.full((programs.slots, size), programs.config.vocab_size, np.int32)
        for slot, limit in limits.items():
            limits_B[slot], seeds_B2[slot] = limit, seed_words(seeds[slot])
            prefix_BP[slot, : len(prefixes.get(slot, ()))] = prefixes.get(slot, ())
            if sampling.looks_back:
                read_BS[slot, : len(before[slot])] = before[slot]
        placed = self._put_by_slot(limits_B, seeds_B2)
        scalars = Scalars(*self._put_replicated(*sampling.scalars()))
        more = self._put_by_slot(prefix_BP, *([read_BS] if sampling.looks_back else []))
        decode = self._program(programs.decode, size, capacity, len(self._stop))
        state = self.params, self.cache, hidden_BD
        self.cache, *drawn = decode(*state, *placed, scalars, self._stop, self._tokens, *more)
        return Drawn(*map(np.asarray, drawn))

    def _reserve(self, length: int) -> None:
        """Grow the cache until `length` tokens fit into each slot."""
        # One bucket after the other, so that each capacity has one program that makes it.
        while length > self.cache.capacity:
            larger = bucket(self.cache.capacity + 1, CAPACITY_BUCKETS, self.max_length)
            grow = self._program(self.programs.grow, larger, self.cache.capacity)
            self.cache = grow(self.cache)

    def _put_by_slot(self, *arrays: np.ndarray) -> tuple[jax.Array, ...]:
        return tuple(jax.device_put(array, self.programs.by_slot) for array in arrays)

    def _put_replicated(self, *arrays: np.ndarray | np.generic) -> tuple[jax.Array, ...]:
        return tuple(jax.device_put(array, self.programs.replicated) for array in arrays)

    def _program(self, lower: Callable[..., Lowered], *sizes: int) -> Compiled:
        """Return one of `self.programs` compiled for these sizes."""
        key = (lower.__name__, *sizes)
        if key not in self._compiled:
            with jax.set_mesh(self.programs.mesh):
                options = decode_options(self.programs.mesh) if lower.__name__ == "decode" else None
                self._compiled[key] = lower(*sizes).compile(compiler_options=options)
        return self._compiled[key]
