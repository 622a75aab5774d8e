"""Logits to ids. Letters are those of model/decoder.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from cotjax.errors import UsageError
from cotjax.model.platform import forms_here

# "No id": after the end of a prefix, and where nothing is left to draw.
NO_ID = -1
_MOST_INT32, _LEAST_FLOAT32, _MOST_FLOAT32 = 2**31 - 1, 2.0**-126, 2.0**127
_LONGEST_NGRAM = 1024  # each id of it costs a pass over all that was read, for every token


def slot_key(seed_2: jax.Array) -> jax.Array:
    """Return a slot's random key, from its seed's low and high 32 bits."""
    return jax.random.fold_in(jax.random.key(seed_2[0]), seed_2[1])


def seed_words(seed: int) -> np.ndarray:
    """Return a seed's low and high 32 bits, uint32 [2]. Raises UsageError out of 0 .. 2**64 - 1."""
    if not 0 <= seed < 2**64:
        raise UsageError(f"sampler: seed {seed} is outside 0 .. 2**64 - 1")
    return np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)


@dataclass(frozen=True)
class Sampling:
    """How the next id is drawn.

    The terms and their order (penalty, n-grams, temperature, top-k, top-p) are those of
    transformers.
    """

    temperature: float = 0.0  # logits are divided by it; 0: greedy, whatever top_k and top_p are
    top_k: int = 0  # draw among this many most likely ids; 0: all
    # Only the most likely ids whose probabilities just add up to this or more, of equally likely
    # ones the lower; 1: all.
    top_p: float = 1.0
    # Divides the positive logits of ids that are in the prompt or were made, and multiplies the
    # negative ones; 1: no penalty.
    repetition_penalty: float = 1.0
    # Forbid repeating any n-gram of this size in prompt + response (0: off). Where every id is
    # forbidden, the response ends.
    no_repeat_ngram_size: int = 0

    @property
    def looks_back(self) -> bool:
        """Whether the next id depends on earlier ids other than through the model."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0

    def check(self, where: str) -> None:
        """Raise UsageError, naming `where`, for a value out of range."""
        for name, fits, range_ in (
            ("temperature", 0 <= self.temperature < inf, "0 or more"),
            ("top_k", 0 <= self.top_k <= _MOST_INT32, f"0 to {_MOST_INT32}"),
            ("top_p", 0 < self.top_p <= 1, "over 0 and at most 1"),
            (
                "repetition_penalty",
                _LEAST_FLOAT32 <= self.repetition_penalty <= _MOST_FLOAT32,
                "over 0, and finite in float32",
            ),
            (
                "no_repeat_ngram_size",
                0 <= self.no_repeat_ngram_size <= _LONGEST_NGRAM,
                f"0 to {_LONGEST_NGRAM}",
            ),
        ):
            if not fits:
                raise UsageError(f"{where}{name} is {getattr(self, name)}; it must be {range_}")

    def scalars(self) -> Scalars[np.generic]:
        """Return these settings as arguments of a program."""
        penalty, size = np.float32(self.repetition_penalty), np.int32(self.no_repeat_ngram_size)
        return Scalars(
            np.float32(self.temperature),
            np.int32(self.top_k),
            np.float32(self.top_p),
            penalty,
            size,
        )


Number = TypeVar("Number")


class Scalars(NamedTuple, Generic[Number]):
    """Sampling as arguments of a program: one program serves all values."""

    temperature: Number
    top_k: Number
    top_p: Number
    repetition_penalty: Number
    no_repeat_ngram_size: Number


class Past(NamedTuple):
    """The ids that slots have read and drawn so far, for a Sampling that looks back."""

    ids_BS: jax.Array  # int32: the ids in order, from index 0; vocab_size after the last
    lengths_B: jax.Array  # int32: how many there are
    seen_BV: jax.Array  # bool: which ids are among them


def choose(
    logits_BV: jax.Array,
    scalars: Scalars[jax.Array],
    seeds_B2: jax.Array,
    index_B: jax.Array,
    past: Past | None = None,
    tokens_V: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return each slot's next id, and its log-probability under the model: at temperature 1, over
    all rows of the vocabulary, with no filter and no penalty, whatever the id was drawn by.

    Temperature 0 takes the most likely id. Else the noise depends on nothing but (the slot's seed,
    its `index_B`, the id): a slot's text is the same whoever its neighbours are and wherever in the
    batch it sits. `past`: None where the drawing does not look back. `tokens_V`: which ids are
    tokens, the only ones drawn; None: all.

    An id is NO_ID where none is left to draw. A log-probability is not finite where a logit is NaN
    or infinite.
    """

    def noisy(scores_BV: jax.Array) -> jax.Array:
        def noise(seed_2: jax.Array, index: jax.Array) -> jax.Array:
            return jax.random.gumbel(
                jax.random.fold_in(slot_key(seed_2), index), scores_BV.shape[1:], jnp.float32
            )

        scores_BV = scores_BV / scalars.temperature
        filtering = (scalars.top_k > 0) | (scalars.top_p < 1)
        kept_BV = jax.lax.cond(
            filtering, partial(keep_likely, scalars=scalars), lambda scores_BV: scores_BV, scores_BV
        )
        return kept_BV + jax.vmap(noise)(seeds_B2, index_B)

    scores_BV = logits_BV if past is None else looking_back(logits_BV, past, scalars)
    if tokens_V is not None:
        scores_BV = jnp.where(tokens_V[None, :], scores_BV, -jnp.inf)
    scores_BV = jax.lax.cond(scalars.temperature > 0, noisy, lambda scores_BV: scores_BV, scores_BV)
    ids_B = _first_largest(scores_BV)
    chosen_B = jnp.take_along_axis(logits_BV, jnp.maximum(ids_B, 0)[:, None], axis=-1)[:, 0]
    return ids_B, chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)


