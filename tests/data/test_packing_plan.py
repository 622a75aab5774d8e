"""Packing: every example once an epoch, and any row without planning the rows before it."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotjax.data.packing import Packing, are_alone, check_lengths, fit
from cotjax.errors import DataError

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(LENGTHS, st.integers(40, 64), st.integers(1, 8))
def test_no_row_is_overfull_whatever_stays_open(lengths, row_length, bins):
    row_of = fit(lengths, row_length, bins)
    used = np.bincount(row_of, weights=lengths)
    assert used.max() <= row_length and (used > 0).all(), "rows are numbered without gaps"


@settings(max_examples=30)
@given(LENGTHS, st.integers(40, 2000), st.integers(0, 2**40), st.integers(0, 10**9))
def test_an_epoch_holds_every_example_once_and_its_rows_hold_them(lengths, row_length, seed, epoch):
    lengths = np.array(lengths)
    packing = Packing(lengths, row_length, seed)
    seen = []
    for number in range(epoch * packing.rows, (epoch + 1) * packing.rows):
        of, examples = packing.row(number)
        assert of == epoch and lengths[examples].sum() <= row_length
        seen += examples.tolist()
    assert sorted(seen) == list(range(len(lengths)))


def _epoch(packing, epoch):
    return [packing.row(epoch * packing.rows + row)[1].tolist() for row in range(packing.rows)]


def test_epochs_mix_the_examples_and_the_rows_anew_and_a_seed_fixes_both():
    lengths = np.random.default_rng(0).integers(100, 900, 500)
    packing = Packing(lengths, 2048, seed=3)
    first, second = _epoch(packing, 0), _epoch(packing, 1)
    assert (
        first
        == _epoch(Packing(lengths, 2048, seed=3), 0)
        != _epoch(Packing(lengths, 2048, seed=4), 0)
    )
    together = {frozenset(row) for row in first} & {frozenset(row) for row in second}
    assert len(together) < 0.2 * packing.rows, "who shares a row changes"
    place = {example: row for row, examples in enumerate(first) for example in examples}
    moved = [
        abs(place[example] - row) for row, examples in enumerate(second) for example in examples
    ]
    assert np.mean(moved) > packing.rows / 5, "and so does when it comes"


def test_the_rows_of_a_seed_stay_the_same_from_version_to_version():
    """A run that goes on under a later version reads what it would have read."""
    small = Packing(np.array([5, 3, 4, 6, 2, 7, 1, 5, 3, 4]), 10, seed=7)
    assert [_epoch(small, epoch) for epoch in range(2)] == [
        [[5, 1], [3, 9], [2, 8, 4, 6], [7, 0]],
        [[3, 9], [5, 8], [2, 1, 4, 6], [0, 7]],
    ]
    assert _epoch(small, 0) == _epoch(
        Packing(np.array([5, 3, 4, 6, 2, 7, 1, 5, 3, 4]), 10, seed=7 - 2**64), 0
    )
    # Several windows, more open rows than stay open, and classes of equal length.
    lengths = 100 + np.arange(3000) * 7919 % 1855
    digest = hashlib.sha256()
    for epoch in (0, 1, 10**6):
        for row in _epoch(Packing(lengths, 2048, seed=5), epoch):
            digest.update(np.array([*row, -1], np.int64).tobytes())
    assert digest.hexdigest()[:16] == "2885b899aa1216cb"


def test_the_filling_is_the_share_of_places_that_hold_a_token():
    lengths = np.array([6, 6, 6, 3])
    packing = Packing(lengths, 10, seed=0)
    assert packing.rows == 3 and packing.filling == 21 / 30


def test_a_late_row_is_found_without_the_epochs_before_it():
    packing = Packing(np.full(1000, 100), 1000, seed=0)
    dealt = []
    packing._epoch = lambda epoch: dealt.append(epoch) or packing._exchange(epoch)
    packing.row(10**12)
    assert dealt == [10**12 // 100]


@pytest.mark.parametrize("row_length", [2048, 4096])
def test_rows_are_filled(row_length):
    lengths = np.random.default_rng(1).gamma(4.0, 120.0, 3000).astype(int).clip(100, 2048)
    assert Packing(lengths, row_length, seed=0).filling > 0.97


def test_an_example_longer_than_a_row_is_named():
    source = [{"id": b"a"}, {"id": b"b"}, {"id": b"c"}]
    check_lengths(np.array([5, 8, 8]), 8, source)
    with pytest.raises(
        DataError,
        match=r"example 'b' has 9 tokens, a row has 8 \(too few for 2 of 3 examples\).*row_length",
    ):
        check_lengths(np.array([5, 9, 10]), 8, source)


@pytest.mark.parametrize(
    ("lengths", "divided", "alone"),
    [
        ((33, 40, 32), {}, True),
        ((33, 40, 31), {}, False),  # 33 and 31 fit together
        ((12,), {}, True),
        ((33, 40, 32), {"branches": [0, 1]}, False),
        ((33, 40, 32), {"segments": [1, 2]}, False),
    ],
)
def test_rows_are_known_to_hold_one_example_of_one_line_each(lengths, divided, alone):
    source = [{"ids": np.zeros(n), "branches": np.zeros(n)} for n in lengths]
    source[-1] |= divided
    assert are_alone(source, 64) is alone
    if alone:
        assert Packing(np.array(lengths), 64, seed=0).rows == len(lengths)
