"""Replay: the share of tokens, and what is there once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotjax.data.growing import GrowingSource, replayed
from cotjax.data.tokens import TokenExample


def source(name, lengths):
    """Return a source of texts of these lengths, named `<name>0` and so on."""
    arrays = [np.zeros(length, np.int32) for length in lengths]
    one = np.zeros(1, np.int32)
    examples = (TokenExample(f"{name}{n}", 0, one, a, a, a, a) for n, a in enumerate(arrays))
    return GrowingSource(tuple(examples), left_out=1)


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=40)


@given(LENGTHS, LENGTHS, st.floats(0.05, 0.95), st.integers(0, 9))
def test_every_text_is_there_and_the_share_is_the_one_asked_for(own, before, share, seed):
    mixed = replayed(source("a", own), source("b", before), share, seed)
    ids = [example.id for example in mixed.examples]
    assert {*ids} == {*(f"a{n}" for n in range(len(own))), *(f"b{n}" for n in range(len(before)))}
    assert mixed.left_out == 2
    counts = {name: ids.count(name) for name in ids}
    for side in "ab":  # a side has its texts as often as each other, or once more
        own_counts = [count for name, count in counts.items() if name.startswith(side)]
        assert max(own_counts) - min(own_counts) <= 1
    assert min(counts.values()) == 1
    tokens = sum(len(each.ids) for each in mixed.examples if each.id.startswith("b"))
    # A part of the texts is drawn by number, so lengths that differ move the share.
    spread = max(own + before) * max(len(own), len(before)) / int(mixed.lengths.sum())
    assert abs(tokens / int(mixed.lengths.sum()) - share) <= spread


def test_equal_lengths_give_the_share():
    mixed = replayed(source("a", [10] * 10), source("b", [5] * 200), 0.5, 0)
    own = [each.id for each in mixed.examples if each.id.startswith("a")]
    assert len(own) == 100 and len(mixed) == 300
    mixed = replayed(source("a", [10] * 10), source("b", [5] * 8), 0.25, 0)
    assert 8 * 5 / int(mixed.lengths.sum()) == pytest.approx(0.25, abs=0.02)
    assert [x.id for x in mixed.examples] == [
        x.id for x in replayed(source("a", [10] * 10), source("b", [5] * 8), 0.25, 0).examples
    ]