def _first_largest(scores_BV: jax.Array) -> jax.Array:
    """Return the argmax over V, the first of equals; NO_ID for a row of -inf, or with a NaN."""
    V = scores_BV.shape[-1]
    top_B1 = scores_BV.max(axis=-1, keepdims=True)
    if forms_here().argmax_by_max:
        ids_1V = jnp.arange(V, dtype=jnp.int32)[None, :]
        first_B = jnp.where(scores_BV == top_B1, ids_1V, V).min(axis=-1)
    else:
        first_B = jnp.argmax(scores_BV, axis=-1).astype(jnp.int32)
    return jnp.where(top_B1[:, 0] > -jnp.inf, first_B, NO_ID)


def looking_back(logits_BV: jax.Array, past: Past, scalars: Scalars[jax.Array]) -> jax.Array:
    """Return scores after the repetition penalty, -inf for ids that would repeat an n-gram."""
    scores_BV = penalised(logits_BV, past.seen_BV, scalars.repetition_penalty)

    def without_repeats(scores_BV: jax.Array) -> jax.Array:
        return jnp.where(repeats(past, scalars.no_repeat_ngram_size), -jnp.inf, scores_BV)

    return jax.lax.cond(
        scalars.no_repeat_ngram_size > 0, without_repeats, lambda scores_BV: scores_BV, scores_BV
    )


def repeats(past: Past, size: jax.Array) -> jax.Array:
    """Return the ids that would repeat an n-gram of this size (1 or more): bool [B, V].

    Paulus et al., 2018. Of size 3 after a b c d a b only c: it followed the last two ids, a b,
    before.
    """
    B, S = past.ids_BS.shape
    places_1S, rows_B1 = jnp.arange(S)[None, :], jnp.arange(B)[:, None]

    def same(back: jax.Array, following_BS: jax.Array) -> jax.Array:
        last_B1 = jnp.take_along_axis(
            past.ids_BS, jnp.maximum(past.lengths_B - back, 0)[:, None], axis=1
        )
        return following_BS & (jnp.roll(past.ids_BS, back, axis=1) == last_B1)

    # Places whose id follows the last size - 1 ids; what rolls over the end falls on places before
    # size - 1.
    whole_BS = (places_1S >= size - 1) & (places_1S < past.lengths_B[:, None])
    following_BS = jax.lax.fori_loop(1, size, same, whole_BS)
    V = past.seen_BV.shape[1]
    return jnp.zeros((B, V), bool).at[rows_B1, jnp.where(following_BS, past.ids_BS, V)].set(True)


def penalised(logits_BV: jax.Array, seen_BV: jax.Array, penalty: jax.Array) -> jax.Array:
    """Return the logits with those of seen ids made less likely (Keskar et al., 2019)."""
    return jnp.where(
        seen_BV, jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV
    )


def keep_likely(scores_BV: jax.Array, scalars: Scalars[jax.Array]) -> jax.Array:
    """Return the scores with -inf where top-k (Fan et al., 2018) or top-p (Holtzman et al., 2019;
    of what top-k leaves) drops the id.

    Top-k keeps every id as likely as the k-th. Top-p keeps no more ids than it needs: of those as
    likely as the last one kept the lower ids. (transformers does both, but for which of the equally
    likely ids it keeps: that its sort decides.)
    """
    V = scores_BV.shape[-1]
    falling_BV = -jnp.sort(-scores_BV, axis=-1)
    k = jnp.where(scalars.top_k > 0, jnp.minimum(scalars.top_k, V), V)
    kth_B1 = jnp.take_along_axis(
        falling_BV, jnp.broadcast_to(k - 1, (scores_BV.shape[0], 1)), axis=-1
    )
    among_BV = falling_BV >= kth_B1
    shares_BV = jax.nn.softmax(jnp.where(among_BV, falling_BV, -jnp.inf), axis=-1)
    more_likely_BV = jnp.cumsum(shares_BV, axis=-1) - shares_BV
    # At 1 all are kept, also where the sum rounds to 1 before its last summand.
    kept_B = (among_BV & ((more_likely_BV < scalars.top_p) | (scalars.top_p >= 1))).sum(axis=-1)
    last_B1 = jnp.take_along_axis(falling_BV, jnp.maximum(kept_B - 1, 0)[:, None], axis=-1)
    above_BV, level_BV = scores_BV > last_B1, scores_BV == last_B1
    kept_of_level_B1 = kept_B[:, None] - above_BV.sum(axis=-1, keepdims=True)
    return jnp.where(
        above_BV | (level_BV & (jnp.cumsum(level_BV, axis=-1) <= kept_of_level_B1)),
        scores_BV,
        -jnp.inf,
    )
