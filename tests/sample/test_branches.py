"""Many short texts scored by one pass, and a prompt whose end is replaced for one sample."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from cotjax.errors import NotFiniteError, UsageError
from cotjax.model import decoder
from cotjax.sample.buckets import TREE_LEAST
from cotjax.sample.sampler import Sampler
from cotjax.sample.trees import plan

CONFIG = tiny.model_config(max_length=1024)
MAX_LENGTH = 700


@functools.cache
def _params():
    return jax.tree.map(lambda x: 3 * x, tiny.params())


def _ids(count, seed, below=CONFIG.vocab_size):
    return np.random.default_rng(seed).integers(0, below, count).tolist()


@pytest.fixture(scope="module")
def compiled():
    return Sampler(
        CONFIG, tiny.mesh(), slots=2, max_length=MAX_LENGTH, stop=[], pad_id=0, max_new=16
    )


@pytest.fixture
def sampler(compiled):
    compiled.load(_params())
    return compiled


@pytest.fixture
def passes(sampler, monkeypatch):
    """The names of the programs that run."""
    ran, find = [], sampler._runner._program

    def program(lower, *sizes):
        ran.append(lower.__name__)
        return find(lower, *sizes)

    monkeypatch.setattr(sampler._runner, "_program", program)
    return ran


@jax.jit
def _after(ids_1T):
    hidden = decoder.hidden_states(
        CONFIG,
        _params(),
        ids_1T,
        jnp.arange(ids_1T.shape[1])[None],
        jnp.ones_like(ids_1T),
        jnp.zeros_like(ids_1T),
    )
    return jax.nn.log_softmax(decoder.logits(CONFIG, _params(), hidden))[0]


def _by_full_forward(before, text):
    ids = [*before, *text]
    row = np.zeros((1, 64 if len(ids) <= 64 else 576), np.int32)
    row[0, : len(ids)] = ids
    logprobs_TV = np.asarray(_after(row))
    return [float(logprobs_TV[len(before) + at - 1, id]) for at, id in enumerate(text)]


# Few ids, so that texts repeat, begin alike, and continue one another.
TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=8)


@settings(max_examples=300, deadline=None)
@given(texts=TEXTS, prefix=st.lists(st.integers(0, 2), max_size=4), most=st.integers(6, 40))
def test_trees_read_what_texts_begin_with_in_common_once(texts, prefix, most):
    texts = [tuple(text) for text in texts if text]
    trees = plan(texts, most, tuple(prefix))
    assert {text for tree in trees for text in tree.scored} == set(texts)
    for tree in trees:
        assert tree.fits(most) or len(tree.scored) == 1
        seen = [
            [tree.ids[j] for j in range(i + 1) if i <= tree.ends[j]] for i in range(len(tree.ids))
        ]
        assert len({tuple(each) for each in seen}) == len(seen)
        assert tree.depths == [len(each) - 1 for each in seen]
        for text, targets in tree.scored.items():
            assert [tree.targets[at] for at in targets] == list(text)
            for at, parent in enumerate(tree.parents[target] for target in targets):
                assert (seen[parent] if parent >= 0 else []) == [*prefix, *text[:at]]


def test_a_tree_has_at_most_twice_as_many_targets_as_tokens():
    """Texts of one id are read by nobody, and yet each of them is scored."""
    trees = plan([(id,) for id in range(40)], 8)
    assert [len(tree.targets) for tree in trees] == [16, 16, 8]
    assert all(tree.ids == [] for tree in trees)


@settings(max_examples=15, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=2, max_size=2),
    prefixes=st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=2, max_size=2),
    seed=st.integers(0, 99),
)
def test_branches_are_scored_as_one_after_the_other_and_as_by_a_full_forward(
    compiled, texts, prefixes, seed
):
    compiled.load(_params())
    prompts = {0: _ids(7, seed), 1: _ids(30, seed + 1)}
    compiled.extend(prompts)
    scored = compiled.score_branches(dict(enumerate(prefixes)), dict(enumerate(texts)))
    for slot, several in enumerate(texts):
        assert list(map(len, scored[slot])) == list(map(len, several))
        for text, logprobs in zip(several, scored[slot], strict=True):
            full = _by_full_forward([*prompts[slot], *prefixes[slot]], text)
            alone = compiled.score({slot: [*prefixes[slot], *text]})[slot]
            np.testing.assert_allclose(logprobs, full, atol=1e-4)
            np.testing.assert_allclose(logprobs, alone[len(prefixes[slot]) :], atol=1e-4)
            assert logprobs == scored[slot][several.index(text)]  # equal texts, to the bit


@pytest.mark.parametrize("length", [1, 63, 64, 65, 256, 257, 512, 513])
def test_prompts_of_every_bucket_edge(sampler, length):
    prompt, prefix = _ids(length, length), [5, 6]
    texts = [[1, 2, 3], [1, 2], [1, 2, 3, 4], [9], [1, 2]]
    sampler.extend({1: prompt})
    scored = sampler.score_branches({1: prefix}, {1: texts})[1]
    for text, logprobs in zip(texts, scored, strict=True):
        np.testing.assert_allclose(logprobs, _by_full_forward([*prompt, *prefix], text), atol=1e-4)


def test_a_state_of_five_actions_costs_one_pass(sampler, passes):
    sampler.extend({0: _ids(20, 0), 1: _ids(9, 1)})
    passes.clear()
    actions = [[1, 2, 3, 9], [1, 2, 4, 9], [5, 9], [6, 7, 9], [6, 8, 9]]
    sampler.score_branches({0: [3], 1: _ids(12, 2)}, {0: actions, 1: actions})
    assert passes == ["score_tree"]


def test_too_many_branches_take_several_passes_with_equal_results(sampler, passes, monkeypatch):
    sampler.extend({0: _ids(20, 0), 1: _ids(9, 1)})
    prefixes = {0: _ids(30, 5), 1: [4]}
    texts = {0: [_ids(5, seed) for seed in range(40)], 1: [_ids(3, 7)]}
    at_once = sampler.score_branches(prefixes, texts)
    assert passes[-1:] == ["score_tree"] and passes.count("score_tree") == 1
    passes.clear()
    monkeypatch.setattr(sampler._runner, "trees", [16, 32, TREE_LEAST])
    divided = sampler.score_branches(prefixes, texts)
    assert passes[0] == "prefill" and passes.count("score_tree") == 3
    # Branches that no pass holds.
    monkeypatch.setattr(sampler._runner, "trees", [4])
    alone = sampler.score_branches(prefixes, texts)
    for slot, several in texts.items():
        for at in range(len(several)):
            np.testing.assert_allclose(divided[slot][at], at_once[slot][at], atol=1e-4)
            np.testing.assert_allclose(alone[slot][at], at_once[slot][at], atol=1e-4)


def test_scoring_branches_leaves_the_prompts_and_compiles_within_the_bound(sampler):
    sampler.extend({0: _ids(20, 0), 1: _ids(9, 1)})
    before = sampler.sample({0: [], 1: [2]}, max_new=6)
    texts = [_ids(5, seed) for seed in range(40)]
    sampler.score_branches({0: _ids(300, 5)}, {0: texts, 1: texts})
    assert sampler.sample({0: [], 1: [2]}, max_new=6) == before
    assert sampler.compilations <= sampler.compilations_bound
    assert sampler.score_branches({}, {0: []}) == {0: []}
    assert sampler.score_branches({}, {}) == {}


def test_branches_that_cannot_be_scored_are_refused(sampler):
    with pytest.raises(UsageError, match="slot 0 is empty"):
        sampler.score_branches({}, {0: [[1]]})
    sampler.extend({0: _ids(690, 0)})
    with pytest.raises(UsageError, match="would hold 701 tokens; max_length is 700"):
        sampler.score_branches({0: _ids(7, 0)}, {0: [[1], [1, 2, 3, 4]]})
    with pytest.raises(UsageError, match="outside the vocabulary"):
        sampler.score_branches({}, {0: [[1], [CONFIG.vocab_size]]})
    sampler.load(jax.tree.map(lambda x: x * float("nan"), _params()))
    sampler.extend({1: [1, 2]})
    with pytest.raises(NotFiniteError, match="slot 1"):
        sampler.score_branches({}, {1: [[1]]})


def _cached(sampler):
    """Every slot's valid keys and values."""
    cache, kept = sampler._runner.cache, []
    for slot, length in enumerate(sampler.lengths):
        for keys, values in zip(cache.keys, cache.values, strict=True):
            wide_KHS = np.asarray(keys[slot]).swapaxes(1, 2)
            wide_KHS = wide_KHS.reshape(*wide_KHS.shape[:2], -1)
            kept += [wide_KHS[..., :length], np.asarray(values[slot, :, :length])]
    return kept


