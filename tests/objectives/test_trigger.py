"""Action triggering: which tokens it compares, and what it does to them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from cotjax.data.pairs import OtherStates, PairCounts, branched, divided, step_pairs
from cotjax.data.pipeline import dropped_weights, packed_row
from cotjax.data.tokens import forked_example
from cotjax.errors import UsageError
from cotjax.masking import Dropping, Role
from cotjax.objectives.named import spec_of
from cotjax.objectives.trigger import Trigger, trigger_pairs
from cotjax.train.step import FIELDS

CONFIG = tiny.model_config(vocab_size=64)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return tiny.word_codec(tmp_path_factory.mktemp("tokenizer"), tiny.TINY_WORDS)


def row_of(pair, length=96):
    row = packed_row([vars(pair) | {"id": pair.id.encode()}], Dropping(0.0), 0, length)
    batch = dropped_weights({name: array[None] for name, array in row.items()}, 0.0)
    return {name: jnp.asarray(batch[name], kind) for name, kind in FIELDS["pairs"].items()}


def forked(codec, *ways):
    prompt = [(codec.encode("You see a fridge 1. i need a plate."), Role.PROMPT)]
    return row_of(branched(forked_example("pair", 0, prompt, ways)))


def test_swapped_sides_negate_the_margin(codec):
    search = [(codec.encode("next i open cabinet 1."), Role.REASONING)]
    state = [(codec.encode("look in fridge"), Role.REASONING)]
    loss = jax.jit(partial(Trigger(0.0).of, CONFIG))
    one, other = (
        loss(tiny.params(CONFIG), forked(codec, *ways))
        for ways in ((search, state), (state, search))
    )
    margin = float(one["margin"][0])
    assert margin == pytest.approx(-float(other["margin"][0]), rel=1e-4)
    assert abs(margin) > 1e-4
    for pairs, sign in ((one, 1), (other, -1)):
        assert float(pairs["loss"][0]) == pytest.approx(np.logaddexp(0, -sign * margin), rel=1e-4)


def test_means_are_of_continuations_without_the_end_of_the_turn(codec):
    end = (codec.encode("<|im_end|>"), Role.END)
    ways = [[(codec.encode(text), Role.REASONING), end] for text in ("i open cabinet 1.", "look")]
    batch = forked(codec, *ways)
    rng = np.random.default_rng(0)
    found = jnp.asarray(rng.uniform(-4, 0, batch["ids"].shape), jnp.float32)
    pairs = trigger_pairs(Trigger(), found, batch)
    written = (batch["weights"] > 0) & (batch["roles"] == Role.REASONING)
    for side, name in ((1, "chosen_mean"), (2, "rejected_mean")):
        own = np.asarray(found)[np.asarray(written & (batch["sides"] == side))]
        assert float(pairs[name][0]) == pytest.approx(own.mean(), rel=1e-6)

    gradient = jax.grad(lambda found: trigger_pairs(Trigger(), found, batch)["loss"][0])(found)
    assert not np.asarray(gradient)[np.asarray(~written)].any()
    assert np.asarray(gradient)[np.asarray(written)].all()


def test_what_responses_share_is_prompt(codec):
    episode = tiny.trajectory("t0", 3)
    anywhere = tuple(f"open cabinet {number + 1}" for number in range(9))
    steps = tuple(
        type(step)(**vars(step) | {"admissible_commands": anywhere}) for step in episode.steps
    )
    episode = type(episode)(**vars(episode) | {"steps": steps})
    answers = OtherStates(codec)
    plain, differing = (
        list(step_pairs(codec, [episode], answers, 200, PairCounts(), differing=differs))
        for differs in (False, True)
    )
    assert len(plain) == len(differing) == 3
    for whole, pair in zip(plain, differing, strict=True):
        for branch in (1, 2):
            ids = [
                each.ids[(each.branches == 0) | (each.branches == branch)].tolist()
                for each in (whole, pair)
            ]
            assert ids[0] == ids[1]
        chosen, rejected = (pair.ids[pair.sides == side] for side in (1, 2))
        assert chosen[0] != rejected[0]
        assert (pair.sides > 0).sum() < (whole.sides > 0).sum()


def test_a_response_that_begins_with_the_other_leaves_nothing(codec):
    ways = [[(codec.encode(text), Role.REASONING)] for text in ("look", "look in fridge")]
    shared, rest = divided(ways)
    assert shared == [(codec.encode("look"), Role.PROMPT)]
    assert rest[0] == [] and codec.decode([ids[0] for ids, _ in rest[1]]) == "in fridge"


def test_the_objective_is_chosen_by_name():
    assert spec_of(Trigger(0.5).values()) == Trigger(0.5)
    with pytest.raises(UsageError, match="alpha is -1"):
        Trigger(-1.0)
