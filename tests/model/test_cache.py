import jax
import jax.numpy as jnp
import numpy as np
import tiny

from cotjax.model import cache as kv
from cotjax.model import decoder

CONFIG = tiny.model_config()
PARAMS = decoder.init_params(CONFIG, jax.random.key(0))
prefill = jax.jit(kv.prefill, static_argnums=0)
step = jax.jit(kv.step, static_argnums=0)


def _full(ids):
    """Hidden states of one row by the training path: [T, D]."""
    row = jnp.asarray([ids], jnp.int32)
    ones = jnp.ones_like(row)
    return jax.jit(decoder.hidden_states, static_argnums=0)(CONFIG, PARAMS, row, jnp.arange(len(ids))[None], ones, ones * 0)[0]


def _read(cache, hidden, pieces, tokens):
    ids = np.zeros((len(pieces), tokens), np.int32)
    for slot, piece in enumerate(pieces):
        ids[slot, : len(piece)] = piece
    return prefill(CONFIG, PARAMS, cache, hidden, ids, np.array([len(piece) for piece in pieces], np.int32))


def _start(slots, room):
    return kv.empty(CONFIG, slots, room), jnp.zeros((slots, CONFIG.width))


def test_prefill_in_pieces_and_decode_equal_the_full_forward():
    rows = [list(range(1, 15)), list(range(20, 31))]
    cache, hidden = _start(2, 16)
    for start, stop in ((0, 4), (4, 10)):  # of the second row only five tokens come in the second piece
        cache, hidden = _read(cache, hidden, [rows[0][start:stop], rows[1][start : min(stop, 9)]], 6)
    np.testing.assert_array_equal(cache.lengths_B, [10, 9])
    expected = [_full(row) for row in rows]
    np.testing.assert_allclose(hidden, np.stack([expected[0][9], expected[1][8]]), atol=1e-5)

    tail = kv.empty_tail(CONFIG, 2, 3)
    for index in range(2):
        tokens = np.array([rows[0][10 + index], rows[1][9 + index]], np.int32)
        tail, hidden = step(CONFIG, PARAMS, cache, tail, tokens, index)
        np.testing.assert_allclose(hidden, np.stack([expected[0][10 + index], expected[1][9 + index]]), atol=1e-5)


def test_writing_at_the_end_of_the_room_and_what_stays():
    row = list(range(1, 9))
    cache, hidden = _start(2, 8)
    cache, hidden = _read(cache, hidden, [row[:6], row[:3]], 6)
    before = cache
    cache, after = _read(cache, hidden, [row[6:], []], 6)  # a window of six would reach past the end
    np.testing.assert_array_equal(cache.lengths_B, [8, 3])
    np.testing.assert_allclose(after[0], _full(row)[7], atol=1e-5)
    np.testing.assert_array_equal(after[1], hidden[1])
    for old, new in zip(before.keys, cache.keys, strict=True):
        np.testing.assert_array_equal(new[1], old[1])
        np.testing.assert_array_equal(new[0, :, :, :6], old[0, :, :, :6])
    for old, new in zip(before.values, cache.values, strict=True):
        np.testing.assert_array_equal(new[1], old[1])
        np.testing.assert_array_equal(new[0, :, :6], old[0, :, :6])


def test_what_lies_past_the_length_is_never_read():
    cache, hidden = _start(1, 8)
    cache, _ = _read(cache, hidden, [[1, 2, 3]], 4)
    spoiled = kv.KVCache(
        tuple(keys.at[..., 3:].set(1e4) for keys in cache.keys), tuple(v.at[:, :, 3:].set(1e4) for v in cache.values), cache.lengths_B
    )
    (_, one), (_, two) = (_read(state, hidden, [[4, 5]], 4) for state in (cache, spoiled))
    np.testing.assert_array_equal(one, two)


def test_resized_keeps_what_is_there():
    cache, hidden = _start(1, 4)
    cache, _ = _read(cache, hidden, [[1, 2, 3, 4]], 4)
    larger = kv.resized(cache, 8)
    assert larger.room == 8
    _, after = _read(larger, hidden, [[5]], 4)
    np.testing.assert_allclose(after[0], _full([1, 2, 3, 4, 5])[4], atol=1e-5)
