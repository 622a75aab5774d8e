"""A run of reinforcement learning on a tiny world: resume, refills, isolation, drift."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.doors import LORA_MODEL, MODEL, WORLD, Door, acting, game, rl_run, rows, run
from helpers.training import params_at

from cotjax.envs.pool.pool import EnvPool
from cotjax.errors import UsageError
from cotjax.masking import Dropping
from cotjax.rl import main
from cotjax.rl.batches import step_batches
from cotjax.rl.groups import Stream
from cotjax.rl.play import play_step
from cotjax.rl.policy import fingerprint
from cotjax.rl.rollouts import read_rollouts, rollouts_file


@pytest.fixture(scope="module")
def actors():
    with acting() as actors:
        yield actors


@pytest.fixture(scope="module")
def whole(actors, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, rl_run(), actors)
    return folder


def assert_same(folder, other):
    """Assert that two runs left the same rows, rollouts, checkpoints and parameters, to the bit."""
    assert rows(folder) == rows(other)
    for name in ("rollouts", "checkpoints"):
        assert _names(folder / name) == _names(other / name)
    for file in (other / "rollouts").glob("step-*.npz"):
        assert (folder / "rollouts" / file.name).read_bytes() == file.read_bytes()
    for step in (2, 3):
        jax.tree.map(
            np.testing.assert_array_equal,
            *(params_at(each / "checkpoints", step, MODEL) for each in (folder, other)),
        )


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_run_leaves_rows_rollouts_and_checkpoints(whole):
    found = rows(whole)
    assert [row["step"] for row in found] == [1, 2, 3]
    assert _names(whole / "rollouts") == [f"step-00000{n}.npz" for n in (1, 2, 3)]
    assert _names(whole / "checkpoints") == ["0", "2", "3"]
    assert any(row["grad_norm"] for row in found), "no step had a group to learn from"
    assert not jax.tree.all(
        jax.tree.map(
            np.array_equal, *(params_at(whole / "checkpoints", step, MODEL) for step in (0, 3))
        )
    )


class Killed(BaseException):
    """Ends a run as a kill would, so far as its files are concerned."""


class Ends:
    """Environments that end the run at their third call of `step`."""

    def __init__(self, environments):
        self._environments, self._calls = environments, 0

    def reset(self, games):
        return self._environments.reset(games)

    def step(self, actions):
        self._calls += 1
        if self._calls == 3:
            raise Killed
        return self._environments.step(actions)

    def faults(self, slot):
        return self._environments.faults(slot)


def test_killed_in_three_places_a_run_ends_with_the_same_bytes(
    whole, actors, tmp_path, monkeypatch
):
    # What is on the host while it plays changes nothing either.
    what = rl_run(offload=True)
    # While step 1 or 2 is played: nothing of it is kept.
    ending = replace(actors, environments=[Ends(actors.environments[0])])
    with pytest.raises(Killed):
        run(tmp_path, what, ending)
    kept = len(list((tmp_path / "rollouts").glob("*.npz")))
    assert kept < 2 and len(rows(tmp_path)) == kept

    # Between the writing of step 2 and its update.
    def end(run, rollouts, *rest):
        if rollouts.about.step == 2:
            raise Killed
        return step_batches(run, rollouts, *rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(main, "step_batches", end)
        run(tmp_path, what, actors)
    assert _names(tmp_path / "rollouts") == ["step-000001.npz", "step-000002.npz"]
    assert _names(tmp_path / "checkpoints") == ["0"] and len(rows(tmp_path)) == 1

    # After the update of step 3, before it is saved. Step 2 is read, not played.
    def report(step, steps, row):
        if step <= 2:
            assert row["time"]["environment_s"] == row["time"]["transfer_s"] == 0
        if step == 3:
            assert 0 < row["time"]["transfer_s"] < row["time"]["play_s"]
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, what, actors, report=report)
    assert _names(tmp_path / "checkpoints") == ["0", "2"] and len(rows(tmp_path)) == 3
    run(tmp_path, what, actors)
    assert_same(tmp_path, whole)


def test_rollouts_that_are_damaged_or_of_other_weights_are_played_again(whole, actors, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "3")
    file = rollouts_file(tmp_path, 3)
    for content, words in (
        (file.read_bytes()[:-100], "not the rollouts of a step"),
        (rollouts_file(tmp_path, 2).read_bytes(), "other weights than those of step 2 played it"),
    ):
        file.write_bytes(content)
        warned = []
        run(tmp_path, rl_run(), actors, warn=warned.append)
        (told,) = warned
        assert words in told and "played again" in told
        for aside in (tmp_path / "rollouts").glob("*.damaged-*"):
            aside.unlink()
        assert_same(tmp_path, whole)
        shutil.rmtree(tmp_path / "checkpoints" / "3")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kl": 0.5}, "rl.kl is 0.01 there, 0.5 here"),
        ({"slots": 4}, "rl.slots is 6 there, 4 here"),
        ({"train": {"learning_rate": 1.0}}, "train.learning_rate is"),
        ({"train": {"steps": 2}}, "is trained to step 3, and train.steps is 2"),
    ],
)
def test_a_folder_is_bound_to_its_settings(whole, actors, changes, words):
    with pytest.raises(UsageError, match=words):
        run(whole, rl_run(**changes), actors)


def test_a_rate_that_moves_nothing_leaves_sampler_and_trainer_together(actors, tmp_path):
    """Both compute the same log-probabilities, step after step (allenai/open-instruct#1473)."""
    run(tmp_path, rl_run({"steps": 4, "learning_rate": 1e-30}), actors)
    for row in rows(tmp_path):
        difference = row["sampler_trainer"]
        assert difference["most_difference"] < 2e-5 and difference["difference"] < 2e-6
        assert row["ratio"]["max"] - row["ratio"]["min"] < 1e-4
        assert row["clip"] == {"low": 0, "high": 0} and abs(row["kl"]) < 1e-9
    first, last = (params_at(tmp_path / "checkpoints", step, MODEL) for step in (0, 4))
    jax.tree.map(np.testing.assert_array_equal, first, last)


@pytest.mark.slow
def test_with_adapters_the_reference_is_the_base_and_only_they_change(tmp_path):
    changes = {"steps": 2, "learning_rate": 0.05}
    with acting(model=LORA_MODEL) as actors:
        run(tmp_path, rl_run(changes, model=LORA_MODEL, kl=0.1, flat="keep"), actors)
    first, second = rows(tmp_path)
    assert abs(first["kl"]) < 1e-9 < 1e-8 < second["kl"]
    start, end = (params_at(tmp_path / "checkpoints", step, LORA_MODEL) for step in (0, 2))
    changed = jax.tree_util.tree_map_with_path(
        lambda path, one, other: ("lora" in str(path), not np.array_equal(one, other)), start, end
    )
    pairs = set(jax.tree.leaves(changed, is_leaf=lambda x: isinstance(x, tuple)))
    assert (False, True) not in pairs and (True, True) in pairs


def test_the_options_of_a_step_work_together(actors, tmp_path):
    """Two halves of the slots, two updates, GiGPO, importance weights, all actions dropped.

    And the divergence in the reward, an entropy bonus, and thoughts compared.
    """
    what = rl_run(
        {"steps": 2, "learning_rate": 0.03},
        Dropping.of(fraction=1.0),
        **{"tasks": 4, "updates": 2, "omega": 1.0, "old": "trainer", "normalizer": "token_sum"},
        **{"flat": "keep", "mask_cut": True, "aggregation": "trajectory", "kl_estimator": "k1"},
        **{"kl_in": "reward", "kl": 0.1, "entropy": 0.01, "information": 2, "stat_unit": "step"},
        anchor="state",
    )
    with EnvPool(Door, 6, 0) as pool:
        both = replace(actors, environments=[actors.environments[0], pool])
        run(tmp_path, what, both)
    assert sum(row["dropped"]["tokens"] for row in rows(tmp_path)) > 0
    for row in rows(tmp_path):
        assert row["updates"] == 2 and row["groups"]["played"] == 4
        assert 0 < row["anchors"]["groups"] <= 24 / row["anchors"]["size"] + 1e-6
        assert row["tis"]["mean"] == pytest.approx(1, abs=1e-4)
        assert row["kl_old"] > 0
        assert row["nll_by_role"].keys() <= {"REASONING", "ACTION", "ACTION_CLOSE"}
        # The second update's ratios are to the policy that played, before the first: the clip acts.
        assert row["ratio"]["max"] > 1.2 and row["clip"]["low"] + row["clip"]["high"] > 0
        assert row["thoughts"] is None or row["thoughts"]["prompts"] == 2
    first, second = rows(tmp_path)
    assert abs(first["kl_cost"]) < 1e-6 and abs(second["kl_cost"]) > 1e-5


def test_the_hash_of_a_policy_is_of_every_element_in_its_place(actors):
    params = rl_run().make_params(actors.sampler.mesh)
    found = fingerprint(params)
    assert fingerprint(jax.tree.map(jnp.array, params)) == found and len(found) == 32
    swapped = jax.tree.map(lambda x: x[::-1] if x.ndim > 1 else x, params)
    assert len({found, fingerprint(swapped), fingerprint(optax.tree.cast(params, "bfloat16"))}) == 3


def test_a_play_depends_on_step_game_and_sample_alone(actors):
    """Whoever else is played: twice as many groups, other slots."""
    played = {}
    for tasks in (1, 2, 3):
        stream, what = Stream(WORLD.games("", "train"), 3), rl_run(tasks=tasks, flat="keep")
        with actors.playing(what.make_params(actors.sampler.mesh)) as halves:
            rollouts, _ = play_step(
                actors, halves, stream, what.rl, step=7, begin=5, seed=3, policy=""
            )
        assert rollouts.about.end == 5 + tasks and len(rollouts.episodes) == 3 * tasks
        assert list(rollouts.positions) == sorted(rollouts.positions)
        for episode in rollouts.episodes:
            ids = [turn.cot.ids for turn in episode.steps]
            assert played.setdefault((episode.game.id, episode.sample), ids) == ids
    assert len(played) == 9 and len({str(ids) for ids in played.values()}) > 6


def test_a_group_that_breaks_is_dropped_counted_and_refilled(actors):
    games = [game("broken-red"), game("a-red"), game("b-blue")]
    stream, what = Stream(games, 3), rl_run(tasks=3, flat="keep", refills=1)
    with actors.playing(what.make_params(actors.sampler.mesh)) as halves:
        rollouts, _ = play_step(actors, halves, stream, what.rl, step=1, begin=0, seed=3, policy="")
    assert len(rollouts.about.broken) in (1, 2) and "the door fell off" in rollouts.about.broken[0]
    assert rollouts.about.refills == 1 and rollouts.about.end == 4
    assert all("broken" not in episode.game.id for episode in rollouts.episodes)
    assert len(rollouts.episodes) == 3 * (4 - len(rollouts.about.broken))


@pytest.mark.parametrize(("flat", "end"), [("keep", 2), ("skip", 2), ("refill", 4)])
def test_groups_whose_rewards_are_equal(actors, tmp_path, flat, end):
    """Nothing is won in one step of one token, and nothing is taken away: every group is flat."""
    elicitation = replace(actors.elicitation, max_new_tokens=1)
    dull = replace(actors, elicitation=elicitation)
    what = rl_run({"steps": 1}, flat=flat, format_penalty=0.0, kl=0.0)
    run(tmp_path, what, dull)
    (row,) = rows(tmp_path)
    assert row["stream"] == end and row["groups"]["all_lost"] == row["groups"]["played"] == end
    assert row["updates"] == (flat == "keep") and (row["loss"] in (0, None))
    first, last = (params_at(tmp_path / "checkpoints", step, MODEL) for step in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, last)


def test_a_steps_file_holds_the_episodes_as_they_were_played(whole):
    policies = set()
    for step in (1, 2, 3):
        file = rollouts_file(whole, step)
        rollouts = read_rollouts(file, rl_run().rl)
        with np.load(file) as arrays:
            assert json.loads(str(arrays["about"]))["policy"] == rollouts.about.policy
            assert arrays["rewards"].tolist() == [play.reward for play in rollouts.plays]
            assert arrays["lengths"].tolist() == [len(each.steps) for each in rollouts.episodes]
        for episode in rollouts.episodes:
            assert episode.driver == "cot" and episode.elicitation["greedy"] == ["prompt"]
            assert all(turn.cot.logprobs and turn.prompt for turn in episode.steps)
        # Of one state the prompt action is the same in all plays, and the CoT action is not.
        for kind, several in (("prompt", False), ("cot", True)):
            ids = {each.game.id: set() for each in rollouts.episodes}
            for each in rollouts.episodes:
                ids[each.game.id].add(getattr(each.steps[0], kind).ids)
            assert all((len(own) > 1) == several for own in ids.values())
        policies.add(rollouts.about.policy)
    assert len(policies) == 3
