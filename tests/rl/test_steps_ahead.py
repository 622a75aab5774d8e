"""Steps that are played by earlier weights, weights of terms that follow a target; and resumed."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.doors import (
    ADAPTED,
    ELICITATION,
    MODEL,
    acting,
    codec,
    game,
    rl_run,
    rows,
    run,
    stale_run,
)
from helpers.processes import TESTS, ended, start_process
from helpers.training import params_at

from cotjax.envs.base import Play
from cotjax.errors import DataError, UsageError
from cotjax.rl.coefficients import Coefficients
from cotjax.rl.kept import Kept, remove_kept
from cotjax.rl.policy import fingerprint
from cotjax.rl.rollouts import read_rollouts, rollouts_file
from cotjax.rollout.record import Episode


@pytest.fixture(scope="module")
def actors():
    with acting() as actors:
        yield actors


@pytest.fixture(scope="module")
def whole(actors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder, stale_run(), actors)
    return folder


def weights_at(folder, step):
    params = params_at(folder / "checkpoints", step, MODEL)
    return fingerprint(jax.tree.map(jnp.asarray, params))


def rollouts_at(folder, step):
    return read_rollouts(rollouts_file(folder, step), stale_run().rl)


def assert_same(folder, other):
    assert rows(folder) == rows(other)
    for step in (1, 2, 3):
        assert rollouts_file(folder, step).read_bytes() == rollouts_file(other, step).read_bytes()
    found = [params_at(each / "checkpoints", 3, MODEL) for each in (folder, other)]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_each_step_is_played_by_the_weights_of_a_step_before(whole, actors, tmp_path):
    start, third = weights_at(whole, 0), rollouts_at(whole, 3).about
    assert [rollouts_at(whole, step).about.policy == start for step in (1, 2, 3)] == [1, 1, 0]
    first, second, last = rows(whole)
    assert [row["staleness"] for row in (first, second, last)] == [0, 1, 1]
    # What the update before has changed is what the importance weights correct for.
    assert first["tis"]["mean"] == pytest.approx(1, abs=1e-4)
    assert first["sampler_trainer"]["most_difference"] < 2e-5
    assert last["sampler_trainer"]["most_difference"] > 0.01 and last["tis"]["min"] < 0.99
    assert last["tis"]["mean"] != pytest.approx(1, abs=1e-4)
    # No position of the stream is played twice or left out.
    begins = [rollouts_at(whole, step).about for step in (1, 2, 3)]
    assert [each.begin for each in begins[1:]] == [each.end for each in begins[:-1]]
    # The weights that played step 3 are those after step 1.
    run(tmp_path, stale_run(steps=1), actors)
    assert weights_at(tmp_path, 1) == third.policy


@pytest.mark.slow
def test_a_sampler_with_a_device_of_its_own_plays_the_same_meanwhile(whole, tmp_path):
    script = TESTS / "rl" / "played_meanwhile.py"
    ((code, out, error),) = ended([start_process([script, tmp_path], devices=2)])
    assert code == 0, error[-2000:]
    assert json.loads(out) == {"1": True, "2": False, "3": False}
    assert_same(tmp_path, whole)


def test_the_weight_of_a_term_follows_its_target(whole):
    kl, entropy, above = 0.1, 0.0, False
    for row in rows(whole):
        assert row["coefficients"] == {"kl": kl, "entropy": 0 if above else entropy}
        kl *= 1 + 0.5 * min(max(row["kl"] / 1e-3 - 1, -0.2), 0.2)
        above = row["entropy"] > ADAPTED["entropy_target"]
        entropy = max(0.0, entropy + (-0.05 if above else 0.05))
    last = rows(whole)[-1]["coefficients"]
    assert last["kl"] != 0.1 and last["entropy"] > 0


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"kl": 0.02, "entropy": 0.5}, (0.11, 0.06, False)),  # an error is 0.2 at most
        ({"kl": 0.0, "entropy": 5.5}, (0.09, 0.0, True)),  # a weight is not below 0
        ({"kl": 0.0011, "entropy": 5.0}, (0.105, 0.06, False)),
        ({}, (0.1, 0.01, False)),  # a step without an update
    ],
)
def test_a_weight_moves_as_the_papers_say(row, found):
    after = Coefficients(0.1, 0.01).after(row, stale_run().rl)
    assert (after.kl, after.entropy, after.rests) == pytest.approx(found)
    assert replace(after, entropy=0.5, rests=True).applied == {"kl": after.kl, "entropy": 0.0}
    assert Coefficients(0.1, 0.98).after({"entropy": 0.1}, stale_run().rl).entropy == 1.0
    fixed = rl_run().rl
    assert Coefficients(0.1, 0.01).after(row, fixed) == Coefficients(0.1, 0.01)


class Killed(BaseException):
    """Ends a run as a kill would, so far as its files are concerned."""


def test_a_killed_run_ends_with_the_same_bytes(whole, actors, tmp_path):
    def report(step, steps, row):
        if step == 3:
            raise Killed

    # Step 3 was played, and trained on, but not saved: it is read, for its weights are gone.
    with pytest.raises(Killed):
        run(tmp_path, stale_run(), actors, report=report)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["0", "2"]
    run(tmp_path, stale_run(), replace(actors, environments=[]))
    assert_same(tmp_path, whole)


def test_no_device_would_be_left_to_train(actors, tmp_path):
    with pytest.raises(UsageError, match="play_devices is 1, and there are 1 devices"):
        run(tmp_path, stale_run(play_devices=1), actors)


def test_a_step_that_cannot_be_played_again_is_asked_for(whole, actors, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "3")
    file = rollouts_file(tmp_path, 3)
    for content, words in (
        (file.read_bytes()[:-100], "not the rollouts of a step"),
        (rollouts_file(tmp_path, 2).read_bytes(), "other weights than those of step 1 played it"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match="remove checkpoints/2, and the same command") as told:
            run(tmp_path, stale_run(), actors)
        assert words in str(told.value) and str(file) in str(told.value)
    # From the checkpoint before, step 3 is played again by the weights after step 1.
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    warned = []
    run(tmp_path, stale_run(), actors, warn=warned.append)
    assert len(warned) == 1 and "other weights" in warned[0]
    assert_same(tmp_path, whole)


def test_a_run_that_is_made_longer_goes_on_with_its_last_weights(actors, tmp_path):
    run(tmp_path, stale_run(steps=1), actors)
    run(tmp_path, stale_run(steps=3), actors)
    assert [row["staleness"] for row in rows(tmp_path)] == [0, 0, 1]
    assert rollouts_at(tmp_path, 2).about.policy == weights_at(tmp_path, 1)


class Counts:
    """Environments that count the games they begin, and end the run at the `last` step."""

    def __init__(self, environments, last=None):
        self._environments, self._last, self.begun = environments, last, 0

    def reset(self, games):
        self.begun += len(games)
        return self._environments.reset(games)

    def step(self, actions):
        if self._last is not None:
            self._last -= 1
            if not self._last:
                raise Killed
        return self._environments.step(actions)

    def faults(self, slot):
        return self._environments.faults(slot)


def assert_kept(file, text, about, lines):
    """Assert that a copy of the file serves the step that it is of, and no other weights."""
    file.parent.mkdir()
    file.write_text(text)
    episodes = [Episode.model_validate_json(line) for line in lines]
    plays = [Play(game(each.game.id), each.sample) for each in episodes]
    kept = Kept(file.parent, about)
    assert [kept.of(play) for play in plays] == episodes
    assert kept.of(Play(game("another-red"), 0)) is None
    other = Kept(file.parent, about | {"policy": "other"})
    assert not any(other.of(play) for play in plays)
    assert len(file.read_text().splitlines()) == 1


def assert_kept_is_removed(folder):
    left = folder / ".step-000001-0.jsonl"
    other = folder / ".step-000002-0.jsonl"
    for path in (left, other):
        path.write_text("")
    remove_kept(folder / "step-000001.npz")
    assert not left.exists() and other.exists()


def test_a_fast_resume_plays_what_had_not_ended(tmp_path):
    fast = rl_run({"steps": 1}, resume="fast", flat="keep", slots=2)
    with acting(slots=2) as actors:
        (pool,) = actors.environments
        with pytest.raises(Killed):
            run(tmp_path, fast, replace(actors, environments=[Counts(pool, last=5)]))
        (kept,) = (tmp_path / "rollouts").iterdir()
        about, *lines = kept.read_text().splitlines()
        ended = len(lines)
        assert 2 <= ended < 6
        assert_kept(tmp_path / "copy" / kept.name, kept.read_text(), json.loads(about), lines)
        with kept.open("a") as file:
            file.write('{"driver": "cot", "game"')  # what the kill cut off
        counts = Counts(pool)
        run(tmp_path, fast, replace(actors, environments=[counts]))
        assert counts.begun == 6 - ended
        assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["step-000001.npz"]
        # What a kill between the file of the step and this removal leaves is removed later.
        assert_kept_is_removed(tmp_path / "rollouts")
        other = tmp_path / "other"
        run(other, fast, actors)
    for one, two in zip(
        rollouts_at(tmp_path, 1).episodes, rollouts_at(other, 1).episodes, strict=True
    ):
        assert [turn.cot.ids for turn in one.steps] == [turn.cot.ids for turn in two.steps]
        for turn, twin in zip(one.steps, two.steps, strict=True):
            np.testing.assert_allclose(turn.cot.logprobs, twin.cot.logprobs, atol=1e-4)


def test_decoding_goes_on_to_the_end_of_the_turn(tmp_path):
    with acting(elicitation=replace(ELICITATION, to_end=True, max_new_tokens=24)) as actors:
        run(tmp_path, rl_run({"steps": 1}, flat="keep", kl=0.0), actors)
    end = codec().encode(codec().template.response_end)
    turns = [turn.cot for each in rollouts_at(tmp_path, 1).episodes for turn in each.steps]
    for response in turns:
        assert response.stopped == (list(response.ids[-len(end) :]) == end)
        assert response.stopped or not response.valid
    behind = [each.text.partition("</action>")[2] for each in turns]
    assert any(behind), "an untrained policy writes on behind an action"
