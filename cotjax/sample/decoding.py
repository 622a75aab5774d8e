"""One decode: the loop that draws tokens in every slot until all are done."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cotjax.model import cache as kv
from cotjax.model.config import ModelConfig
from cotjax.model.decoder import logits
from cotjax.model.params import Params
from cotjax.sample.sampling import NO_ID, Past, Scalars, choose

# Ids of a prefix that a decode reads before it draws its own, one a step. Longer prefixes are read
# in a pass of their own, which costs as much as several steps.
FORCED_MOST = 8
# Why a slot drew no more: its limit (or it has not ended yet), a stop sequence, every id forbidden,
# logits that are not finite.
AT_LIMIT, AT_STOP, NONE_LEFT, NOT_FINITE = range(4)


@dataclass(frozen=True)
class Generation:
    """The tokens drawn for one slot."""

    # After the prefix; a stop sequence is part of them.
    ids: list[int]
    # Natural logarithms of the ids' probabilities under the model at temperature 1, over all rows
    # of its vocabulary.
    logprobs: list[float]
    # True: a stop sequence ended it. False: max_new or max_length did, or no_repeat_ngram_size
    # forbade every next id.
    stopped: bool

    @property
    def new_tokens(self) -> int:
        """Number of ids."""
        return len(self.ids)


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


@dataclass(frozen=True, eq=False)
class _Given:
    """What stays the same throughout a decode."""

    config: ModelConfig
    params: Params
    limits_B: jax.Array
    seeds_B2: jax.Array
    scalars: Scalars[jax.Array]
    stop_ZV: jax.Array
    tokens_V: jax.Array
    forced_BX: jax.Array  # each slot's prefix, then NO_ID
    pad_id: int


def decode(
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
    B, P = prefix_BP.shape
    forced_B = (prefix_BP != NO_ID).sum(axis=1)
    forced_BX = jnp.pad(prefix_BP, ((0, 0), (0, most)), constant_values=NO_ID)
    given = _Given(
        config, params, limits_B, seeds_B2, scalars, stop_ZV, tokens_V, forced_BX, pad_id
    )
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
        past=None if read_BS is None else _first_past(read_BS, P + most, config.vocab_size),
    )

    def advance(state: _Drawn) -> _Drawn:
        cache, hidden_BD = kv.step(config, params, state.cache, state.last_B, state.position - 1)
        return _draw(given, state._replace(cache=cache), hidden_BD)

    first = _draw(given, start, hidden_BD)
    end = jax.lax.while_loop(lambda state: ~state.done_B.all(), advance, first)

    def own(x_BX: jax.Array) -> jax.Array:
        """Return [B, M] of [B, P + M]: each slot's part after its prefix."""
        return jax.vmap(partial(jax.lax.dynamic_slice_in_dim, slice_size=most))(x_BX, forced_B)

    return end.cache, own(end.ids_BX), own(end.logprobs_BX), end.counts_B, end.ended_B


def _draw(given: _Given, state: _Drawn, hidden_BD: jax.Array) -> _Drawn:
    """Return the state with each slot's next token: the prefix's, or one drawn."""
    # The noise follows a token's index among the drawn ones, so it does not depend on how the
    # prefix was read.
    drawn_B, logprobs_B = choose(
        logits(given.config, given.params, hidden_BD),
        given.scalars,
        given.seeds_B2,
        state.counts_B,
        state.past,
        given.tokens_V,
    )
    next_forced_B = jax.lax.dynamic_index_in_dim(
        given.forced_BX, state.position, axis=1, keepdims=False
    )
    draws_B = (next_forced_B == NO_ID) & ~state.done_B
    finite_B = jnp.isfinite(logprobs_B)
    accepted_B = draws_B & finite_B & (drawn_B != NO_ID)
    ids_B = jnp.where(
        accepted_B, drawn_B, jnp.where(state.done_B | draws_B, given.pad_id, next_forced_B)
    )
    next_stop_B = given.stop_ZV[state.stop_B, ids_B].astype(jnp.int32)
    stop_B = jnp.where(accepted_B, next_stop_B, state.stop_B)
    counts_B = state.counts_B + accepted_B
    stopped_B = stop_B == given.stop_ZV.shape[0]
    reason_B = jnp.where(
        finite_B,
        jnp.where(accepted_B, jnp.where(stopped_B, AT_STOP, AT_LIMIT), NONE_LEFT),
        NOT_FINITE,
    )
    ended_B = jnp.where(draws_B, reason_B, state.ended_B)
    return _Drawn(
        position=state.position + 1,
        cache=state.cache,
        last_B=ids_B,
        stop_B=stop_B,
        ids_BX=_with_column(state.ids_BX, ids_B, state.position),
        logprobs_BX=_with_column(state.logprobs_BX, logprobs_B, state.position),
        counts_B=counts_B,
        ended_B=ended_B,
        done_B=(ended_B != AT_LIMIT) | (counts_B >= given.limits_B),
        past=None if state.past is None else _extended(state.past, ids_B, accepted_B),
    )


def _with_column(x_BX: jax.Array, column_B: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x_BX, column_B[:, None], index, axis=1)


def _first_past(read_BS: jax.Array, more: int, vocab_size: int) -> Past:
    """Return the past of ids that were read, with columns for `more`."""
    rows_B1 = jnp.arange(read_BS.shape[0])[:, None]
    seen_BV = jnp.zeros((read_BS.shape[0], vocab_size), bool).at[rows_B1, read_BS].set(True)
    ids_BS = jnp.pad(read_BS, ((0, 0), (0, more)), constant_values=vocab_size)
    return Past(ids_BS, (read_BS < vocab_size).sum(axis=1), seen_BV)


def _extended(past: Past, ids_B: jax.Array, accepted_B: jax.Array) -> Past:
    """Return the past with the ids that were drawn; it has the prefix from the start."""
    rows_B, vocab_size = jnp.arange(ids_B.shape[0]), past.seen_BV.shape[1]
    # vocab_size pads the row: it is no id.
    ids_B = jnp.where(accepted_B, ids_B, vocab_size)
    return Past(
        past.ids_BS.at[rows_B, past.lengths_B].set(ids_B),
        past.lengths_B + accepted_B,
        past.seen_BV.at[rows_B, ids_B].set(True),
    )
