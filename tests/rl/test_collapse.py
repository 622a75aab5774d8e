"""Whether thoughts depend on their prompts: planted numbers, and a policy that cannot see them."""

from functools import partial

import jax
import numpy as np
import pytest
from helpers import tiny
from helpers.doors import rl_run
from helpers.rollouts import games, play_games

from cotjax.data.tokens import forked_example
from cotjax.masking import Role
from cotjax.rl.collapse import Thought, measures, thoughts_of, totals
from cotjax.rl.rollouts import About, Rollouts
from cotjax.rl.update import score_program, scored_fields

ABOUT = About(step=1, begin=0, end=1, policy="p", broken=(), refills=0)
MODEL = tiny.model_config(vocab_size=64, layers=1)
THOUGHTS = [
    Thought((*range(10, 10 + size), 5), prefix, tuple(range(20 + size, 30 + 2 * size)))
    for size, prefix in ((3, ()), (6, (7,)), (4, (7, 8)))
]


def test_the_same_thoughts_everywhere_carry_nothing_and_thoughts_of_their_own_all_there_is():
    same = np.broadcast_to(np.array([-3.0, -20.0, -7.5, -1.0]), (4, 4))
    found = measures(same)
    assert found["prompts"] == 4 and found["retrieved"] == 0
    assert found["information"] == pytest.approx(0) == found["over_others"]
    own = np.where(np.eye(4, dtype=bool), -1.0, -50.0)
    found = measures(own)
    assert found["information"] == pytest.approx(np.log(4)) and found["retrieved"] == 1
    assert found["over_others"] == pytest.approx(49.0)
    # Half of the thoughts are likelier elsewhere.
    mixed = np.log(np.array([[0.6, 0.5], [0.2, 0.3]]))
    found = measures(mixed)
    by_hand = np.mean([np.log(0.6 / 0.4), np.log(0.3 / 0.4)])
    assert found["information"] == pytest.approx(by_hand) and found["retrieved"] == 0.5
    assert found["over_others"] == pytest.approx(np.mean([np.log(3.0), np.log(0.6)]))


def scoring(params, mesh):
    program = score_program(MODEL, mesh, kernel="xla")

    def score(batch):
        with jax.set_mesh(mesh):
            return np.asarray(program(params, scored_fields(batch)))

    return score


def blind(path, leaf):
    """Attention gives nothing to what follows, so that a token sees itself alone."""
    return leaf * 0 if "o_proj" in jax.tree_util.keystr(path) else leaf


def test_branches_of_one_row_are_what_each_pair_is_alone_and_a_blind_policy_carries_nothing():
    mesh, params = tiny.mesh(), tiny.params(MODEL)
    of = partial(totals, row_length=64, rows=2)
    found = of(THOUGHTS, scoring(params, mesh))
    for i, prompt in enumerate(THOUGHTS):
        for j, thought in enumerate(THOUGHTS):
            alone = of([prompt, thought], scoring(params, mesh))[0, 1]
            np.testing.assert_allclose(found[i, j], alone, rtol=1e-5, err_msg=f"{i} {j}")
    assert measures(found)["information"] != pytest.approx(0, abs=1e-4)
    # In short rows a prompt has several trees.
    short = totals(THOUGHTS, scoring(params, mesh), row_length=32, rows=2)
    np.testing.assert_allclose(short, found, rtol=1e-5)
    unseen = of(THOUGHTS, scoring(jax.tree_util.tree_map_with_path(blind, params), mesh))
    assert (unseen < -1).all()
    np.testing.assert_allclose(unseen, np.broadcast_to(unseen[:1], unseen.shape), rtol=1e-5)
    assert measures(unseen)["information"] == pytest.approx(0, abs=1e-4)
    example = forked_example("x", 0, [([1, 5], Role.PROMPT)], [[([9], Role.REASONING)]])
    assert example.ids.tolist() == [1, 5, 9]


def test_thoughts_are_of_different_groups_and_prompts_and_fit_into_rows(tmp_path):
    codec = tiny.word_codec(tmp_path, tiny.TINY_WORDS)
    episodes = play_games(codec, games(3, 1, 2), temperature=1.0)
    what = rl_run(group=3).rl
    rollouts = Rollouts.of(ABOUT, (0, 1, 2), episodes, what)
    kept = thoughts_of(rollouts, codec, 8, 400, seed=3)
    assert 1 <= len(kept) <= 3 and len({each.prompt for each in kept}) == len(kept)
    sampled = {
        (tuple(id for step in episode.steps[: number + 1] for id in step.prompt_ids), turn.cot.ids)
        for episode in episodes
        for number, turn in enumerate(episode.steps)
    }
    for each in kept:
        (ids,) = (
            ids
            for prompt, ids in sampled
            if prompt == each.prompt and ids[: len(each.ids)] == each.ids
        )
        assert each.ids and codec.decode(ids[len(each.ids) :]).lstrip().startswith("<action>")
    assert kept == thoughts_of(rollouts, codec, 8, 400, seed=3)
    assert len(thoughts_of(rollouts, codec, 1, 400, seed=3)) == 1
    one_group = Rollouts.of(ABOUT, (0, 0, 0), episodes, what)
    assert len(thoughts_of(one_group, codec, 8, 400, seed=3)) == 1
    assert not thoughts_of(rollouts, codec, 8, 8, seed=3)
