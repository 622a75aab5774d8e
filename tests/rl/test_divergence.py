"""The divergence from the start as a cost of each play: of its own tokens, however they lie."""

from collections import defaultdict

import numpy as np
import pytest
from helpers import tiny
from helpers.doors import rl_run
from helpers.rollouts import games, play_games

from cotjax.rl.batches import advantages_of, step_batches
from cotjax.rl.divergence import with_costs
from cotjax.rl.rollouts import About, Rollouts

ABOUT = About(step=1, begin=0, end=1, policy="p", broken=(), refills=0)
BETA = 0.5


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return tiny.word_codec(tmp_path_factory.mktemp("tokenizer"), tiny.TINY_WORDS)


@pytest.fixture(scope="module")
def rollouts(codec):
    """One group of plays of 3, 1 and 2 steps; the second is lost."""
    episodes = [
        episode.model_copy(update={"success": episode.game.id != "g1"})
        for episode in play_games(codec, games(3, 1, 2), temperature=1.0)
    ]
    return Rollouts.of(ABOUT, (0, 0, 0), episodes, what().rl)


def what(row_length=160, **changes):
    fields = {"kl_in": "reward", "kl_estimator": "k1", "kl": BETA, "group": 3, "flat": "keep"}
    return rl_run({"row_length": row_length}, **fields | changes)


def scored(run, rollouts, codec):
    """Rows under a start that gives each token 0.1 times (id modulo 3) nats less."""
    advantages = advantages_of(rollouts, run.rl)
    (update,) = step_batches(run, rollouts, advantages.values, codec)
    less = 0.1 * (update.joined("targets") % 3)
    reference = np.where(update.joined("kl_weights") > 0, update.joined("old") - less, 0)
    return update.replaced("reference", reference.astype(np.float32))


@pytest.mark.parametrize("omega", [0.0, 1.0])
def test_a_play_costs_what_its_own_tokens_diverge(codec, rollouts, omega):
    run = what(omega=omega)
    update = scored(run, rollouts, codec)
    advantages, (laid,), costs = with_costs(rollouts, run.rl, [update], run.rl.kl)
    found = {}
    for play, episode in zip(rollouts.plays, rollouts.episodes, strict=True):
        by_hand = [BETA * 0.1 * sum(id % 3 for id in turn.cot.ids) for turn in episode.steps]
        np.testing.assert_allclose(costs[play.name], by_hand, rtol=1e-5)
        found[play.name] = dict(enumerate(by_hand))
    given = advantages_of(rollouts, run.rl, costs)
    for one, two in zip(advantages.values, given.values, strict=True):
        np.testing.assert_array_equal(one, two)
    # Each token has the advantage of its step; all else of the rows is as it was.
    own = defaultdict(list)
    for name, row, places, steps in laid.rows.tokens_of():
        by_name = dict(zip((play.name for play in rollouts.plays), given.values, strict=True))
        expected = by_name[name][steps].astype(np.float32)
        np.testing.assert_array_equal(laid.joined("advantages")[row, places], expected)
        own[row] += places.tolist()
    rest = laid.joined("advantages").copy()
    for row, places in own.items():
        rest[row, places] = 0
    assert not rest.any()
    for name in ("ids", "weights", "reference", "old"):
        np.testing.assert_array_equal(laid.joined(name), update.joined(name))


def test_a_play_in_several_trees_costs_what_it_costs_in_one(codec, rollouts):
    trees, costs = [], []
    for row_length in (80, 400):
        run = what(row_length)
        update = scored(run, rollouts, codec)
        trees.append(sum(map(len, update.rows.trees)))
        costs.append(with_costs(rollouts, run.rl, [update], run.rl.kl)[2])
    assert trees[0] > trees[1] == 3
    assert costs[0].keys() == costs[1].keys()
    for name, own in costs[0].items():
        np.testing.assert_allclose(own, costs[1][name], rtol=1e-5)


def test_without_a_difference_advantages_stay(codec, rollouts):
    run = what()
    advantages = advantages_of(rollouts, run.rl)
    (update,) = step_batches(run, rollouts, advantages.values, codec)
    update = update.replaced("reference", update.joined("old"))
    again, (laid,), _ = with_costs(rollouts, run.rl, [update], run.rl.kl)
    for one, two in zip(advantages.values, again.values, strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(laid.joined("advantages"), update.joined("advantages"))
