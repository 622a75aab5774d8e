"""Generation over slots: a slot's prompt is cached once, grows turn by turn, and is sampled from.

    sampler.load(params)
    sampler.extend({0: prompt_ids, 3: other_ids})
    # Two kinds of action from one state: only their own tokens are computed.
    prompt_actions = sampler.sample({0: open_action, 3: open_action}, max_new=16)
    cot_actions = sampler.sample({0: open_think, 3: open_think}, max_new=128)
    several = sampler.samples({0: open_think}, max_new=128, temperature=0.7, seeds={0: [1, 2, 3]})
    # The log-probabilities of a given text; of several short ones, by one pass.
    logprobs = sampler.score({0: forced_trace})
    scored = sampler.score_branches({0: open_action}, {0: [one_action, another, a_third]})
    sampler.extend({0: executed_0 + observed_0, 3: executed_3 + observed_3})
    sampler.reset([3])  # an episode ended

Arrays have static shapes, so each program is compiled for a few lengths (sample/buckets.py);
`compilations_bound` says how many programs that can be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any

import numpy as np
from jax.sharding import Mesh

from cotjax.errors import NotFiniteError, UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.params import Params
from cotjax.sample.decoding import AT_STOP, FORCED_MOST, NOT_FINITE, Generation
from cotjax.sample.programs import Programs
from cotjax.sample.runner import Pieces, Runner
from cotjax.sample.sampling import Sampling
from cotjax.sample.trees import plan
from cotjax.sample.vocabulary import Stop, stop_table, token_mask


class Sampler:
    """Decodes over a fixed number of slots, with one row of the key-value cache a slot.

    A slot's text does not depend on its neighbours or its place, up to the last bit of rounding:
    the buckets follow the longest slot, and a sum over more terms may round another way.

    Slots are spread over the mesh's batch axes. On several processes, give each a mesh of its own
    devices.
    """

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh,
        *,
        slots: int,
        max_length: int,
        stop: Stop,
        pad_id: int,
        max_new: int = 128,
        pieces: Sequence[str | None] | None = None,
    ):
        """Make empty slots, without weights.

        `max_length`: tokens a slot may hold: prompt, prefix and new ones together. `stop`: what
        ends a generation by default: id sequences, or texts, recognised however tokenised.
        `pad_id`: any id of the vocabulary, for unused positions. `max_new`: the most tokens of one
        generation; each slot's cache has capacity for them, and a decode reads all of it at every
        step. `pieces`: the text that each id adds to a response, None where the id is no token;
        only tokens are drawn. None: every row of the vocabulary is a token, and `stop` holds ids.

        Raises UsageError when slots do not divide over the mesh, or lengths or ids are out of
        range.
        """
        if slots < 1:
            raise UsageError(f"sampler: slots is {slots}; it must be 1 or more")
        if not 1 <= max_length <= config.max_length:
            raise UsageError(
                f"sampler: max_length is {max_length}; the model's positions allow 1 to "
                f"{config.max_length}"
            )
        if max_new < 1:
            raise UsageError(f"sampler: max_new is {max_new}; it must be 1 or more")
        self.config, self.mesh, self.slots = config, mesh, slots
        self.max_length, self.max_new, self.pad_id = max_length, max_new, pad_id
        self._check_ids([pad_id], "pad_id")
        tokens_V = token_mask(pieces, config.vocab_size)
        self._stop_table = partial(stop_table, vocab_size=config.vocab_size, pieces=pieces)
        table_ZV = self._stop_table(stop)
        most = min(max_new, max_length)
        # Each slot's cached prompt.
        self._ids: list[list[int]] = [[] for _ in range(slots)]
        self._runner = Runner(
            Programs(config, mesh, slots, most, table_ZV, pad_id), max_length, tokens_V
        )

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each slot's cached prompt, int32 [slots]."""
        return np.array([len(ids) for ids in self._ids], np.int32)

    def prompt(self, slot: int) -> list[int]:
        """Return the ids of a slot's cached prompt."""
        self._check_slots([slot])
        return list(self._ids[slot])

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return self._runner.compilations

    @property
    def compilations_bound(self) -> int:
        """The most programs that this sampler ever compiles."""
        return self._runner.compilations_bound

    def load(self, params: Params) -> None:
        """Copy a checkpoint's weights to the devices, in the compute dtype; empty every slot."""
        self._runner.load(params)
        self._clear()

    def wait(self) -> None:
        """Return once the weights are on the devices."""
        self._runner.wait()

    def unload(self) -> None:
        """Free the weights and the cache, until the next `load`.

        A twin, which shares the weights, is unloaded by itself.
        """
        self._ids = [[] for _ in range(self.slots)]
        self._runner.unload()

    def twin(self) -> Sampler:
        """Return a sampler with the same weights and programs, and with empty slots of its own."""
        twin = copy(self)
        twin._runner = self._runner.twin()
        twin._clear()
        return twin

    def reset(self, slots: Iterable[int]) -> None:
        """Empty these slots. When all are empty, the cache shrinks to its smallest capacity."""
        emptied = list(slots)
        self._check_slots(emptied)
        for slot in emptied:
            self._ids[slot] = []
        if not any(self._ids):
            self._clear()

    def extend(self, pieces: Pieces) -> None:
        """Append ids to these slots' cached prompts; the other slots stay as they are.

        Raises UsageError, before any slot changes, when one would hold more than max_length.
        """
        self._check_slots(pieces)
        for slot, ids in pieces.items():
            self._check_ids(ids, f"slot {slot}")
            self._check_length(slot, ids)
        self._runner.hidden_BD = self._runner.read(self.lengths, pieces)
        for slot, ids in pieces.items():
            self._ids[slot] += ids

    def sample(
        self,
        prefixes: Pieces,
        *,
        max_new: int,
        seeds: Mapping[int, int] | None = None,
        back: int = 0,
        stop: Stop | None = None,
        **how: Any,
    ) -> dict[int, Generation]:
        """Decode from each of these slots' cached prompt plus its prefix, which may be empty.

        `back`: the prefix takes the place of this many of the prompt's last ids. `stop`: what ends
        these generations, in place of the sampler's own stop sequences.

        Every slot's prompt stays as it was: the next call gives what it would have given without
        this one. `how`: fields of sampling.Sampling. Greedy at temperature 0, the default; else
        each slot draws with its own seed of `seeds`, 0 .. 2**64 - 1. A slot makes up to `max_new`
        tokens, fewer where a stop sequence or max_length ends it. Limits on repetition look at the
        prompt, the prefix and the new tokens.

        Raises UsageError for a field of `how` out of range, an empty slot with an empty prefix, a
        full slot, or a temperature without seeds; NotFiniteError, naming a slot, where the model's
        logits are not finite.
        """
        several = None if seeds is None else {slot: [seed] for slot, seed in seeds.items()}
        how |= {"max_new": max_new, "seeds": several, "back": back, "stop": stop}
        samples = self.samples(prefixes, **how)
        return {slot: generations[0] for slot, generations in samples.items()}

    def samples(
        self,
        prefixes: Pieces,
        *,
        max_new: int,
        seeds: Mapping[int, Sequence[int]] | None = None,
        back: int = 0,
        stop: Stop | None = None,
        **how: Any,
    ) -> dict[int, list[Generation]]:
        """Like `sample`, with one generation for each of a slot's seeds (greedy: one).

        The slots decode together, once for each seed. No token of a prompt is read again, and
        prefixes are read once.
        """
        sampling = Sampling(**how)
        self._check_sample(prefixes, max_new, sampling, seeds, back)
        if not prefixes:
            return {}
        if sampling.temperature == 0 or seeds is None:
            seeds = {slot: [0] for slot in prefixes}
        self._runner.stop_at(stop, self._stop_table)
        if not back:
            return self._samples(prefixes, self.lengths, max_new, seeds, sampling)
        lengths_B = self.lengths
        lengths_B[list(prefixes)] -= back
        with self._runner.without_last(self.lengths, dict.fromkeys(prefixes, back)):
            return self._samples(prefixes, lengths_B, max_new, seeds, sampling)

    def _samples(
        self,
        prefixes: Pieces,
        lengths_B: np.ndarray,
        max_new: int,
        seeds: Mapping[int, Sequence[int]],
        sampling: Sampling,
    ) -> dict[int, list[Generation]]:
        """Decode after the first `lengths_B` ids of the prompts and the prefixes."""
        turns = max(len(seeds[slot]) for slot in prefixes)
        longest = max(map(len, prefixes.values()))
        # One decode reads short prefixes itself, behind the capacity. The last new token is never
        # read, hence the + 1.
        in_decode = (
            turns == 1
            and longest <= FORCED_MOST
            and longest + max_new <= self._runner.cache.new + 1
        )
        hidden_BD = self._runner.read(lengths_B, {} if in_decode else prefixes)
        before = {
            slot: [*self._ids[slot][: lengths_B[slot]], *ids] for slot, ids in prefixes.items()
        }
        limits = {slot: min(max_new, self.max_length - len(ids)) for slot, ids in before.items()}
        samples: dict[int, list[Generation]] = {slot: [] for slot in prefixes}
        for turn in range(turns):
            drawing = {slot: seeds[slot][turn] for slot in prefixes if turn < len(seeds[slot])}
            drawn = self._runner.decode(
                hidden_BD,
                {slot: limits[slot] for slot in drawing},
                drawing,
                sampling,
                prefixes if in_decode else {},
                before,
            )
            for slot in drawing:
                if drawn.ended_B[slot] == NOT_FINITE:
                    raise _not_finite(slot)
            for slot in drawing:
                count = drawn.counts_B[slot]
                samples[slot].append(
                    Generation(
                        drawn.ids_BM[slot, :count].tolist(),
                        drawn.logprobs_BM[slot, :count].tolist(),
                        bool(drawn.ended_B[slot] == AT_STOP),
                    )
                )
        return samples

    def score(self, forced: Pieces) -> dict[int, list[float]]:
        """Return the log-probability of each of these ids after the slot's prompt and earlier ids.

        Natural logarithms, under the model at temperature 1. Every slot's prompt stays as it was;
        to continue from such a text, give it to `sample` as a prefix.

        Raises UsageError, as `sample` does, for an empty or a full slot, and NotFiniteError.
        """
        self._check_forced(forced)
        logprobs: dict[int, list[float]] = {slot: [] for slot in forced}
        self._runner.read(self.lengths, forced, logprobs)
        for slot, own in logprobs.items():
            if not np.isfinite(own).all():
                raise _not_finite(slot)
        return logprobs

    def score_branches(
        self, prefixes: Pieces, branches: Mapping[int, Sequence[Sequence[int]]]
    ) -> dict[int, list[list[float]]]:
        """Return the log-probability of each id of each branch after the slot's prompt and prefix.

        A branch sees prompt, prefix and itself; branches may be equal, empty, or begin like others.
        All slots share one pass if prefix and branches of each fit into one (buckets.tree_buckets).
        Else the prefixes are read first, and the branches divided over several passes. Every slot's
        prompt stays as it was.

        Raises UsageError and NotFiniteError as `score` does.
        """
        prefix = {slot: tuple(prefixes.get(slot, ())) for slot in branches}
        texts = {slot: {tuple(each) for each in several} for slot, several in branches.items()}
        for slot, several in texts.items():
            self._check_forced({slot: [*prefix[slot], *max(several, key=len, default=())]})
            for ids in several:
                self._check_ids(ids, f"slot {slot}'s branches")
        found: dict[int, dict[tuple[int, ...], list[float]]] = {slot: {(): []} for slot in texts}
        most = self._runner.trees[-1]
        for slot, several in texts.items():
            for text in [text for text in several if len(text) > most]:
                several.remove(text)
                found[slot][text] = self.score({slot: [*prefix[slot], *text]})[slot][-len(text) :]
        texts = {slot: several - {()} for slot, several in texts.items() if several - {()}}
        trees = {slot: plan(several, most, prefix[slot]) for slot, several in texts.items()}
        hidden_BD = self._runner.read(self.lengths, {})
        if any(len(several) > 1 or not several[0].fits(most) for several in trees.values()):
            trees = {slot: plan(several, most) for slot, several in texts.items()}
            hidden_BD = self._runner.read(self.lengths, {slot: prefix[slot] for slot in trees})
        for turn in range(max(map(len, trees.values()), default=0)):
            now = {slot: several[turn] for slot, several in trees.items() if turn < len(several)}
            for slot, logprobs_E in self._runner.score_trees(hidden_BD, now).items():
                if not np.isfinite(logprobs_E).all():
                    raise _not_finite(slot)
                for text, targets in now[slot].scored.items():
                    found[slot][text] = logprobs_E[targets].tolist()
        return {
            slot: [found[slot][tuple(ids)] for ids in several] for slot, several in branches.items()
        }

    def _clear(self) -> None:
        self._ids = [[] for _ in range(self.slots)]
        self._runner.clear()

    def _check_slots(self, slots: Iterable[int]) -> None:
        for slot in slots:
            if not 0 <= slot < self.slots:
                raise UsageError(f"sampler: slot {slot} is not one of 0 .. {self.slots - 1}")

    def _check_ids(self, ids: Sequence[int], where: str) -> None:
        if len(ids) and not 0 <= min(ids) <= max(ids) < self.config.vocab_size:
            raise UsageError(
                f"sampler: {where} has an id outside the vocabulary, 0 .. "
                f"{self.config.vocab_size - 1}"
            )

    def _check_length(self, slot: int, ids: Sequence[int]) -> None:
        length = len(self._ids[slot]) + len(ids)
        if length > self.max_length:
            raise UsageError(
                f"sampler: slot {slot} would hold {length} tokens; max_length is {self.max_length}"
            )

    def _check_forced(self, forced: Pieces) -> None:
        self._check_slots(forced)
        for slot, ids in forced.items():
            self._check_ids(ids, f"slot {slot}'s forced ids")
            if not self._ids[slot]:
                raise UsageError(
                    f"sampler: slot {slot} is empty; extend it before its forced ids are scored"
                )
            self._check_length(slot, ids)

    def _check_sample(
        self,
        prefixes: Pieces,
        max_new: int,
        sampling: Sampling,
        seeds: Mapping[int, Sequence[int]] | None,
        back: int,
    ) -> None:
        if not 1 <= max_new <= self.max_new:
            raise UsageError(
                f"sampler: max_new is {max_new}; it must be 1 to {self.max_new}, the max_new that "
                "the sampler was made with"
            )
        sampling.check("sampler: ")
        self._check_slots(prefixes)
        for slot, ids in prefixes.items():
            self._check_ids(ids, f"slot {slot}'s prefix")
            length = len(self._ids[slot]) - back + len(ids)
            if not 0 <= back <= len(self._ids[slot]) or (back and not len(ids)):
                raise UsageError(
                    f"sampler: back is {back}; slot {slot} holds {len(self._ids[slot])} ids, and "
                    "a prefix must take their place"
                )
            if length == 0:
                raise UsageError(f"sampler: slot {slot} is empty; extend it, or give it a prefix")
            if length >= self.max_length:
                raise UsageError(
                    f"sampler: slot {slot} and its prefix fill max_length, {self.max_length}; "
                    "nothing can follow"
                )
            if sampling.temperature > 0 and (seeds is None or not seeds.get(slot)):
                raise UsageError(
                    f"sampler: temperature is {sampling.temperature} but slot {slot} has no seed"
                )


def _not_finite(slot: int) -> NotFiniteError:
    return NotFiniteError(
        f"slot {slot}: the model's logits are not finite; look at its weights, or play an earlier "
        "checkpoint",
        slot,
    )
