"""The sizes that programs are compiled for: enough for what comes, within their share of memory."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotjax.sample.buckets import (
    CAPACITY_BUCKETS,
    READ_AT_ONCE,
    READ_FEW,
    READ_MANY,
    READ_MOST,
    TREE_LEAST,
    TREE_SIZES,
    TREES_AT_ONCE,
    bucket,
    read_buckets,
    tree_buckets,
)

SLOTS = st.integers(1, 5000)


@given(SLOTS)
def test_a_pass_reads_as_many_tokens_as_the_slots_may_read_together(slots):
    """Few, or the largest power of two with which all slots stay within the limit."""
    *few, most = read_buckets(slots)
    if most in READ_FEW:
        assert (*few, most) == READ_FEW
        assert 2 * READ_FEW[-1] * slots > READ_AT_ONCE
    else:
        assert tuple(few) == READ_FEW and most & (most - 1) == 0
        assert most * slots <= READ_AT_ONCE
        assert most == READ_MOST or 2 * most * slots > READ_AT_ONCE


@pytest.mark.parametrize(
    ("slots", "most"), [(1, 512), (4, 512), (5, 256), (8, 256), (16, 128), (32, 64), (33, 48)]
)
def test_the_longest_pass_of_some_numbers_of_slots(slots, most):
    assert read_buckets(slots)[-1] == most


@given(SLOTS, st.integers(READ_AT_ONCE + 1, 10**6))
def test_larger_passes_have_every_size_that_all_slots_may_read_together(slots, at_once):
    sizes = read_buckets(slots, at_once)
    assert sizes == sorted(sizes) and set(sizes) <= {*READ_MANY}
    for size in READ_MANY:
        assert (size in sizes) == (size == READ_MANY[0] or size * slots <= at_once)


@given(SLOTS)
def test_trees_have_as_many_tokens_as_the_slots_may_have_together(slots):
    """Every size within the limit, and always those up to the least."""
    sizes = tree_buckets(slots)
    assert sizes == sorted(sizes) and set(sizes) <= {*TREE_SIZES}
    for size in TREE_SIZES:
        assert (size in sizes) == (size <= TREE_LEAST or size * slots <= TREES_AT_ONCE)


@given(st.integers(0, 10**6), st.sampled_from([None, 1, 300, 40_000]))
def test_a_bucket_holds_the_size_and_is_the_smallest_that_does(size, most):
    found = bucket(size, CAPACITY_BUCKETS, most)
    if most is not None and most <= size:
        assert found == most
        return
    assert found >= size
    holding = [each for each in CAPACITY_BUCKETS if each >= size]
    step = CAPACITY_BUCKETS[-1]
    expected = holding[0] if holding else -(-size // step) * step
    assert found == (expected if most is None else min(expected, most))


def test_capacities_grow_by_a_third_to_a_half_after_the_first_and_are_whole_blocks():
    """So a growing slot wastes at most a third of its cache, and rows of it stay aligned."""
    assert all(capacity % 256 == 0 for capacity in CAPACITY_BUCKETS)
    grown = [after / before for before, after in pairwise(CAPACITY_BUCKETS)]
    assert grown[0] == 2 and all(1.3 < ratio <= 1.5 for ratio in grown[1:])