# Read by the decode itself, and by a pass of its own; the second makes the cache grow.
@pytest.mark.parametrize("prefix", [3, 12, 270])
@pytest.mark.parametrize("how", [{}, {"repetition_penalty": 1.3}], ids=str)
def test_a_prefix_takes_the_place_of_the_prompts_end(sampler, prefix, how):
    prompts = {0: _ids(20, 0), 1: _ids(63, 1)}
    prefixes = {slot: _ids(prefix, 5 + slot) for slot in prompts}
    sampler.extend({slot: ids[:-4] for slot, ids in prompts.items()})
    wanted = sampler.sample(prefixes, max_new=8, **how)
    sampler.load(_params())
    sampler.extend(prompts)
    before = _cached(sampler)
    replaced = sampler.sample(prefixes, max_new=8, back=4, **how)
    for slot, generation in replaced.items():
        assert generation.ids == wanted[slot].ids
        np.testing.assert_allclose(generation.logprobs, wanted[slot].logprobs, atol=1e-4)
    for kept, found in zip(before, _cached(sampler), strict=True):
        np.testing.assert_array_equal(found, kept)
    assert [sampler.prompt(slot) for slot in prompts] == list(prompts.values())


def test_the_end_of_a_prompt_that_is_replaced_must_be_there(sampler):
    sampler.extend({0: _ids(20, 0)})
    with pytest.raises(UsageError, match="back is 21; slot 0 holds 20 ids"):
        sampler.sample({0: [1]}, max_new=8, back=21)
    with pytest.raises(UsageError, match="a prefix must take their place"):
        sampler.sample({0: []}, max_new=8, back=2)
