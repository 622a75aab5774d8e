"""Which ids are tokens, and when a generation ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from cotjax.errors import NotFiniteError, UsageError
from cotjax.model.params import init_params
from cotjax.model.sharding import make_mesh
from cotjax.sample import sampling
from cotjax.sample.sampler import Sampler
from cotjax.sample.vocabulary import stop_table, token_mask

CLOSE, END = "</action>", "<|im_end|>"


def _end(table, ids):
    """How many of these ids a decode makes."""
    state = 0
    for count, id in enumerate(ids, start=1):
        state = table[state, id]
        if state == len(table):
            return count
    return None


def test_the_stop_example():
    np.testing.assert_array_equal(
        stop_table(["ab"], 4, ["a", "b", "ab", "x"]), [[1, 0, 2, 0], [1, 2, 2, 0]]
    )


def test_stop_sequences_of_ids_end_where_one_is_whole():
    table = stop_table([[7], [4, 5]], 10)
    found = [_end(table, ids) for ids in ([9, 7, 7], [3, 4, 4, 5], [5, 4], [4, 7], [4, 3, 5])]
    assert found == [2, 4, None, 2, None]


@pytest.mark.parametrize("seed", range(6))
def test_a_text_is_seen_whichever_tokens_it_is_made_of(seed):
    """Against decoding and searching, over a vocabulary made to cut the stops, and each other's
    borders, in every way.
    """
    draw = np.random.default_rng(seed)
    joined = f"{CLOSE}{END}{CLOSE}{CLOSE}<{CLOSE}é {END}<|im_<|{END}</ac{CLOSE}"
    cuts = [(start, start + draw.integers(2, 8)) for start in draw.integers(0, len(joined), 90)]
    longest = (joined[start : start + 30] for start in draw.integers(0, len(joined), 3))
    pieces = sorted(
        {*joined, *(joined[start:end] for start, end in cuts), *longest, "look", " 1", "\ufffd", ""}
    )
    table = stop_table([CLOSE, END], len(pieces) + 5, pieces)
    ends = []
    for _ in range(400):
        ids = draw.integers(0, len(pieces), 12).tolist()
        if draw.random() < 0.7:  # most hold a stop, segmented at random
            rest, spelled = draw.choice([CLOSE, END]), []
            while rest:
                fitting = [
                    id
                    for id, piece in enumerate(pieces)
                    if piece and (rest.startswith(piece) or piece.startswith(rest))
                ]
                spelled.append(int(draw.choice(fitting)))
                rest = rest[len(pieces[spelled[-1]]) :]
            at = draw.integers(0, len(ids))
            ids[at:at] = spelled
        texts = ["".join(pieces[id] for id in ids[:count]) for count in range(len(ids) + 1)]
        ends.append(
            next((count for count, text in enumerate(texts) if CLOSE in text or END in text), None)
        )
        assert _end(table, ids) == ends[-1], texts[-1]
    assert len(set(ends)) > 8


def test_no_stops_and_those_that_cannot_be():
    assert not stop_table([], 5).any()
    for stop, pieces, words in (
        ([[1], []], None, "a stop sequence is empty"),
        ([""], ["a"], "a stop sequence is empty"),
        ([[5]], None, r"outside the vocabulary, 0 \.\. 4"),
        (["a"], None, "need `pieces`"),
        (["a", [1]], ["a"], "cannot be mixed with sequences of ids"),
    ):
        with pytest.raises(UsageError, match=words):
            stop_table(stop, 5, pieces)


def test_tokens_are_the_ids_of_pieces_that_are_there():
    assert token_mask(None, 3).all()
    assert token_mask(["a", None, ""], 5).tolist() == [True, False, True, False, False]
    with pytest.raises(UsageError, match=r"the tokenizer has 4 ids, the model's vocabulary 3"):
        token_mask(["a"] * 4, 3)
    with pytest.raises(UsageError, match="nothing to draw"):
        token_mask([None, None], 3)


@pytest.mark.parametrize(
    "how", [{}, {"top_k": 2}, {"top_p": 0.5}, {"top_k": 3, "top_p": 0.9}], ids=str
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_tokens_are_drawn_and_filters_are_over_tokens_alone(temperature, how):
    """The rows that are no tokens are the likeliest by far. What is drawn is what a vocabulary
    without them gives.
    """
    logits = np.array([9.0, 1.0, 2.0, 8.0, 0.5, 2.5], np.float32)
    tokens = np.array([False, True, True, False, True, True])
    seeds = np.stack([sampling.seed_words(seed) for seed in range(4000)])
    scalars = sampling.Sampling(temperature, **how).scalars()
    rows = jnp.repeat(logits[None], len(seeds), axis=0)
    ids, logprobs = jax.jit(sampling.choose)(
        rows, scalars, seeds, jnp.zeros(len(seeds), int), None, tokens
    )
    alone = logits[tokens][None]
    kept = (
        np.asarray(sampling.keep_likely(alone / temperature, scalars))[0]
        if temperature
        else np.where(alone == 2.5, 0, -np.inf)[0]
    )
    shares = np.bincount(np.cumsum(tokens)[ids] - 1, minlength=4) / len(seeds)
    assert tokens[ids].all()
    np.testing.assert_allclose(shares, jax.nn.softmax(kept), atol=0.03)
    np.testing.assert_allclose(
        logprobs, jax.nn.log_softmax(logits)[ids], rtol=1e-5
    )  # of the model, over all of its rows


def test_a_row_that_is_no_token_is_never_made_though_it_is_the_likeliest():
    config = tiny.model_config(layers=1)
    params = jax.tree.map(lambda x: 3 * x, init_params(config, jax.random.key(0)))
    mesh = make_mesh(devices=jax.devices()[:1])

    def make(pieces):
        sampler = Sampler(
            config, mesh, slots=1, max_length=64, stop=[], pad_id=0, max_new=20, pieces=pieces
        )
        sampler.load(params)
        sampler.extend({0: [1, 2, 3]})
        return sampler

    free = make(None).sample({0: []}, max_new=20)[0]
    pieces = [
        None if id in free.ids[:2] else "x" for id in range(max(free.ids[2:]))
    ]  # and the rows from there on are no tokens
    sampler = make(pieces)
    for how in ({}, {"temperature": 1.0, "seeds": {0: 7}}):
        ids = sampler.sample({0: []}, max_new=20, **how)[0].ids
        assert len(ids) == 20 and all(id < len(pieces) and pieces[id] for id in ids)
    # Where all that are tokens are forbidden too, the response ends: nothing is made up.
    few = make(["a", "b", None, "c"]).sample({0: []}, max_new=20, no_repeat_ngram_size=1)[0]
    assert (few.ids, few.stopped) == ([0], False)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_not_finite_name_their_slot(wrong):
    config = tiny.model_config(layers=1)
    params = init_params(config, jax.random.key(0))
    sampler = Sampler(
        config,
        make_mesh(devices=jax.devices()[:1]),
        slots=2,
        max_length=64,
        stop=[],
        pad_id=0,
        max_new=4,
    )
    spoilt = jax.tree.map(
        lambda x: (
            x.at[(5, *[0] * (x.ndim - 1))].set(wrong) if x.shape[0] == config.vocab_size else x
        ),
        params,
    )
    sampler.load(spoilt)
    sampler.extend({0: [1, 2], 1: [3, 5]})
    for how in ({}, {"temperature": 1.0, "seeds": {1: 1}}, {"repetition_penalty": 1.2}):
        with pytest.raises(
            NotFiniteError, match="slot 1: the model's logits are not finite"
        ) as raised:
            sampler.sample({1: []}, max_new=3, **how)
        assert raised.value.slot == 1
    with pytest.raises(NotFiniteError, match="slot 1"):
        sampler.score({1: [1, 2]})
