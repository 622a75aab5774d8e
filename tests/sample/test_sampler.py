import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from cotjax.errors import UsageError
from cotjax.model import decoder
from cotjax.model.params import init_params
from cotjax.sample.buckets import CAPACITY_BUCKETS, read_buckets
from cotjax.sample.decoding import FORCED_MOST
from cotjax.sample.sampler import Sampler

CONFIG = tiny.model_config()
MAX_LENGTH = 290  # past the first room bucket


@functools.cache
def _params():
    """Larger than initial weights, so that the text depends on what was read."""
    return jax.tree.map(lambda x: 3 * x, tiny.params())


def _ids(count, seed):
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, count).tolist()


PROMPTS = {0: _ids(3, 0), 1: _ids(140, 1), 2: _ids(20, 2), 3: _ids(9, 3)}


@pytest.fixture(scope="module")
def compiled():
    return Sampler(CONFIG, tiny.mesh(), slots=4, max_length=MAX_LENGTH, stop=[], pad_id=0)


@pytest.fixture
def sampler(compiled):
    compiled.load(_params())
    return compiled


@jax.jit
def _logits(ids):
    ones = jnp.ones_like(ids)
    return decoder.logits(
        CONFIG,
        _params(),
        decoder.hidden_states(
            CONFIG, _params(), ids, jnp.arange(ids.shape[1])[None], ones, 0 * ones
        ),
    )


def _greedy(ids, count):
    """The next ids and their log-probabilities, each by a full forward over the whole row."""
    ids, logprobs, start = list(ids), [], len(ids)
    for _ in range(count):
        row = np.zeros((1, 192), np.int32)
        row[0, : len(ids)] = ids
        after = jax.nn.log_softmax(_logits(row)[0, len(ids) - 1])
        ids.append(int(after.argmax()))
        logprobs.append(float(after.max()))
    return ids[start:], logprobs


def test_generation_equals_the_full_forward_turn_after_turn(sampler):
    held = {slot: list(ids) for slot, ids in PROMPTS.items()}
    sampler.extend(held)
    for turn in range(2):
        prefixes = {0: [], 1: _ids(2, 10 + turn), 3: _ids(11, 20 + turn)}
        made = sampler.sample(prefixes, max_new=6)
        assert made.keys() == prefixes.keys()
        for slot, prefix in prefixes.items():
            ids, logprobs = _greedy(held[slot] + prefix, 6)
            assert made[slot].ids == ids and not made[slot].stopped
            np.testing.assert_allclose(made[slot].logprobs, logprobs, atol=1e-4)
        pieces = {1: made[1].ids + _ids(5, 30), 0: _ids(2, 31), 2: []}
        sampler.extend(pieces)
        for slot, ids in pieces.items():
            held[slot] += ids
        np.testing.assert_array_equal(sampler.lengths, [len(held[slot]) for slot in range(4)])


def _cached(sampler):
    """Every slot's valid keys, values and last hidden state."""
    cache, kept = sampler._runner.cache, []
    for slot, length in enumerate(sampler.lengths):
        wide = [
            np.asarray(keys[slot]).swapaxes(1, 2).reshape(CONFIG.kv_heads, CONFIG.head_size, -1)
            for keys in cache.keys
        ]
        kept += [keys[..., :length] for keys in wide]
        kept += [np.asarray(values[slot, :, :length]) for values in cache.values]
    return [*kept, np.asarray(sampler._runner.hidden_BD)]


def test_a_branch_leaves_every_slot_as_it_was(sampler):
    def play(branching):
        sampler.load(_params())
        states, texts = [], []
        for turn in range(3):
            sampler.extend({slot: _ids(7 + slot, 40 + turn + slot) for slot in (0, 1, 3)})
            if branching:
                sampler.sample(
                    {0: _ids(50, 50), 3: []}, max_new=20, temperature=1.0, seeds={0: 1, 3: 2}
                )
                sampler.sample({1: _ids(1, 51)}, max_new=9, repetition_penalty=1.3)
                sampler.samples(
                    {0: [3], 1: []}, max_new=7, temperature=1.0, seeds={0: [1, 2], 1: [3]}
                )
                sampler.score({0: _ids(40, 53), 3: _ids(3, 54)})
            states.append(_cached(sampler))
            texts.append(sampler.sample({0: [], 1: [], 3: _ids(2, 52)}, max_new=8))
        return sampler.lengths, states, texts

    lengths, states, texts = play(branching=False)
    again_lengths, again_states, again_texts = play(branching=True)
    np.testing.assert_array_equal(again_lengths, lengths)
    assert again_texts == texts
    for state, again in zip(states, again_states, strict=True):
        for kept, found in zip(state, again, strict=True):
            np.testing.assert_array_equal(found, kept)


