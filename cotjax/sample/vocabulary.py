"""What a decode knows of the vocabulary: which ids are tokens, and which of them, one after the
other, end a generation.

The second is a table [Z, V] that a decode follows token by token, so that a text is seen whichever
tokens it is made of: for a slot in state z that makes the id v, the slot's next state. The last
state, which is no row of the table, is the end. Stop sequence "ab" over the pieces a, b, ab, x has
two states, 0: nothing yet, 1: an a, and the end, 2:

                a  b  ab  x
    state 0     1  0  2   0
    state 1     1  2  2   0

(Aho and Corasick, 1975; over the tokens of a vocabulary: Koo et al., 2024, arXiv 2407.08103.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cotjax.errors import UsageError

_BYTES = 256
Stop = Sequence[Sequence[int]] | Sequence[str]  # stop sequences: of ids, or texts


def token_mask(pieces: Sequence[str | None] | None, vocab_size: int) -> np.ndarray:
    """Return which rows of the vocabulary are tokens, bool [V]: the `pieces` that are not None.

    None: all. Raises UsageError for more pieces than rows, or none that is a token.
    """
    if pieces is None:
        return np.ones(vocab_size, bool)
    if len(pieces) > vocab_size:
        raise UsageError(
            f"sampler: the tokenizer has {len(pieces)} ids, the model's vocabulary {vocab_size}; "
            "they are not of one model"
        )
    tokens_V = np.zeros(vocab_size, bool)
    tokens_V[: len(pieces)] = [piece is not None for piece in pieces]
    if not tokens_V.any():
        raise UsageError("sampler: none of `pieces` is a token; there is nothing to draw")
    return tokens_V


def stop_table(
    stop: Stop,
    vocab_size: int,
    pieces: Sequence[str | None] | None = None,
) -> np.ndarray:
    """Return the table of these stop sequences, each of ids or a text, int16 [Z, V].

    `pieces`: the text that each id adds, for sequences that are texts. Ids past them, and None, add
    nothing.

    Raises UsageError for an id outside the vocabulary, a text without `pieces`, or an empty
    sequence: it would end every generation before its first token.
    """
    if not all(map(len, stop)):
        raise UsageError("sampler: a stop sequence is empty; give at least one id")
    texts = [sequence.encode() for sequence in stop if isinstance(sequence, str)]
    if not texts:
        sequences = [tuple(map(int, sequence)) for sequence in stop]
        if not all(0 <= id < vocab_size for sequence in sequences for id in sequence):
            raise UsageError(
                f"sampler: stop has an id outside the vocabulary, 0 .. {vocab_size - 1}"
            )
        return _automaton(sequences, vocab_size)
    if len(texts) < len(stop) or pieces is None:
        raise UsageError(
            "sampler: stop sequences that are texts need `pieces`, and cannot be mixed with "
            "sequences of ids"
        )
    return _over_pieces(_automaton([tuple(text) for text in texts], _BYTES), pieces, vocab_size)


def heightened(table_ZV: np.ndarray, multiple: int) -> np.ndarray:
    """Return a stop table with a multiple of so many states, of which the last ones are unused.

    Tables of one height are arguments of one program.
    """
    Z, V = table_ZV.shape
    height = -(-Z // multiple) * multiple
    padded = np.zeros((height, V), np.int16)
    padded[:Z] = np.where(table_ZV == Z, height, table_ZV)
    return padded


def _automaton(patterns: Sequence[tuple[int, ...]], symbols: int) -> np.ndarray:
    """Return the table over single symbols.

    A state is the longest prefix of some pattern that the symbols read so far end with.
    """
    states = sorted(
        {pattern[:length] for pattern in patterns for length in range(len(pattern))} | {()}, key=len
    )
    if len(states) > np.iinfo(np.int16).max - 1:
        raise UsageError(
            f"sampler: the stop sequences are {len(states)} symbols long in all; give shorter ones"
        )
    number = {state: z for z, state in enumerate(states)}
    next_ZS = np.zeros((len(states), symbols), np.int16)
    for z, state in enumerate(states):
        for symbol in {symbol for pattern in patterns for symbol in pattern}:
            read = (*state, symbol)
            ends = [read[start:] for start in range(len(read) + 1)]  # the longest first
            stopped = any(end in patterns for end in ends)
            next_ZS[z, symbol] = (
                len(states) if stopped else next(number[end] for end in ends if end in number)
            )
    return next_ZS


def _over_pieces(next_ZS: np.ndarray, pieces: Sequence[str | None], vocab_size: int) -> np.ndarray:
    """Return the table over ids, each of which adds the bytes of its piece."""
    Z = len(next_ZS)
    going_on = np.vstack([next_ZS, np.full((1, _BYTES), Z, np.int16)])  # the end is never left
    added = sorted(
        ((piece.encode(errors="replace"), id) for id, piece in enumerate(pieces) if piece),
        key=lambda one: -len(one[0]),
    )
    ids = np.array([id for _, id in added], np.int64)
    reached_ZN = np.repeat(np.arange(Z, dtype=np.int16)[:, None], len(ids), axis=1)
    longer = len(added)
    for at in range(len(added[0][0]) if added else 0):
        while len(added[longer - 1][0]) <= at:
            longer -= 1
        bytes_1N = np.array([piece[at] for piece, _ in added[:longer]])[None, :]
        reached_ZN[:, :longer] = going_on[reached_ZN[:, :longer], bytes_1N]
    table = np.repeat(np.arange(Z, dtype=np.int16)[:, None], vocab_size, axis=1)
    table[:, ids] = reached_ZN
    return table
