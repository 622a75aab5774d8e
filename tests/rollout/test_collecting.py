"""A study's collecting says what it could not keep, and takes no empty file for a finished one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cotjax.config import default_config
from cotjax.data.trajectories import read_trajectories
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.errors import DataError
from cotjax.study.games import GameSets, prepare_games
from cotjax.study.run import open_study


@pytest.fixture
def games(tmp_path):
    """One game that can be played, and one whose file is broken."""
    played, broken = make_games(
        tmp_path / "games",
        {"train": dict.fromkeys(["look_at_obj_in_light", "pick_and_place_simple"], 1)},
        2,
        1,
    )
    Path(broken.path).write_text(json.dumps({"solvable": True}))
    return played, broken


def test_episodes_that_could_not_be_kept_are_told_in_the_log(games, tmp_path):
    config = default_config()
    config.out, config.workers = str(tmp_path / "out"), 0
    study = open_study(config)
    [path] = study.trajectories.training(GameSets(games)).values()
    assert [trajectory.game for trajectory in read_trajectories(path)] == [games[0].id]
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "left out 1: 1 the environment or the game file failed" in log and games[1].path in log


def test_a_file_without_an_episode_is_an_error_and_does_not_stay(games, tmp_path):
    config = default_config()
    config.out, config.workers = str(tmp_path / "out"), 0
    study = open_study(config)
    broken = replace(games[1], id="other/trial")
    with pytest.raises(DataError, match="none of the 2 games gave an episode to keep"):
        study.trajectories.training(GameSets((games[1], broken)))
    assert not list((tmp_path / "out" / "trajectories").iterdir())


def test_games_that_are_left_out_are_counted_by_split(games, tmp_path):
    content = json.loads(Path(games[0].path).read_text())
    Path(games[1].path).write_text(json.dumps(content | {"solvable": False}))
    config = default_config()
    config.games.source, config.games.root, config.games.train = (
        "alfworld",
        str(tmp_path / "games"),
        0,
    )
    config.games.in_domain, config.games.ood = 0, 0
    found = prepare_games(config)
    assert [game.id for game in found.train] == [games[0].id]
    assert found.left_out == {"train": {"not marked solvable": 1}}