@pytest.mark.parametrize(
    "how", [{}, {"top_k": 20, "top_p": 0.9}, {"repetition_penalty": 1.2}], ids=str
)
def test_sampled_text_does_not_depend_on_neighbours_or_place(sampler, how):
    seeds = {0: 5, 1: 2**63 + 6, 2: 7, 3: 8}
    how = {"max_new": 12, "temperature": 1.0} | how
    sampler.extend(PROMPTS)
    together = sampler.sample({slot: [1] for slot in PROMPTS}, seeds=seeds, **how)
    assert sampler.sample({2: [1]}, seeds={2: 7}, **how)[2].ids == together[2].ids
    assert sampler.sample({2: [1]}, seeds={2: 6}, **how)[2].ids != together[2].ids
    sampler.load(_params())
    moved = {0: 3, 1: 2, 2: 1, 3: 0}
    for slot in (2, 0, 3, 1):
        sampler.extend({moved[slot]: PROMPTS[slot]})
    again = sampler.sample(
        {moved[s]: [1] for s in PROMPTS}, seeds={moved[s]: seeds[s] for s in seeds}, **how
    )
    for slot in PROMPTS:
        assert again[moved[slot]].ids == together[slot].ids


def test_stop_sequences_end_a_generation_and_are_part_of_it():
    free, _ = _greedy(PROMPTS[2], 12)
    other, _ = _greedy(PROMPTS[3], 12)
    stopping = Sampler(
        CONFIG,
        tiny.mesh(),
        slots=4,
        max_length=MAX_LENGTH,
        stop=[free[4:7], [free[4], (free[5] + 1) % 61]],
        pad_id=0,
    )
    stopping.load(_params())
    stopping.extend(PROMPTS)
    made = stopping.sample({2: [], 3: []}, max_new=12)
    assert (made[2].ids, made[2].stopped) == (free[:7], True)
    assert len(made[2].logprobs) == 7
    assert (made[3].ids, made[3].stopped) == (other, False)
    # A prefix that ends with a stop's first two ids: a stop is made of new ids alone.
    cut = stopping.sample({2: free[:6]}, max_new=3)[2]
    assert (cut.ids, cut.stopped) == (free[6:9], False)


def test_each_call_may_stop_elsewhere_by_the_programs_that_are_there(sampler):
    sampler.extend(PROMPTS)
    whole = sampler.sample({1: []}, max_new=12)[1]
    counts = sampler.compilations, sampler.compilations_bound
    first = whole.ids.index(whole.ids[5])
    for stop, end in (
        ([[whole.ids[5]]], first + 1),
        ([whole.ids[2:4], [CONFIG.vocab_size - 1] * 20], 4),
        ([[CONFIG.vocab_size - 1]] if CONFIG.vocab_size - 1 not in whole.ids else [], 12),
    ):
        cut = sampler.sample({1: []}, max_new=12, stop=stop)[1]
        assert cut.ids == whole.ids[:end] and cut.logprobs == whole.logprobs[:end]
        assert cut.stopped == (end < 12)
        assert sampler.sample({1: []}, max_new=12)[1] == whole, "its own stop sequences are back"
    assert (sampler.compilations, sampler.compilations_bound) == counts
    with pytest.raises(UsageError, match="a stop sequence is empty"):
        sampler.sample({1: []}, max_new=12, stop=[[]])


def test_branches_of_one_slot_are_its_single_branches(sampler):
    sampler.extend(PROMPTS)
    seeds = {0: [5], 2: [7, 8, 7], 3: [9, 10]}
    several = sampler.samples(
        {slot: [1] for slot in seeds}, max_new=9, temperature=1.0, seeds=seeds
    )
    for slot, own in seeds.items():
        for number, seed in enumerate(own):
            assert (
                several[slot][number].ids
                == sampler.sample({slot: [1]}, max_new=9, temperature=1.0, seeds={slot: seed})[
                    slot
                ].ids
            )
    assert [len(several[slot]) for slot in seeds] == [1, 3, 2]
    assert several[2][0] == several[2][2] and several[2][0].ids != several[2][1].ids
    assert sampler.samples({2: [1]}, max_new=4) == {2: [sampler.sample({2: [1]}, max_new=4)[2]]}


