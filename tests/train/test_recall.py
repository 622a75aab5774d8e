from dataclasses import replace

import jax
import numpy as np
import pytest

from cotjax.errors import UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.params import init_params
from cotjax.train.recall import LESSONS, grow_recall, repeated_pairs

MODEL = ModelConfig(
    vocab_size=384, width=128, layers=6, heads=4, kv_heads=2, head_size=32, feed_forward=288
)


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_told_second_is_what_followed_its_first_before_and_nothing_else_is_marked(lesson):
    ids, told = (
        np.asarray(part) for part in repeated_pairs(lesson, MODEL.vocab_size, jax.random.key(3))
    )
    assert (
        ids.shape == told.shape == (lesson.rows, lesson.length)
        and ids.min() >= 0
        and ids.max() < MODEL.vocab_size
    )
    counts = set()
    for row, marks in zip(ids, told, strict=True):
        known = {}
        for place in range(0, lesson.length, 2):
            first, second = row[place : place + 2]
            assert not marks[place] and marks[place + 1] == (first in known)
            assert known.setdefault(first, second) == second
        counts.add(len(known))
    assert min(counts) >= lesson.fewest and max(counts) == lesson.most


def test_batches_differ_by_key_alone():
    first, again, other = (
        np.asarray(repeated_pairs(LESSONS[0], 384, jax.random.key(key))[0]) for key in (1, 1, 2)
    )
    assert (first == again).all() and (first != other).any()


def test_too_small_a_vocabulary_is_refused():
    small = replace(MODEL, vocab_size=40)
    with pytest.raises(UsageError, match="vocabulary has 40"):
        grow_recall(small, init_params(small, jax.random.key(0)), jax.random.key(1), 10)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_the_first_lesson_alone_grows_the_heads():
    """Within 300 updates; it ends where they are formed."""
    shares = []
    steps = round(300 / LESSONS[0].share)
    with pytest.raises(StopIteration):

        def stop_after_first(done, total, right):
            shares.append(right)
            if right > 0.95 or done == 300:
                raise StopIteration

        grow_recall(
            MODEL,
            init_params(MODEL, jax.random.key(0)),
            jax.random.key(1),
            steps,
            stop_after_first,
        )
    assert shares[0] < 0.4  # before they form: no better than a guess among the pairs
    assert shares[-1] > 0.95
