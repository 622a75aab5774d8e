import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cotjax.errors import UsageError
from cotjax.sample import sampling

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6)) * 2, jnp.float32)


def _draws(temperature, count, index=0, **how):
    seeds = np.stack([sampling.seed_words(seed) for seed in range(count)])
    scalars = sampling.Sampling(temperature, **how).scalars()
    return jax.jit(sampling.choose)(
        jnp.repeat(LOGITS, count, axis=0), scalars, seeds, jnp.full(count, index)
    )


def test_temperature_zero_takes_the_most_likely():
    ids, logprobs = _draws(0.0, 3)
    assert set(np.asarray(ids)) == {int(LOGITS.argmax())}
    np.testing.assert_allclose(logprobs, jax.nn.log_softmax(LOGITS).max(), rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax_at_the_temperature(temperature):
    ids, logprobs = _draws(temperature, 20_000)
    shares = np.bincount(ids, minlength=6) / 20_000
    np.testing.assert_allclose(
        shares, jax.nn.softmax(LOGITS / temperature)[0], atol=0.015
    )  # 4 standard errors
    np.testing.assert_allclose(
        logprobs, jax.nn.log_softmax(LOGITS)[0][ids], rtol=1e-5
    )  # at temperature 1 all the same


@pytest.mark.parametrize("how", [{"top_k": 3}, {"top_p": 0.8}, {"top_k": 4, "top_p": 0.5}], ids=str)
def test_filtered_frequencies_are_the_softmax_over_what_is_kept(how):
    ids, logprobs = _draws(1.3, 20_000, **how)
    kept = sampling.keep_likely(LOGITS / 1.3, sampling.Sampling(1.3, **how).scalars())
    assert 1 < np.isfinite(kept).sum() < 6
    np.testing.assert_allclose(
        np.bincount(ids, minlength=6) / 20_000, jax.nn.softmax(kept)[0], atol=0.015
    )
    np.testing.assert_allclose(
        logprobs, jax.nn.log_softmax(LOGITS)[0][ids], rtol=1e-5
    )  # of the model, unfiltered


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
def test_filters_and_penalty_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    from transformers import (
        LogitsProcessorList,
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    draw = np.random.default_rng(2)
    logits, read = (
        draw.normal(size=(40, 300)).astype(np.float32) * 3,
        draw.integers(0, 300, (40, 17)),
    )
    read[20:] = draw.integers(0, 5, (20, 17))  # few ids, whose n-grams come again
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, read, True, axis=1)
    past = sampling.Past(
        jnp.pad(read, ((0, 0), (0, 4)), constant_values=300), jnp.full(40, 17), seen
    )
    cases = (
        (0, 1.0, 1.4, 0),
        (5, 1.0, 1.0, 2),
        (0, 0.7, 1.0, 1),
        (500, 0.95, 0.8, 3),
        (20, 0.9, 1.2, 0),
        (1, 0.01, 1.0, 4),
        (0, 1.0, 1.0, 40),
    )
    for top_k, top_p, penalty, size in cases:
        chain = [RepetitionPenaltyLogitsProcessor(penalty)]
        chain += [NoRepeatNGramLogitsProcessor(size)] if size else []
        chain += [TemperatureLogitsWarper(0.7)]
        chain += [TopKLogitsWarper(top_k)] if top_k else []
        chain += [TopPLogitsWarper(top_p)] if top_p < 1 else []
        expected = LogitsProcessorList(chain)(torch.tensor(read), torch.tensor(logits)).numpy()
        scalars = sampling.Sampling(0.7, top_k, top_p, penalty, size).scalars()
        ours = sampling.keep_likely(
            sampling.looking_back(logits, past, scalars) / scalars.temperature, scalars
        )
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_the_example_of_repeated_ngrams():
    a, b, c, d, none = 0, 1, 2, 3, 5
    past = sampling.Past(
        jnp.array([[a, b, c, d, a, b, none], [c, c, none, *[none] * 4]]),
        jnp.array([6, 2]),
        jnp.zeros((2, none), bool),
    )
    found = {
        size: [np.flatnonzero(row).tolist() for row in np.asarray(sampling.repeats(past, size))]
        for size in (1, 2, 3, 4, 7)
    }
    assert found == {1: [[a, b, c, d], [c]], 2: [[c], [c]], 3: [[c], []], 4: [[], []], 7: [[], []]}


def test_draws_differ_by_index_and_by_either_half_of_the_seed():
    first, second = _draws(1.0, 200, index=0)[0], _draws(1.0, 200, index=1)[0]
    assert (np.asarray(first) != np.asarray(second)).mean() > 0.3
    wide = np.stack([sampling.seed_words(seed + (1 << 40)) for seed in range(200)])
    third = sampling.choose(
        jnp.repeat(LOGITS, 200, axis=0), sampling.Sampling(1.0).scalars(), wide, jnp.zeros(200, int)
    )[0]
    assert (np.asarray(first) != np.asarray(third)).mean() > 0.3


def test_seeds_outside_64_bits():
    assert sampling.seed_words(2**64 - 1).tolist() == [2**32 - 1] * 2
    for seed in (-1, 2**64):
        with pytest.raises(UsageError, match=str(seed)):
            sampling.seed_words(seed)


def test_top_p_keeps_no_more_of_equal_ids_than_it_needs_and_top_k_keeps_all():
    def kept(scores, **how):
        return np.flatnonzero(
            np.isfinite(
                sampling.keep_likely(
                    jnp.array([scores], jnp.float32), sampling.Sampling(1.0, **how).scalars()
                )[0]
            )
        )

    assert kept([0.0] * 8, top_p=0.3).tolist() == [0, 1, 2]
    assert kept([0.0] * 8, top_k=3).tolist() == list(range(8))
    assert kept([0.0, 5.0, 0.0, 0.0], top_p=0.99).tolist() == [
        0,
        1,
        2,
    ]  # shares .007, .980, .007, .007
    # Shares are over what top-k leaves, the ids as likely as the k-th among them: a third each, not
    # a half.
    assert kept([-9.0, 1.0, 1.0, 1.0], top_k=2, top_p=0.6).tolist() == [1, 2]
    assert kept([-9.0, 1.0, 1.0, 1.0], top_k=2, top_p=0.3).tolist() == [1]
    # Over all ids the first alone would be 0.5; over the two that top-k leaves it is 0.67.
    assert kept(np.log([0.5, 0.25, 0.15, 0.1]), top_k=2, top_p=0.6).tolist() == [0]
    assert len(kept([0.0] * 1000, top_p=0.1)) == pytest.approx(100, abs=1)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
def test_of_equal_ids_as_many_are_kept_as_by_transformers():
    torch = pytest.importorskip("torch")
    from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(3).integers(0, 4, (200, 30)).astype(np.float32)
    for top_k, top_p in ((0, 0.32), (7, 0.61), (20, 0.93)):
        chain = [TopKLogitsWarper(top_k)] if top_k else []
        expected = LogitsProcessorList([*chain, TopPLogitsWarper(top_p)])(
            None, torch.tensor(logits)
        ).numpy()
        ours = sampling.keep_likely(logits, sampling.Sampling(1.0, top_k, top_p).scalars())
        np.testing.assert_array_equal(np.sort(ours), np.sort(expected))


@pytest.mark.parametrize(
    "field, value",
    [
        ("top_k", 2**31),
        ("no_repeat_ngram_size", 1025),
        ("repetition_penalty", 1e-50),
        ("repetition_penalty", 1e39),
    ],
)
def test_what_a_program_cannot_hold_is_refused(field, value):
    with pytest.raises(UsageError, match=f"evaluate.{field} is {re.escape(str(value))}"):
        sampling.Sampling(**{field: value}).check("evaluate.")
    for most in (
        {"top_k": 2**31 - 1, "no_repeat_ngram_size": 1024, "top_p": 1.0},
        {"repetition_penalty": 2.0**127},
        {"repetition_penalty": 2.0**-126, "temperature": 0.0, "top_k": 0},
    ):
        sampling.Sampling(**most).check("")


def test_no_id_is_chosen_where_none_is_left_or_the_logits_are_not_finite():
    rows = jnp.array(
        [[1.0, 2.0, 0.0], [jnp.nan, 2.0, 0.0], [1.0, jnp.inf, 0.0], [-jnp.inf] * 3], jnp.float32
    )
    seeds = np.stack([sampling.seed_words(seed) for seed in range(4)])
    for temperature in (0.0, 1.0):
        how = sampling.Sampling(temperature).scalars()
        _, logprobs = sampling.choose(rows, how, seeds, jnp.zeros(4, int))
        assert np.isfinite(logprobs).tolist() == [True, False, False, False]
        ids, _ = sampling.choose(
            rows[:1], how, seeds[:1], jnp.zeros(1, int), None, jnp.zeros(3, bool)
        )
        assert ids.tolist() == [sampling.NO_ID]