def test_a_branch_costs_its_own_tokens_alone(sampler, monkeypatch):
    """Counted where programs are run: what each reads, and how often one decodes."""
    ran, program = [], sampler._runner._program

    def counting(lower, *sizes):
        name = lower.__name__

        def run(params, cache, hidden, *arrays):
            ran.append(
                (name, int(np.asarray(arrays[1]).sum())) if name in ("prefill", "score") else name
            )
            return compiled(params, cache, hidden, *arrays)

        compiled = program(lower, *sizes)
        return compiled if name in ("empty", "grow") else run

    monkeypatch.setattr(sampler._runner, "_program", counting)
    warm = {"max_new": 3, "temperature": 1.0}
    sampler.extend({0: PROMPTS[1], 1: PROMPTS[2]})
    assert sum(read for _, read in ran) == 140 + 20
    for call, expected in (
        (
            lambda: sampler.sample({0: [1, 2], 1: []}, max_new=3),
            ["decode"],
        ),  # which takes a short prefix itself
        (lambda: sampler.sample({0: [1] * 9, 1: []}, max_new=3), [("prefill", 9), "decode"]),
        (lambda: sampler.sample({0: [], 1: []}, max_new=3), ["decode"]),
        (
            lambda: sampler.samples({0: [1, 2], 1: [3]}, seeds={0: [1, 2, 3], 1: [4]}, **warm),
            [("prefill", 3), *["decode"] * 3],
        ),
        (lambda: sampler.score({0: [1, 2, 3], 1: [4, 5]}), [("score", 5)]),
    ):
        ran.clear()
        call()
        assert ran == expected


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 1.0, "seeds": {slot: slot for slot in PROMPTS}},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    ],
    ids=str,
)
def test_a_prefix_that_a_decode_takes_is_one_that_was_read(sampler, how):
    """Long prefixes are read in a pass of their own. Of unequal ones, and a stop sequence that must
    not begin in the prefix.
    """
    sampler.extend(PROMPTS)
    prefixes = {0: [], 1: _ids(FORCED_MOST, 10), 2: _ids(1, 11), 3: _ids(3, 12)}
    text = sampler.sample(prefixes, max_new=12, **how)
    first = text[3].ids[0]
    stopping = Sampler(
        CONFIG,
        tiny.mesh(),
        slots=4,
        max_length=MAX_LENGTH,
        stop=[[prefixes[3][-1], first], text[1].ids[3:5]],
        pad_id=0,
        max_new=12,
    )
    stopping.load(_params())
    stopping.extend(PROMPTS)
    given = stopping.sample(prefixes, max_new=12, **how)
    assert stopping.compilations == 3, (
        "a cache, a read of the prompts, a decode: nothing for the prefixes"
    )
    stopping.extend(prefixes)
    read = stopping.sample(dict.fromkeys(prefixes, ()), max_new=12, **how)
    for slot in PROMPTS:
        assert (given[slot].ids, given[slot].stopped) == (read[slot].ids, read[slot].stopped)
        np.testing.assert_allclose(given[slot].logprobs, read[slot].logprobs, atol=1e-4)
    assert given[1].stopped and given[1].ids == text[1].ids[:5]
    assert not given[3].stopped and given[3].ids == text[3].ids


def test_scores_are_the_logprobs_of_what_was_decoded_and_of_the_full_forward(sampler):
    sampler.extend(PROMPTS)
    made = sampler.sample({0: [], 2: []}, max_new=12)
    scored = sampler.score(
        {0: made[0].ids, 2: made[2].ids, 3: _ids(150, 70)}
    )  # several pieces, and another room
    for slot in (0, 2):
        np.testing.assert_allclose(scored[slot], made[slot].logprobs, atol=1e-4)
    whole = [*PROMPTS[3], *_ids(150, 70)]
    row = np.zeros((1, 192), np.int32)
    row[0, : len(whole)] = whole
    after = np.asarray(jax.nn.log_softmax(_logits(row)[0]))
    np.testing.assert_allclose(scored[3], after[np.arange(8, 158), whole[9:]], atol=1e-4)
    assert sampler.sample({0: [], 2: []}, max_new=12) == made


