"""Generation over slots: each slot's prompt is cached once, grows turn by turn, and can be branched from.

    sampler.load(params)
    sampler.extend({0: prompt_ids, 3: other_ids})                              # read the prompts
    prompt_actions = sampler.sample({0: open_action, 3: open_action}, max_new=16)  # both actions from one state:
    cot_actions = sampler.sample({0: open_think, 3: open_think}, max_new=128)      # only their own tokens cost
    cot_samples = sampler.samples({0: open_think}, max_new=128, temperature=0.7, seeds={0: [1, 2, 3]})  # three of one
    logprobs = sampler.score({0: forced_trace})                                    # how likely is what another wrote?
    sampler.extend({0: executed_0 + observed_0, 3: executed_3 + observed_3})   # the next turn
    sampler.reset([3])                                                         # an episode ended

Arrays have static shapes, so each program is compiled for a few lengths, the buckets below; `programs_bound` says how many
programs that can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cotjax.errors import NotFiniteError, UsageError
from cotjax.model import cache as kv
from cotjax.model.config import ModelConfig
from cotjax.model.params import Params, param_shardings
from cotjax.sample.buckets import ROOM_BUCKETS, bucket, read_buckets
from cotjax.sample.programs import AT_STOP, FORCED_MOST, NOT_FINITE, Programs
from cotjax.sample.sampling import NO_ID, Sampling, Scalars, seed_words
from cotjax.sample.vocabulary import stop_table, token_mask


@dataclass(frozen=True)
class Generation:
    """What one branch made."""

    ids: list[int]  # the new tokens, after the prefix; the stop sequence is part of them
    logprobs: list[
        float
    ]  # of each, natural logarithm, under the model at temperature 1, over all rows of its vocabulary
    # A stop sequence ended it; False: it ran into max_new or into max_length, or no_repeat_ngram_size forbade every next id.
    stopped: bool


class Sampler:
    """Decodes over a fixed number of slots, with one key-value cache row a slot.

    A slot's text does not depend on its neighbours or its place, up to the last bit of rounding: the buckets follow the
    longest slot, and a sum over another number of places may round another way.

    Slots are spread over the mesh's batch axes; on several processes, give each a mesh of its own devices.
    """

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh,
        *,
        slots: int,
        max_length: int,
        stop: Sequence[Sequence[int]] | Sequence[str],
        pad_id: int,
        max_new: int = 128,
        pieces: Sequence[str | None] | None = None,
    ):
        """`max_length`: tokens a slot may hold, prompt, prefix and new ones together. `stop`: what ends a generation: id
        sequences, or texts, which are seen whichever tokens they are made of. `pad_id`: what fills unused places; any id of the
        vocabulary. `max_new`: tokens that a branch may make at most; each slot's cache has room for them, and a decode reads
        all of it at every step. `pieces`: the text that each id adds to a response, None where the id is no token; only
        tokens are drawn, so no row of the model past them is. None: every row is a token, and `stop` holds ids.

        Raises UsageError when slots do not divide over the mesh, or lengths or ids are out of range.
        """
        if slots < 1:
            raise UsageError(f"sampler: slots is {slots}; it must be 1 or more")
        if not 1 <= max_length <= config.max_length:
            raise UsageError(
                f"sampler: max_length is {max_length}; the model's positions allow 1 to {config.max_length}"
            )
        if max_new < 1:
            raise UsageError(f"sampler: max_new is {max_new}; it must be 1 or more")
        self.config, self.mesh, self.slots, self.max_length, self.pad_id = (
            config,
            mesh,
            slots,
            max_length,
            pad_id,
        )
        self.max_new = max_new
        self._check_ids([pad_id], "pad_id")
        tokens_V, table = (
            token_mask(pieces, config.vocab_size),
            stop_table(stop, config.vocab_size, pieces),
        )
        self.programs = Programs(config, mesh, slots, min(max_new, max_length), table, pad_id)
        self._reads = read_buckets(slots)
        self._by_slot, self._whole = self.programs.by_slot, self.programs.whole
        self._vocabulary = self._put_whole(
            table, tokens_V
        )  # what ends a generation, and what may be drawn
        self._compiled: dict[tuple[Any, ...], Any] = {}
        self._params: Params | None = None
        self._ids: list[list[int]] = [[] for _ in range(slots)]  # each slot's cached prompt
        self._cache: kv.KVCache
        self._hidden_BD: jax.Array
        self._forget()

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each slot's cached prompt, int32 [slots]."""
        return np.array([len(ids) for ids in self._ids], np.int32)

    def prompt(self, slot: int) -> list[int]:
        """The ids of a slot's cached prompt."""
        self._check_slots([slot])
        return list(self._ids[slot])

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return len(self._compiled)

    @property
    def programs_bound(self) -> int:
        """The most programs that this sampler ever compiles.

        For each room that a slot can need: one that makes or grows the cache, one that reads and one that scores a piece of
        each size of `read_buckets`, and two that decode, of which one looks back (Sampling.looks_back).
        """
        lengths = (*range(1, self.max_length, ROOM_BUCKETS[0]), self.max_length)
        rooms = {bucket(length, ROOM_BUCKETS, self.max_length) for length in lengths}
        return len(rooms) * (1 + 2 * len(self._reads) + 2)

    def load(self, params: Params) -> None:
        """Places a checkpoint's weights, in the compute dtype, and empties every slot."""
        compute = self.config.compute_as
        shardings = param_shardings(self.config, self.mesh)
        cast = jax.tree.map(
            lambda x: (
                np.asarray(x).astype(compute) if isinstance(x, np.ndarray) else x.astype(compute)
            ),
            params,
        )
        # A copy: a trainer may donate its own arrays to the next step.
        self._params = jax.device_put(cast, shardings, may_alias=False)
        self._forget()

    def reset(self, slots: Iterable[int]) -> None:
        """Empties these slots."""
        emptied = list(slots)
        self._check_slots(emptied)
        for slot in emptied:
            self._ids[slot] = []
        if not any(self._ids):
            self._forget()

    def extend(self, pieces: Mapping[int, Sequence[int]]) -> None:
        """Appends ids to these slots' cached prompts; the other slots stay as they are.

        Raises UsageError, before any slot changes, when one would hold more than max_length.
        """
        self._check_slots(pieces)
        for slot, ids in pieces.items():
            self._check_ids(ids, f"slot {slot}")
            self._check_room(slot, ids)
        self._hidden_BD = self._read(pieces)
        for slot, ids in pieces.items():
            self._ids[slot] += ids

    def sample(
        self,
        prefixes: Mapping[int, Sequence[int]],
        *,
        max_new: int,
        seeds: Mapping[int, int] | None = None,
        **how: Any,
    ) -> dict[int, Generation]:
        """Decodes from each of these slots' cached prompt plus its prefix (which may be empty), and leaves every slot's
        prompt as it was: the next extend or branch gives what it would have given without this one.

        `how` is the fields of sampling.Sampling. Greedy at temperature 0, the default; else each slot samples with its own seed
        of `seeds`, 0 .. 2**64 - 1. A slot makes up to `max_new` tokens, fewer where a stop sequence or max_length ends it. What
        limits repetition looks at the prompt, the prefix and what was made.

        Raises UsageError for a field of `how` out of range, an empty slot with an empty prefix, one with no room left, or
        sampling without seeds; NotFiniteError, naming a slot, where the model's logits are not finite.
        """
        several = None if seeds is None else {slot: [seed] for slot, seed in seeds.items()}
        return {
            slot: made[0]
            for slot, made in self.samples(prefixes, max_new=max_new, seeds=several, **how).items()
        }

    def samples(
        self,
        prefixes: Mapping[int, Sequence[int]],
        *,
        max_new: int,
        seeds: Mapping[int, Sequence[int]] | None = None,
        **how: Any,
    ) -> dict[int, list[Generation]]:
        """`sample`, but each slot makes as many generations as it has seeds, one of each (greedy: one).

        The slots decode together, once for each seed, from prefixes that are read once: no token of a prompt or a prefix is read
        again.
        """
        sampling = Sampling(**how)
        self._check_branch(prefixes, max_new, sampling, seeds)
        if not prefixes:
            return {}
        if sampling.temperature == 0:
            seeds = {slot: [0] for slot in prefixes}  # greedy: whatever the seeds
        turns = max(len(seeds[slot]) for slot in prefixes)
        longest = max(map(len, prefixes.values()))
        # One decode takes short prefixes itself, behind the room where what it makes lies.
        given = (
            turns == 1 and longest <= FORCED_MOST and longest + max_new <= self._cache.new + 1
        )  # nobody reads the last one made
        hidden_BD = self._read({} if given else prefixes)
        made: dict[int, list[Generation]] = {slot: [] for slot in prefixes}
        for turn in range(turns):
            drawn = {slot: seeds[slot][turn] for slot in prefixes if turn < len(seeds[slot])}
            for slot, generation in self._decode(
                hidden_BD, prefixes, drawn, max_new, sampling, given
            ).items():
                made[slot].append(generation)
        return made

    def score(self, forced: Mapping[int, Sequence[int]]) -> dict[int, list[float]]:
        """The log-probability (natural, under the model at temperature 1) of each of these ids after the slot's cached
        prompt and the ids before it, and leaves every slot's prompt as it was. To go on after such a trace, give it to
        `sample` as a prefix.

        Raises UsageError, as `sample` does, for an empty slot or one with too little room, and NotFiniteError.
        """
        self._check_slots(forced)
        for slot, ids in forced.items():
            self._check_ids(ids, f"slot {slot}'s forced ids")
            if not self._ids[slot]:
                raise UsageError(
                    f"sampler: slot {slot} is empty; extend it before its forced ids are scored"
                )
            self._check_room(slot, ids)
        logprobs: dict[int, list[float]] = {slot: [] for slot in forced}
        self._read(forced, logprobs)
        for slot, own in logprobs.items():
            if not np.isfinite(own).all():
                raise _not_finite(slot)
        return logprobs

    # Below: the cache and its programs.

    def _forget(self) -> None:
        """Empties every slot and gives back the cache's memory beyond the smallest room."""
        self._ids = [[] for _ in range(self.slots)]
        config, slots, room = self.config, self.slots, bucket(1, ROOM_BUCKETS, self.max_length)
        self._cache = self._program("empty", room)()
        zeros_BD = np.zeros((slots, config.width), config.compute_as)
        (self._hidden_BD,) = self._put_by_slot(zeros_BD)

    def _read(
        self, pieces: Mapping[int, Sequence[int]], logprobs: Mapping[int, list[float]] | None = None
    ) -> jax.Array:
        """Reads the pieces into the cache, from the prompts' lengths on; returns the last hidden states. `logprobs`: slot ->
        where the log-probabilities of its ids are put."""
        if self._params is None:
            raise UsageError("sampler: no weights; call load(params) first")
        self._set_lengths()  # a branch before this one read its prefixes into the room past the prompts; forget them
        hidden_BD = self._hidden_BD
        longest = max((len(ids) for ids in pieces.values()), default=0)
        self._make_room(
            max((len(self._ids[slot]) + len(ids) for slot, ids in pieces.items()), default=0)
        )
        most = min(self._reads[-1], self._cache.room)
        for start in range(0, longest, most):
            passing = {slot: ids[start : start + most] for slot, ids in pieces.items()}
            tokens = bucket(max(map(len, passing.values())), self._reads, self._cache.room)
            ids_BT, counts_B = (
                np.full((self.slots, tokens), self.pad_id, np.int32),
                np.zeros(self.slots, np.int32),
            )
            for slot, ids in passing.items():
                ids_BT[slot, : len(ids)], counts_B[slot] = ids, len(ids)
            read = self._program("prefill" if logprobs is None else "score", tokens)
            self._cache, hidden_BD, *scored = read(
                self._params, self._cache, hidden_BD, *self._put_by_slot(ids_BT, counts_B)
            )
            if logprobs is not None:
                scored_BT = np.asarray(scored[0])
                for slot, ids in passing.items():
                    logprobs[slot].extend(scored_BT[slot, : len(ids)].tolist())
        return hidden_BD

    def _decode(
        self,
        hidden_BD: jax.Array,
        prefixes: Mapping[int, Sequence[int]],
        seeds: Mapping[int, int],
        max_new: int,
        sampling: Sampling,
        given: bool,
    ) -> dict[int, Generation]:
        """One generation for each slot of `seeds`, after the prefixes: they are `given` to the decode, or were just read."""
        limits_B = np.zeros(self.slots, np.int32)
        seeds_B2 = np.zeros((self.slots, 2), np.uint32)
        prefix_BP = np.full((self.slots, FORCED_MOST), NO_ID, np.int32)
        # A prefix that the decode takes itself lies behind the room.
        size = self._cache.room + FORCED_MOST if sampling.looks_back else 0
        read_BS = np.full((self.slots, size), self.config.vocab_size, np.int32)
        for slot, seed in seeds.items():
            read = [*self._ids[slot], *prefixes[slot]] if sampling.looks_back else []
            limits_B[slot] = min(
                max_new, self.max_length - len(self._ids[slot]) - len(prefixes[slot])
            )
            seeds_B2[slot], read_BS[slot, : len(read)] = seed_words(seed), read
            if given:
                prefix_BP[slot, : len(prefixes[slot])] = prefixes[slot]
        decode = self._program("decode", size)
        scalars = Scalars(*self._put_whole(*sampling.scalars()))
        placed = self._put_by_slot(
            limits_B, seeds_B2, prefix_BP, *([read_BS] if sampling.looks_back else [])
        )
        self._cache, *made = decode(
            self._params,
            self._cache,
            hidden_BD,
            *placed[:2],
            scalars,
            *self._vocabulary,
            *placed[2:],
        )
        ids_BM, logprobs_BM, counts_B, ended_B = map(np.asarray, made)
        for slot in seeds:
            if ended_B[slot] == NOT_FINITE:
                raise _not_finite(slot)
        return {
            slot: Generation(
                ids_BM[slot, :count].tolist(),
                logprobs_BM[slot, :count].tolist(),
                bool(ended_B[slot] == AT_STOP),
            )
            for slot, count in ((slot, counts_B[slot]) for slot in seeds)
        }

    def _make_room(self, length: int) -> None:
        while (
            length > self._cache.room
        ):  # one bucket after the other, so that there is one program a room
            room = bucket(self._cache.room + 1, ROOM_BUCKETS, self.max_length)
            self._cache = self._program("grow", room)(self._cache)

    def _set_lengths(self) -> None:
        (lengths_B,) = self._put_by_slot(self.lengths)
        self._cache = replace(self._cache, lengths_B=lengths_B)

    def _put_by_slot(self, *arrays: np.ndarray) -> tuple[jax.Array, ...]:
        return tuple(jax.device_put(array, self._by_slot) for array in arrays)

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
            raise UsageError(
                f"sampler: {where} has an id outside the vocabulary, 0 .. {self.config.vocab_size - 1}"
            )

    def _check_room(self, slot: int, ids: Sequence[int]) -> None:
        length = len(self._ids[slot]) + len(ids)
        if length > self.max_length:
            raise UsageError(
                f"sampler: slot {slot} would hold {length} tokens; max_length is {self.max_length}"
            )

    def _check_branch(
        self,
        prefixes: Mapping[int, Sequence[int]],
        max_new: int,
        sampling: Sampling,
        seeds: Mapping[int, Sequence[int]] | None,
    ) -> None:
        if not 1 <= max_new <= self.max_new:
            raise UsageError(
                f"sampler: max_new is {max_new}; it must be 1 to {self.max_new}, the max_new that the sampler was made with"
            )
        sampling.check("sampler: ")
        self._check_slots(prefixes)
        for slot, ids in prefixes.items():
            self._check_ids(ids, f"slot {slot}'s prefix")
            length = len(self._ids[slot]) + len(ids)
            if length == 0:
                raise UsageError(
                    f"sampler: slot {slot} is empty; extend it, or give the branch a prefix"
                )
            if length >= self.max_length:
                raise UsageError(
                    f"sampler: slot {slot} and its prefix fill max_length, {self.max_length}; nothing can follow"
                )
            if sampling.temperature > 0 and (seeds is None or not seeds.get(slot)):
                raise UsageError(
                    f"sampler: temperature is {sampling.temperature} but slot {slot} has no seed"
                )


def _not_finite(slot: int) -> NotFiniteError:
    return NotFiniteError(
        f"slot {slot}: the model's logits are not finite; look at its weights, or play an earlier checkpoint",
        slot,
    )
