from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from cotjax.model import cache as kv
from cotjax.model import decoder
from cotjax.model.cache_layouts import Blocks, Tokens

CONFIG = tiny.model_config()
prefill = jax.jit(kv.prefill, static_argnums=0)
step = jax.jit(kv.step, static_argnums=0)


def _full(ids):
    """Hidden states of one row by the training path: [T, D]."""
    row = jnp.asarray([ids], jnp.int32)
    ones = jnp.ones_like(row)
    return jax.jit(decoder.hidden_states, static_argnums=0)(
        CONFIG, tiny.params(), row, jnp.arange(len(ids))[None], ones, ones * 0
    )[0]


def _read(cache, hidden, pieces, tokens):
    ids = np.zeros((len(pieces), tokens), np.int32)
    for slot, piece in enumerate(pieces):
        ids[slot, : len(piece)] = piece
    return prefill(
        CONFIG,
        tiny.params(),
        cache,
        hidden,
        ids,
        np.array([len(piece) for piece in pieces], np.int32),
    )


@pytest.fixture(params=[Blocks, Tokens])
def layout(request):
    """Blocks of four tokens, so that a few tokens touch several."""
    return request.param(4)


def _start(layout, slots, room):
    return kv.empty(CONFIG, slots, room, 3, layout), jnp.zeros((slots, CONFIG.width))


def _kept(cache, slot, start=0, stop=None):
    """A slot's keys [K, H, S] and values [K, S, H] of every layer, between two tokens."""
    whole = cache.capacity + cache.new
    kept = []
    for keys, values in zip(cache.keys, cache.values, strict=True):
        k_BKHS, v_BKSH = cache.layout.first(keys, values, whole)
        kept += [
            np.asarray(k_BKHS[slot, ..., start:stop]),
            np.asarray(v_BKSH[slot, :, start:stop]),
        ]
    return kept


def test_prefill_in_pieces_and_decode_equal_the_full_forward(layout):
    rows = [list(range(1, 15)), list(range(20, 31))]
    cache, hidden = _start(layout, 2, 16)
    assert (cache.capacity, cache.new) == (16, 4)  # whole blocks
    for start, stop in (
        (0, 4),
        (4, 10),
    ):  # of the second row only five tokens come in the second piece
        cache, hidden = _read(
            cache, hidden, [rows[0][start:stop], rows[1][start : min(stop, 9)]], 6
        )
    np.testing.assert_array_equal(cache.lengths_B, [10, 9])
    expected = [_full(row) for row in rows]
    np.testing.assert_allclose(hidden, np.stack([expected[0][9], expected[1][8]]), atol=1e-5)

    before = cache
    for index in range(2):
        tokens = np.array([rows[0][10 + index], rows[1][9 + index]], np.int32)
        cache, hidden = step(CONFIG, tiny.params(), cache, tokens, index)
        np.testing.assert_allclose(
            hidden, np.stack([expected[0][10 + index], expected[1][9 + index]]), atol=1e-5
        )
    for slot in range(2):  # a decode leaves the prompts
        length = int(before.lengths_B[slot])
        kept = (_kept(each, slot, stop=length) for each in (before, cache))
        for old, new in zip(*kept, strict=True):
            np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("cached", [0, 1, 4, 5, 8, 9, 13])
def test_pieces_reach_over_any_number_of_blocks(layout, cached):
    row = list(range(1, 17))
    cache, hidden = _start(layout, 2, 16)
    for start, stop in ((0, cached), (cached, cached + 3)):
        cache, hidden = _read(cache, hidden, [row[start:stop], []], 16 if start == 0 else 4)
    np.testing.assert_allclose(hidden[0], _full(row)[cached + 2], atol=1e-5)


def test_scores_are_the_full_forwards(layout):
    row = list(range(1, 15))
    cache, hidden = _start(layout, 2, 16)
    cache, hidden = _read(cache, hidden, [row[:5], row[:2]], 6)
    ids = np.array([[*row[5:9], 0, 0], [*row[2:8]]], np.int32)
    scored, last, logprobs = jax.jit(kv.score, static_argnums=0)(
        CONFIG, tiny.params(), cache, hidden, ids, np.array([4, 6], np.int32)
    )
    read, expected_last = _read(cache, hidden, [row[5:9], row[2:8]], 6)
    np.testing.assert_allclose(last, expected_last, atol=1e-6)
    np.testing.assert_array_equal(scored.lengths_B, read.lengths_B)
    after = np.asarray(jax.nn.log_softmax(decoder.logits(CONFIG, tiny.params(), _full(row))))
    np.testing.assert_allclose(logprobs[0, :4], after[np.arange(4, 8), row[5:9]], atol=1e-5)
    np.testing.assert_allclose(logprobs[1], after[np.arange(1, 7), row[2:8]], atol=1e-5)


def test_writing_at_the_end_of_the_room_and_what_stays(layout):
    row = list(range(1, 9))
    cache, hidden = _start(layout, 2, 8)
    cache, hidden = _read(cache, hidden, [row[:6], row[:3]], 6)
    before = cache
    cache, after = _read(cache, hidden, [row[6:], []], 6)  # a window of six reaches past the room
    np.testing.assert_array_equal(cache.lengths_B, [8, 3])
    np.testing.assert_allclose(after[0], _full(row)[7], atol=1e-5)
    np.testing.assert_array_equal(after[1], hidden[1])
    for slot, stop in ((1, None), (0, 6)):
        for old, new in zip(
            _kept(before, slot, stop=stop), _kept(cache, slot, stop=stop), strict=True
        ):
            np.testing.assert_array_equal(new, old)


def test_what_lies_past_the_length_is_never_read(layout):
    cache, hidden = _start(layout, 1, 8)
    cache, _ = _read(cache, hidden, [[1, 2, 3]], 4)
    rest = 5 + cache.new
    junk = jnp.full((1, CONFIG.kv_heads, rest, CONFIG.head_size), 1e4)
    at, count = jnp.array([3]), jnp.array([rest])
    written = [
        layout.written(*pair, junk, junk, at, count)
        for pair in zip(cache.keys, cache.values, strict=True)
    ]
    keys, values = zip(*written, strict=True)
    spoiled = replace(cache, keys=keys, values=values)
    (_, one), (_, two) = (_read(state, hidden, [[4, 5]], 4) for state in (cache, spoiled))
    np.testing.assert_array_equal(one, two)
    (_, one), (_, two) = (
        step(CONFIG, tiny.params(), state, np.array([4], np.int32), 0) for state in (cache, spoiled)
    )
    np.testing.assert_array_equal(one, two)


def test_resized_keeps_what_is_there(layout):
    cache, hidden = _start(layout, 1, 4)
    cache, _ = _read(cache, hidden, [[1, 2, 3, 4]], 4)
    larger = kv.resized(cache, 7)
    assert (larger.capacity, larger.new) == (8, 4)
    _, after = _read(larger, hidden, [[5]], 4)
    np.testing.assert_allclose(after[0], _full([1, 2, 3, 4, 5])[4], atol=1e-5)