def test_a_repetition_penalty_is_over_prompt_prefix_and_what_was_made(sampler):
    sampler.extend(PROMPTS)
    free = sampler.sample({0: []}, max_new=20)[0].ids
    repeated = next(at for at, id in enumerate(free) if id in free[:at] and id not in PROMPTS[0])
    prefixes = {
        0: free[:repeated],
        3: [],
    }  # behind this prefix the model would make one of its ids again
    made = sampler.sample(prefixes, max_new=10, repetition_penalty=1.5)
    for slot, prefix in prefixes.items():
        ids, logprobs = [*PROMPTS[slot], *prefix], []
        for _ in range(10):
            row = np.zeros((1, 192), np.int32)
            row[0, : len(ids)] = ids
            logits = np.asarray(_logits(row)[0, len(ids) - 1])
            penalised = logits.copy()
            for seen in set(ids):
                penalised[seen] *= 1.5 if logits[seen] < 0 else 1 / 1.5
            ids.append(int(penalised.argmax()))
            logprobs.append(float(jax.nn.log_softmax(logits)[ids[-1]]))
        assert made[slot].ids == ids[-10:]
        np.testing.assert_allclose(
            made[slot].logprobs, logprobs, atol=1e-4
        )  # the model's own, without the penalty
    assert made[0].ids[0] != free[repeated]
    assert made[3].ids != sampler.sample({3: []}, max_new=10)[3].ids


def test_no_ngram_comes_twice_where_none_may(sampler):
    sampler.extend(PROMPTS)
    free = sampler.sample({slot: [7, 8] for slot in PROMPTS}, max_new=20)
    made = sampler.sample({slot: [7, 8] for slot in PROMPTS}, max_new=20, no_repeat_ngram_size=2)
    again = sampler.samples(
        {slot: [7, 8] for slot in PROMPTS},
        max_new=20,
        temperature=2.0,
        seeds={slot: [1] for slot in PROMPTS},
        no_repeat_ngram_size=2,
    )

    def repeated(slot, ids):
        whole = [*PROMPTS[slot], 7, 8, *ids]
        pairs = list(itertools.pairwise(whole))
        begun = len(whole) - len(ids) - 1  # pairs of the prompt may come twice
        return [pair for at, pair in enumerate(pairs) if at >= begun and pair in pairs[:at]]

    assert any(repeated(slot, free[slot].ids) for slot in PROMPTS)
    assert not any(
        repeated(slot, made[slot].ids) or repeated(slot, again[slot][0].ids) for slot in PROMPTS
    )


def test_max_length_bounds_prompts_and_branches(sampler):
    sampler.extend({0: _ids(MAX_LENGTH - 5, 60), 1: [1, 2]})
    with pytest.raises(
        UsageError, match=rf"slot 0 would hold {MAX_LENGTH + 1} tokens; max_length is {MAX_LENGTH}"
    ):
        sampler.extend({1: [3], 0: _ids(6, 61)})
    np.testing.assert_array_equal(sampler.lengths, [MAX_LENGTH - 5, 2, 0, 0])  # no slot changed
    made = sampler.sample({0: [1, 2], 1: []}, max_new=10)
    assert (len(made[0].ids), len(made[1].ids)) == (3, 10)
    with pytest.raises(UsageError, match="slot 0 and its prefix fill max_length"):
        sampler.sample({0: _ids(5, 62)}, max_new=1)


def test_reset_and_load_forget(sampler):
    def texts():
        return {slot: made.ids for slot, made in sampler.sample({1: [], 2: []}, max_new=6).items()}

    sampler.extend(PROMPTS)
    fresh = texts()
    sampler.reset([2, 3])
    np.testing.assert_array_equal(sampler.lengths, [3, 140, 0, 0])
    sampler.extend({2: PROMPTS[2]})
    assert texts() == fresh

    sampler.load(jax.tree.map(lambda x: 1.5 * x, _params()))
    assert not sampler.lengths.any()
    sampler.extend(PROMPTS)
    assert texts() != fresh
    sampler.load(_params())
    sampler.extend(PROMPTS)
    assert texts() == fresh


def test_weights_are_a_copy(sampler):
    own = jax.tree.map(jnp.copy, _params())
    sampler.load(own)
    sampler.extend(PROMPTS)
    made = sampler.sample({0: []}, max_new=3)
    jax.tree.map(lambda x: x.delete(), own)  # as when a train step takes its state as a donation
    assert sampler.sample({0: []}, max_new=3) == made


