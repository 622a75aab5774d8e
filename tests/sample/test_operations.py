"""Random operations of a Sampler, each compared with a plain computation over the whole row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from cotjax.model import decoder
from cotjax.model.params import init_params
from cotjax.model.sharding import make_mesh
from cotjax.sample.buckets import CAPACITY_BUCKETS
from cotjax.sample.decoding import FORCED_MOST
from cotjax.sample.sampler import Sampler
from cotjax.sample.sampling import seed_words, slot_key

CONFIG = tiny.model_config(layers=1, max_length=640)
SLOTS, MAX_LENGTH, MAX_NEW = 3, 600, 12
# Letters, and what a tokenizer may have merged of them; two ids that are no tokens, and three rows
# of the model past them all.
PIECES = [
    *"abcdefghij",
    *(x + y for x in "abcdef" for y in "abcdef"),
    *["abc", "cab", "aab", "xyz", "", " "],
    None,
    *"klmno",
][:58]
PIECES[20] = None
STOP = ["abca", "ff", "ccc"]
TOKENS = np.array([*(piece is not None for piece in PIECES), *[False] * 3])
# What may differ between a decode and a forward over the whole row: the order of sums.
ROUNDING = 2e-3


@pytest.fixture(scope="module")
def made():
    params = jax.tree.map(lambda x: 3 * x, init_params(CONFIG, jax.random.key(0)))
    mesh = make_mesh(devices=jax.devices()[:1])
    sampler = Sampler(
        CONFIG,
        mesh,
        slots=SLOTS,
        max_length=MAX_LENGTH,
        stop=STOP,
        pad_id=0,
        max_new=MAX_NEW,
        pieces=PIECES,
    )

    @jax.jit
    def logits(ids_1S):
        ones = jnp.ones_like(ids_1S)
        hidden = decoder.hidden_states(
            CONFIG, params, ids_1S, jnp.arange(ids_1S.shape[1])[None], ones, 0 * ones
        )
        return decoder.logits(CONFIG, params, hidden)[0]

    def forward(ids):
        row = np.zeros((1, CONFIG.max_length), np.int32)
        row[0, : len(ids)] = ids
        return np.asarray(logits(row), np.float64)

    return sampler, params, forward


def _kept(scores, top_k, top_p):
    """Which ids the filters keep, one id a time in falling order."""
    order = np.argsort(-scores, kind="stable")
    among = (
        scores >= scores[order[top_k - 1]]
        if 0 < top_k < len(scores)
        else np.full(len(scores), True)
    )
    shares = np.where(among, np.exp(scores - scores[order[0]]), 0)
    shares /= shares.sum()
    kept, total = np.zeros(len(scores), bool), 0.0
    for id in order:
        if not among[id] or (total >= top_p and top_p < 1):
            break
        kept[id], total = True, total + shares[id]
    return kept


def _check_choice(logits, past, id, index, how, seed):
    """`id` is the best by the plain rules, as far as rounding lets one tell; None: there is
    none.
    """
    scores = logits.copy()
    for seen in set(past):
        scores[seen] *= (
            how["repetition_penalty"] if scores[seen] < 0 else 1 / how["repetition_penalty"]
        )
    size = how["no_repeat_ngram_size"]
    if size:
        last = past[len(past) - size + 1 :] if size > 1 else []
        for at in range(len(past) - size + 1):
            if past[at : at + size - 1] == last:
                scores[past[at + size - 1]] = -np.inf
    scores[~TOKENS] = -np.inf
    if id is None:
        assert np.isneginf(scores).all()
        return
    loosely = np.isfinite(scores)
    if how["temperature"] > 0:
        scores = scores / how["temperature"]
        noise = jax.random.gumbel(
            jax.random.fold_in(slot_key(seed_words(seed)), index), (len(scores),), jnp.float32
        )
        filters = how["top_k"], how["top_p"]
        surely = _kept(scores, filters[0], filters[1] - 1e-4 * (filters[1] < 1))
        loosely &= _kept(scores, filters[0], filters[1] + 1e-4 * (filters[1] < 1))
        scores = scores + np.asarray(noise)
        best = scores[surely].max()
    else:
        best = scores.max()
    assert loosely[id] and scores[id] >= best - ROUNDING, (id, index, how)


def _check_generation(made, context, max_new, how, seed, forward):
    logits = forward([*context, *made.ids])[len(context) - 1 :]
    text = "".join(PIECES[id] for id in made.ids)
    before = text[: len(text) - len(PIECES[made.ids[-1]])] if made.ids else ""
    for index, id in enumerate(made.ids):
        _check_choice(logits[index], [*context, *made.ids[:index]], id, index, how, seed)
    logprobs = jax.nn.log_softmax(logits[: len(made.ids)])[np.arange(len(made.ids)), made.ids]
    np.testing.assert_allclose(made.logprobs, logprobs, atol=ROUNDING)
    assert not any(stop in before for stop in STOP)
    assert made.stopped == any(stop in text for stop in STOP)
    if not made.stopped and len(made.ids) < min(max_new, MAX_LENGTH - len(context)):
        _check_choice(logits[len(made.ids)], [*context, *made.ids], None, len(made.ids), how, seed)


def _operate(made, seed, count, sizes):
    """`count` operations; returns how often each was done."""
    sampler, params, forward = made
    draw = np.random.default_rng(seed)
    sampler.load(params)
    held = {slot: [] for slot in range(SLOTS)}
    done = dict.fromkeys(
        ("extend", "branch", "branches", "score", "reset", "none left", "stopped"), 0
    )

    def ids(size):
        return draw.choice(np.flatnonzero(TOKENS), size).tolist()

    def some(least=1):
        return draw.choice(SLOTS, draw.integers(least, SLOTS + 1), replace=False).tolist()

    for _ in range(count):
        kind = draw.choice(
            ["extend", "extend", "branch", "branch", "branch", "branches", "score", "reset"]
        )
        ready = [slot for slot in some() if 0 < len(held[slot]) < MAX_LENGTH - FORCED_MOST - 4]
        done[kind] += 1
        if kind == "extend":
            pieces = {}
            for slot in some():
                # By a few ids, or up to an edge of the cache's capacity.
                edges = [
                    edge + by - len(held[slot])
                    for edge in (*CAPACITY_BUCKETS[:2], MAX_LENGTH)
                    for by in range(-9, 2)
                ]
                size = int(
                    draw.choice(
                        [
                            size
                            for size in (*sizes, *edges)
                            if 0 <= size <= MAX_LENGTH - len(held[slot])
                        ]
                    )
                )
                pieces[slot] = ids(size)
                held[slot] = held[slot] + pieces[slot]
            sampler.extend(pieces)
        elif kind == "reset":
            emptied = [int(draw.integers(SLOTS))]
            sampler.reset(emptied)
            held |= {slot: [] for slot in emptied}
        elif kind == "score":
            forced = {slot: ids(draw.integers(0, 12)) for slot in ready}
            forced = {slot: own[: MAX_LENGTH - len(held[slot])] for slot, own in forced.items()}
            for slot, found in sampler.score(forced).items():
                after = jax.nn.log_softmax(forward([*held[slot], *forced[slot]]))
                wanted = after[np.arange(len(found)) + len(held[slot]) - 1, forced[slot]]
                np.testing.assert_allclose(found, wanted, atol=ROUNDING)
        else:
            how = {
                "temperature": float(draw.choice([0, 0, 0.7, 1.5])),
                "top_k": int(draw.choice([0, 0, 5, 200])),
                "top_p": float(draw.choice([1, 1, 0.8])),
                "repetition_penalty": float(draw.choice([1, 1, 1.3, 1.00001])),
                "no_repeat_ngram_size": int(draw.choice([0, 0, 0, 1, 2, 3])),
            }
            prefixes = {slot: ids(draw.integers(0, FORCED_MOST + 3)) for slot in ready}
            seeds = {
                slot: [int(x) for x in draw.integers(0, 2**63, 1 + (kind == "branches"))]
                for slot in ready
            }
            max_new = int(draw.integers(1, MAX_NEW + 1))
            given = seeds if how["temperature"] else None
            for slot, generations in sampler.samples(
                prefixes, max_new=max_new, seeds=given, **how
            ).items():
                assert len(generations) == (len(seeds[slot]) if how["temperature"] else 1)
                for one, own in zip(generations, seeds[slot], strict=False):
                    _check_generation(
                        one, [*held[slot], *prefixes[slot]], max_new, how, own, forward
                    )
                    done["stopped"] += one.stopped
                    done["none left"] += not one.stopped and len(one.ids) < max_new
        assert [sampler.prompt(slot) for slot in range(SLOTS)] == list(held.values())
    return done


def test_random_operations_are_those_of_the_plain_computation(made):
    done = _operate(made, seed=1, count=30, sizes=[40, 3])
    assert (
        min(done[kind] for kind in ("extend", "branch", "branches", "score", "reset", "stopped"))
        > 0
    ), done


@pytest.mark.slow
def test_many_random_operations_are_those_of_the_plain_computation(made):
    for seed in range(2, 10):
        done = _operate(
            made, seed, count=150, sizes=[0, 1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 130]
        )
        assert done["none left"] > 0


@pytest.mark.parametrize(
    "room", [CAPACITY_BUCKETS[0], pytest.param(CAPACITY_BUCKETS[1], marks=pytest.mark.slow)]
)
def test_a_prompt_may_end_anywhere_about_the_edge_of_the_cache(made, room):
    """Prompt, prefix and what is made lie on either side of it; a decode that looks back holds all
    of them.
    """
    sampler, params, forward = made
    draw = np.random.default_rng(room)
    for by in (-FORCED_MOST - 1, -3, -2, -1, 0, 1):
        sampler.load(params)
        context = {
            slot: draw.choice(np.flatnonzero(TOKENS), room + by - slot).tolist()
            for slot in range(SLOTS)
        }
        sampler.extend(context)
        for size in (0, 1, 3, FORCED_MOST, FORCED_MOST + 1):
            how = {"temperature": 0.0, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2}
            prefixes = {
                slot: draw.choice(np.flatnonzero(TOKENS), size).tolist() for slot in range(SLOTS)
            }
            for slot, one in sampler.sample(prefixes, max_new=3, **how).items():
                _check_generation(one, context[slot] + prefixes[slot], 3, how, 0, forward)
