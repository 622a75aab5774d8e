"""Logits -> ids, and when a generation ends. Letters are those of model/decoder.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cotjax.errors import UsageError

# Stands for "no id" in stop sequences and in what a slot has not yet made.
NO_ID = -1


def slot_key(seed_2: jax.Array) -> jax.Array:
    """The random key of one slot, from its seed's low and high 32 bits."""
    return jax.random.fold_in(jax.random.key(seed_2[0]), seed_2[1])


def seed_words(seed: int) -> np.ndarray:
    """A seed's low and high 32 bits, uint32 [2]. Raises UsageError for one outside 0 .. 2**64 - 1."""
    if not 0 <= seed < 2**64:
        raise UsageError(f"sampler: seed {seed} is outside 0 .. 2**64 - 1")
    return np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)


@dataclass(frozen=True)
class Sampling:
    """How the next id is drawn. The terms, and their order (penalty, n-grams, temperature, top-k, top-p), are those of transformers."""

    temperature: float = 0.0  # logits are divided by it; 0: greedy, whatever top_k and top_p are
    top_k: int = 0  # only ids among so many most likely; 0: all
    top_p: float = 1.0  # only the most likely ids whose probabilities just add up to this or more; 1: all
    # Divides the positive logits of ids that are in the prompt or were made, and multiplies the negative ones; 1: no penalty.
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0  # no so many ids in a row come twice in prompt and response together; 0: they may

    @property
    def looks_back(self) -> bool:
        """Whether the next id depends on which ids were read, beyond what the model makes of them."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0

    def check(self, where: str) -> None:
        """Raise UsageError, naming `where`, for a value out of range."""
        for name, fits, range_ in (
            ("temperature", 0 <= self.temperature < inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "over 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < inf, "over 0"),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size >= 0, "0 or more"),
        ):
            if not fits:
                raise UsageError(f"{where}{name} is {getattr(self, name)}; it must be {range_}")

    def scalars(self) -> Scalars:
        """The same for a program."""
        penalty, size = np.float32(self.repetition_penalty), np.int32(self.no_repeat_ngram_size)
        return Scalars(np.float32(self.temperature), np.int32(self.top_k), np.float32(self.top_p), penalty, size)


class Scalars(NamedTuple):
    """Sampling as a program takes it: one program serves all values."""

    temperature: jax.Array | np.ndarray
    top_k: jax.Array | np.ndarray
    top_p: jax.Array | np.ndarray
    repetition_penalty: jax.Array | np.ndarray
    no_repeat_ngram_size: jax.Array | np.ndarray


class Past(NamedTuple):
    """What slots have read and made so far, for a Sampling that looks back."""

    ids_BS: jax.Array  # int32: the ids in order, from index 0; vocab_size after the last
    lengths_B: jax.Array  # int32: how many there are
    seen_BV: jax.Array  # bool: which ids are among them


def choose(
    logits_BV: jax.Array, scalars: Scalars, seeds_B2: jax.Array, index_B: jax.Array, past: Past | None = None
) -> tuple[jax.Array, jax.Array]:
    """Each slot's next id and its log-probability under the model: at temperature 1, with no filter and no penalty, whatever
    the id was drawn by.

    Temperature 0 takes the most likely id. Else the noise depends on nothing but (the slot's seed, its `index_B`, the id): a
    slot's text is the same whoever its neighbours are and wherever in the batch it sits. `past`: None where the drawing does
    not look back.
    """

    def noisy(scores_BV: jax.Array) -> jax.Array:
        def noise(seed_2: jax.Array, index: jax.Array) -> jax.Array:
            return jax.random.gumbel(jax.random.fold_in(slot_key(seed_2), index), scores_BV.shape[1:], jnp.float32)

        scores_BV = scores_BV / scalars.temperature
        filtering = (scalars.top_k > 0) | (scalars.top_p < 1)
        kept_BV = jax.lax.cond(filtering, partial(keep_likely, scalars=scalars), lambda scores_BV: scores_BV, scores_BV)
        return kept_BV + jax.vmap(noise)(seeds_B2, index_B)

    scores_BV = logits_BV if past is None else looking_back(logits_BV, past, scalars)
    scores_BV = jax.lax.cond(scalars.temperature > 0, noisy, lambda scores_BV: scores_BV, scores_BV)
    ids_B = _first_largest(scores_BV)
    chosen_B = jnp.take_along_axis(logits_BV, ids_B[:, None], axis=-1)[:, 0]
    return ids_B, chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)


def _first_largest(scores_BV: jax.Array) -> jax.Array:
    """argmax over V, in two reductions that a CPU does many places at a time, which it does not with the one of two results."""
    V = scores_BV.shape[-1]
    is_top_BV = scores_BV == scores_BV.max(axis=-1, keepdims=True)
    ids_1V = jnp.arange(V, dtype=jnp.int32)[None, :]
    return jnp.minimum(jnp.where(is_top_BV, ids_1V, V).min(axis=-1), V - 1)  # V - 1: a row of NaN has no largest


def looking_back(logits_BV: jax.Array, past: Past, scalars: Scalars) -> jax.Array:
    """Scores after the repetition penalty, with -inf for ids that would repeat an n-gram."""
    scores_BV = penalised(logits_BV, past.seen_BV, scalars.repetition_penalty)

    def without_repeats(scores_BV: jax.Array) -> jax.Array:
        return jnp.where(repeats(past, scalars.no_repeat_ngram_size), -jnp.inf, scores_BV)

    return jax.lax.cond(scalars.no_repeat_ngram_size > 0, without_repeats, lambda scores_BV: scores_BV, scores_BV)


def repeats(past: Past, size: jax.Array) -> jax.Array:
    """Which ids would end an n-gram of this size (1 or more) that is in the slot's past: bool [B, V] (Paulus et al., 2018).

    Of size 3 after a b c d a b only c: it followed the last two ids, a b, once before.
    """
    B, S = past.ids_BS.shape
    places_1S, rows_B1 = jnp.arange(S)[None, :], jnp.arange(B)[:, None]

    def same(back: jax.Array, following_BS: jax.Array) -> jax.Array:
        last_B1 = jnp.take_along_axis(past.ids_BS, jnp.maximum(past.lengths_B - back, 0)[:, None], axis=1)
        return following_BS & (jnp.roll(past.ids_BS, back, axis=1) == last_B1)

    # Places whose id follows the last size - 1 ids; what rolls over the end falls on places before size - 1.
    whole_BS = (places_1S >= size - 1) & (places_1S < past.lengths_B[:, None])
    following_BS = jax.lax.fori_loop(1, size, same, whole_BS)
    V = past.seen_BV.shape[1]
    return jnp.zeros((B, V), bool).at[rows_B1, jnp.where(following_BS, past.ids_BS, V)].set(True)


def penalised(logits_BV: jax.Array, seen_BV: jax.Array, penalty: jax.Array) -> jax.Array:
    """Keskar et al., 2019: the logits of ids that were seen, made less likely by the penalty."""
    return jnp.where(seen_BV, jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV)


def keep_likely(scores_BV: jax.Array, scalars: Scalars) -> jax.Array:
    """Scores with -inf where top-k (Fan et al., 2018) or top-p (Holtzman et al., 2019; of what top-k leaves) drops the id.
    An id as likely as the last one kept is kept."""
    V = scores_BV.shape[-1]
    falling_BV = -jnp.sort(-scores_BV, axis=-1)
    k = jnp.where(scalars.top_k > 0, jnp.minimum(scalars.top_k, V), V)
    among_1V = jnp.arange(V)[None, :] < k
    shares_BV = jax.nn.softmax(jnp.where(among_1V, falling_BV, -jnp.inf), axis=-1)
    more_likely_BV = jnp.cumsum(shares_BV, axis=-1) - shares_BV
    # At 1 all are kept, also where the sum rounds to 1 before its last summand.
    kept_B = (among_1V & ((more_likely_BV < scalars.top_p) | (scalars.top_p >= 1))).sum(axis=-1)
    last_B1 = jnp.take_along_axis(falling_BV, kept_B[:, None] - 1, axis=-1)
    return jnp.where(scores_BV >= last_B1, scores_BV, -jnp.inf)


def stop_table(stop: Sequence[Sequence[int]]) -> np.ndarray:
    """Stop sequences as one int32 array [sequences, longest], filled with NO_ID on the left.

    Raises UsageError for an empty sequence: it would end every generation before its first token.
    """
    for sequence in stop:
        if len(sequence) == 0:
            raise UsageError("sampler: a stop sequence is empty; give at least one id")
    longest = max((len(sequence) for sequence in stop), default=1)
    table = np.full((len(stop), longest), NO_ID, np.int32)
    for row, sequence in enumerate(stop):
        table[row, longest - len(sequence) :] = sequence
    return table


def stops(recent_BW: jax.Array, stop_ZW: jax.Array) -> jax.Array:
    """Whether each slot's last W new ids end with one of the Z stop sequences: bool [B].

    Stop sequences (7) and (4 5) make the table [[-1 7] [4 5]]; of the slots' last two ids [[9 7] [4 5] [-1 5] [5 4]]
    (the third has made one id so far) the first two end.
    """
    same_BZW = (recent_BW[:, None, :] == stop_ZW[None]) | (stop_ZW == NO_ID)[None]
    return same_BZW.all(axis=-1).any(axis=-1)
