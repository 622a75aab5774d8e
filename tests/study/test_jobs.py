"""What an evaluation plays: which checkpoints, by which drivers, and what has a record already."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.rollouts import games
from helpers.studies import write_episode

from cotjax.config import default_config
from cotjax.envs.base import plays_of
from cotjax.errors import UsageError
from cotjax.study import jobs
from cotjax.study.games import GameSets
from cotjax.study.jobs import Job, Playing, plan_jobs
from cotjax.study.probing import _weights
from cotjax.study.starts import Place
from cotjax.train.checkpoint import Checkpoints, Keep
from cotjax.train.step import TrainState

CHECKPOINTS = SimpleNamespace(digest=lambda step: f"hash of {step}")


def job(driver="cot", checkpoint=10, kinds=("cot", "prompt")):
    return Job("alfworld", "sft", checkpoint, CHECKPOINTS, driver, plays_of(games(1, 2)), kinds)


def test_the_heading_of_a_record_says_whose_weights_played():
    heading = job().heading("all games", "ood")
    assert heading.model_dump(exclude={"schema_version"}) == {
        "world": "alfworld",
        "arm": "sft",
        "training_seed": None,
        "checkpoint": 10,
        "checkpoint_hash": "hash of 10",
        "games_hash": "all games",
        "domain": "ood",
    }


@pytest.mark.parametrize("damage", ["cut", "of another episode", "of another schema"])
def test_a_damaged_record_is_renamed_and_its_game_is_unplayed(tmp_path, damage):
    said = []
    path = write_episode(tmp_path, "g1")
    other = write_episode(tmp_path, "g2")
    assert job().unplayed(tmp_path / "records", said.append) == [] and not said
    texts = {
        "cut": path.read_text()[:-9],
        "of another episode": other.read_text(),
        "of another schema": '{"schema_version": 1}',
    }
    path.write_text(texts[damage])
    assert job().unplayed(tmp_path / "records", said.append) == [*plays_of(games(1))]
    assert not path.exists() and path.with_name(f"{path.name}.damaged-1").exists()
    assert len(said) == 1 and path.name in said[0] and said[0].endswith("and played again")


def test_the_base_is_played_once_and_only_planned_checkpoints_are(tmp_path, monkeypatch):
    for arm in ("sft", "reduced"):
        (tmp_path / arm).mkdir()
    saved = SimpleNamespace(steps=lambda: [0, 10, 13, 20])
    monkeypatch.setattr(jobs, "Checkpoints", lambda folder, alone: saved)
    arms = {arm: tmp_path / arm for arm in ("sft", "reduced")}
    planned = {"sft": [0, 10, 20], "reduced": [0, 20]}
    sets = GameSets((), {"in_domain": tuple(games(1, 2))})
    plan = plan_jobs("alfworld", arms, planned, sets, {"g2": tiny.trajectory()}, Playing())
    points = [("base", 0), ("sft", 10), ("sft", 20), ("reduced", 20)]
    assert [(each.arm, each.checkpoint, each.driver) for each in plan] == [
        (*point, driver) for point in points for driver in ("cot", "prompt", "reference")
    ]
    assert {each.driver: each.plays for each in plan} == {
        "cot": plays_of(games(1, 2)),
        "prompt": plays_of(games(1, 2)),
        "reference": plays_of(games(2)),
    }
    with pytest.raises(UsageError, match="no checkpoint to evaluate"):
        plan_jobs("alfworld", arms | {"third": tmp_path / "third"}, planned, sets, {}, Playing())
    with pytest.raises(UsageError, match="no checkpoint to evaluate"):
        plan_jobs("alfworld", arms, {"sft": [], "reduced": []}, sets, {}, Playing())


def test_the_first_samples_of_all_games_are_played_before_the_second(monkeypatch):
    games_ = tuple(games(1, 2))
    sets, base = GameSets((), {"in_domain": games_}), CHECKPOINTS
    playing = Playing(samples=2)
    plan = plan_jobs("alfworld", {}, {}, sets, {"g2": tiny.trajectory()}, playing, base)
    assert [str(each) for each in plan[0].plays] == ["g1", "g2", "g1, sample 1", "g2, sample 1"]
    assert plan[2].plays == plays_of(games_[1:], 2)
    shares = []
    for process in range(2):
        monkeypatch.setattr(jobs.distributed, "share", lambda index, own=process: index % 2 == own)
        mine = plan_jobs("alfworld", {}, {}, sets, {}, playing, base)
        shares += mine[0].plays
    assert sorted(map(str, shares)) == sorted(map(str, plan[0].plays)), "divided among processes"


def test_a_record_of_another_sample_is_not_taken_for_this_one(tmp_path):
    said = []
    first = write_episode(tmp_path, "g1")
    second = write_episode(tmp_path, "g1", sample=1)
    both = Job("alfworld", "sft", 10, CHECKPOINTS, "cot", plays_of(games(1), 2), ("cot",))
    assert both.unplayed(tmp_path / "records", said.append) == []
    second.write_bytes(first.read_bytes())
    assert both.unplayed(tmp_path / "records", said.append) == [both.plays[1]]
    assert "the record of another episode; set aside" in said[0]


def test_episodes_are_played_at_the_named_checkpoints_and_states_measured_at_all():
    playing = Playing(
        ("cot", "prompt_constrained"), ("cot", "prompt_constrained", "instructed"), (0, 20)
    )
    drivers = {
        "cot": ("cot",),
        "prompt_constrained": ("prompt_constrained",),
        "reference": ("cot", "prompt_constrained", "instructed"),
    }
    assert playing.drivers(0) == playing.drivers(20) == drivers
    # Others start from checkpoint 10 of one arm.
    starting = replace(playing, starts={Place("short", 10)})
    assert starting.drivers(10, "short") == drivers
    assert set(starting.drivers(10, "sft")) == {"reference"}
    assert playing.drivers(10) == {"reference": drivers["reference"]}
    both = ("cot_constrained", "prompt_constrained")
    assert Playing(both[:1], both).drivers(0) == {"cot_constrained": both, "reference": both}


def test_a_record_that_lacks_a_kind_of_action_is_unplayed_and_stays(tmp_path):
    said = []
    path = write_episode(tmp_path, "g1", [("look", "look", "look")], driver="reference")
    write_episode(tmp_path, "g2", [("look", "look", "look")], driver="reference")
    records = tmp_path / "records"
    assert job("reference").unplayed(records, said.append) == []
    more = job("reference", kinds=("cot", "prompt", "instructed"))
    assert more.unplayed(records, said.append) == [*plays_of(games(1, 2))]
    assert path.exists() and not said


def test_probes_read_parameters_as_they_compute(tmp_path):
    """Rounded once: what a float32 checkpoint is in bfloat16."""
    model = tiny.model_config(compute_dtype="bfloat16")
    params = tiny.params(model)
    checkpoints = Checkpoints(tmp_path, Keep([0]))
    state = TrainState(jnp.int32(0), params, {"mu": jnp.zeros(3)})
    checkpoints.save(state, {"step": 0, "iterator": {"at": 0}})
    checkpoints.finish()
    read, found, _ = _weights(default_config(), model, checkpoints, 0)
    assert read.param_dtype == "bfloat16"
    jax.tree.map(
        np.testing.assert_array_equal, found, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    )
    checkpoints.close()
