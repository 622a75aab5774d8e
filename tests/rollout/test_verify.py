"""`cotjax data replay`: a world answers what was written down, or it is said where it does not."""

from dataclasses import replace

import pytest

from cotjax.cli.main import main
from cotjax.data.trajectories import read_trajectories, write_trajectories
from cotjax.envs.alfworld import WORLD
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.errors import UsageError
from cotjax.rollout.collect import Collecting, collect
from cotjax.rollout.verify import games_of, verify

COUNTS = {
    "train": {"look_at_obj_in_light": 1, "pick_and_place_simple": 2},
    "ood_rooms": {"look_at_obj_in_light": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("verify")


@pytest.fixture(scope="module")
def played(folder):
    """Games, and the episodes of the expert on them."""
    games = make_games(folder / "games", COUNTS, seed=3)
    collect(WORLD, games, folder / "played.jsonl", Collecting("expert", seed=0, mistakes=0.3))
    return list(read_trajectories(folder / "played.jsonl"))


def changed(trajectory, step, **fields):
    steps = list(trajectory.steps)
    steps[step] = replace(steps[step], **fields)
    return replace(trajectory, steps=tuple(steps))


def faults(folder, trajectories, workers=1):
    games = games_of(WORLD, folder / "games", trajectories)
    return [each.fault for each in verify(WORLD, games, trajectories, workers=workers)]


def test_collected_episodes_replay_to_the_same(folder, played):
    assert len(played) == 4 and faults(folder, played) == [None] * 4


def test_each_difference_is_named_with_its_game_and_step(folder, played):
    one, other = played[0], played[1]
    broken = {
        "step 1: the replay differs at character 0": changed(one, 1, observation="A dragon."),
        "step 2: the replay differs": changed(one, 1, action="inventory"),
        "reset: the replay differs": replace(one, task="win"),
        "says not won, the replay is won": replace(one, success=False),
        "says won, the replay is not won": replace(one, steps=one.steps[:-1]),
        "no such game in split 'train'": replace(one, game="nowhere"),
        "no such game in split 'elsewhere'": replace(one, split="elsewhere"),
    }
    said = faults(folder, [other, *broken.values(), other])
    assert said[0] is None and said[-1] is None
    for words, fault in zip(broken, said[1:-1], strict=True):
        assert words in fault, (words, fault)
    assert all(one.game in fault for fault in said[1:6])


def test_whether_it_was_won_is_compared_only_where_it_is_known(folder, played):
    assert faults(folder, [replace(played[0], success=None, steps=played[0].steps[:-1])]) == [None]


def test_any_number_of_processes_gives_the_same(folder, played):
    trajectories = [played[0], changed(played[1], 0, observation="x"), *played[2:]]
    one, two = (faults(folder, trajectories, workers) for workers in (1, 2))
    assert one == two and [fault is None for fault in one] == [True, False, True, True]


def test_the_command_keeps_what_is_the_same(folder, played, tmp_path, capsys):
    file, out = tmp_path / "mine.jsonl", tmp_path / "same.jsonl"
    write_trajectories(file, [changed(played[0], 1, observation="A dragon."), *played[1:]])
    where = ["--games", str(folder / "games"), "--out", str(out), "--workers", "1"]
    assert main(["data", "replay", str(file), *where]) == 3
    said = capsys.readouterr()
    assert "3 of 4 episodes replay to the same observations" in said.out
    assert "'A dragon.'" in said.out and "1 episodes differ" in said.err
    assert list(read_trajectories(out)) == played[1:]
    assert main(["data", "replay", str(out), *where[:2], "--workers", "1"]) == 0
    assert main(["data", "replay", str(out), *where]) == 2  # never over its input


def test_another_world_s_episodes_are_refused(folder, played, tmp_path, capsys):
    write_trajectories(tmp_path / "chess.jsonl", [replace(played[0], environment="chess")])
    assert main(["data", "replay", str(tmp_path / "chess.jsonl")]) == 2
    assert "unknown world 'chess'" in capsys.readouterr().err, "the file names the world"
    with pytest.raises(UsageError, match=r"is of 'chess', not of 'alfworld': name its world"):
        faults(folder, [replace(played[0], environment="chess")])


def test_a_replay_says_whose_an_episode_is_and_how_it_ended(folder, played):
    """Imported episodes do not always say either."""
    nameless = replace(played[0], environment="unknown", success=None)
    cut = replace(nameless, steps=nameless.steps[:-1])
    wrong = changed(nameless, 1, observation="A dragon.")
    games = games_of(WORLD, folder / "games", [nameless])
    won, lost, left = [each.trajectory for each in verify(WORLD, games, [nameless, cut, wrong])]
    assert won == played[0] and won.success
    assert lost == replace(cut, environment="alfworld", success=False)
    assert left == wrong, "what differs stays as it was"