def test_a_long_episode_compiles_at_most_one_program_a_bucket():
    sampler = Sampler(
        CONFIG, tiny.mesh(), slots=2, max_length=MAX_LENGTH, stop=[], pad_id=0, max_new=16
    )
    rooms, counts = 2, []
    assert CAPACITY_BUCKETS[1] > MAX_LENGTH
    assert read_buckets(2) == [16, 32, 48, 512]
    assert sampler.compilations_bound == rooms * (1 + 4 * 4 + 6 + 2)
    for seed in range(2):
        sampler.load(_params())
        sampler.extend({0: _ids(30, seed), 1: _ids(20, seed)})
        for turn in range(11):
            sampler.sample({0: [1], 1: []}, max_new=12)
            sampler.sample({1: [turn]}, max_new=5 + turn, temperature=0.7, seeds={1: turn})
            sampler.extend({slot: _ids(17 + turn, turn) for slot in range(2)})
        sampler.sample({0: [1]}, max_new=3)
        counts.append(sampler.compilations)
    # To make a cache, to let it grow; in each room one that reads (here pieces of up to 32) and one
    # that decodes.
    assert counts[0] == 2 + 2 * rooms
    assert counts[1] == counts[0]


@pytest.mark.slow
def test_all_that_a_sampler_can_do_stays_within_its_bound():
    config = tiny.model_config(layers=1)
    sampler = Sampler(config, tiny.mesh(), slots=64, max_length=200, stop=[], pad_id=0, max_new=4)
    sampler.load(init_params(config, jax.random.key(0)))
    for length in (2, 20, 120):
        sampler.extend({0: _ids(length, length)})
        for how in (
            {},
            {"top_k": 3, "temperature": 1.0, "seeds": {0: 1}},
            {"repetition_penalty": 1.1},
        ):
            sampler.sample({0: []}, max_new=4, **how)
        for size in (2, 20, 40):
            sampler.score({0: _ids(size, size)})
            sampler.score_branches({0: _ids(size, size)}, {0: [[1, 2]]})
            if size < sampler.lengths[0]:
                sampler.sample({0: [1]}, max_new=4, back=size)
    assert sampler.compilations == sampler.compilations_bound == 1 + 4 * 3 + 3 + 2


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda s: s.extend({4: [1]}), r"slot 4 is not one of 0 \.\. 3"),
        (lambda s: s.reset([-1]), "slot -1"),
        (lambda s: s.extend({0: [61]}), "slot 0 has an id outside the vocabulary"),
        (lambda s: s.sample({2: []}, max_new=3), "slot 2 is empty"),
        (lambda s: s.sample({0: [1]}, max_new=0), "max_new is 0"),
        (lambda s: s.sample({0: [1]}, max_new=129), "max_new is 129; it must be 1 to 128"),
        (lambda s: s.sample({0: [1]}, max_new=1, temperature=-1.0), r"temperature is -1\.0"),
        (lambda s: s.sample({0: [1]}, max_new=1, top_k=-1), "top_k is -1"),
        (lambda s: s.sample({0: [1]}, max_new=1, top_p=0.0), r"top_p is 0\.0; it must be over 0"),
        (
            lambda s: s.sample({0: [1]}, max_new=1, repetition_penalty=0.0),
            r"repetition_penalty is 0\.0",
        ),
        (
            lambda s: s.sample({0: [1]}, max_new=1, no_repeat_ngram_size=-1),
            r"no_repeat_ngram_size is -1",
        ),
        (
            lambda s: s.samples({0: [1]}, max_new=1, temperature=1.0, seeds={0: []}),
            "slot 0 has no seed",
        ),
        (lambda s: s.score({0: [1]}), "slot 0 is empty"),
        (
            lambda s: s.sample({0: [1], 1: [1]}, max_new=1, temperature=1.0, seeds={0: 1}),
            "slot 1 has no seed",
        ),
    ],
)
def test_what_callers_may_get_wrong(sampler, call, words):
    with pytest.raises(UsageError, match=words):
        call(sampler)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"slots": 0}, "slots is 0"),
        ({"max_length": 513}, "allow 1 to 512"),
        ({"max_new": 0}, "max_new is 0"),
        ({"pad_id": 61}, "pad_id"),
    ],
)
def test_construction_is_checked(change, words):
    with pytest.raises(UsageError, match=words):
        Sampler(
            CONFIG,
            tiny.mesh(),
            **({"slots": 2, "max_length": 64, "stop": [], "pad_id": 0} | change),
        )


def test_weights_come_first():
    with pytest.raises(UsageError, match=r"call load\(params\) first"):
        Sampler(CONFIG, tiny.mesh(), slots=1, max_length=64, stop=[], pad_id=0).extend({0: [1]})
