"""Logits -> ids, and when a generation ends. Letters are those of model/decoder.py."""

from __future__ import annotations

from collections.abc import Sequence

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


def choose(logits_BV: jax.Array, temperature: jax.Array, seeds_B2: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each slot's next id and its log-probability under the model (at temperature 1, whatever the one sampled at).

    Temperature 0 takes the most likely id. Else the noise depends on nothing but (the slot's seed, `index`, the id): a
    slot's text is the same whoever its neighbours are and wherever in the batch it sits.
    """

    def noisy(logits_BV: jax.Array) -> jax.Array:
        def noise(seed_2: jax.Array) -> jax.Array:
            return jax.random.gumbel(jax.random.fold_in(slot_key(seed_2), index), logits_BV.shape[1:], jnp.float32)

        return logits_BV / temperature + jax.vmap(noise)(seeds_B2)

    ids_B = jnp.argmax(jax.lax.cond(temperature > 0, noisy, lambda logits_BV: logits_BV, logits_BV), axis=-1)
    chosen_B = jnp.take_along_axis(logits_BV, ids_B[:, None], axis=-1)[:, 0]
    return ids_B.astype(jnp.int32), chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)


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
