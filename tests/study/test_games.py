"""The games of a study by domain: which are trained on, which are played."""

import json
import shutil
from pathlib import Path

import pytest

from cotjax.config import default_config
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.envs.base import Game
from cotjax.envs.worlds import AXES, IN_DOMAIN, OOD, OOD_OBJECTS, OOD_ROOMS, load_world
from cotjax.errors import DataError, UsageError
from cotjax.study.describe import _domain
from cotjax.study.games import (
    GameSets,
    check_world,
    made_counts,
    prepare_games,
    wanted_games,
)
from cotjax.study.ready import check_folder

PICK, LOOK = "pick_and_place_simple", "look_at_obj_in_light"
COOL = "pick_cool_then_place_in_recep"


def config_of(out: Path, **games):
    config = default_config()
    config.out, config.workers = str(out), 1
    config.task_types.in_domain, config.task_types.ood = (PICK, LOOK), (COOL,)
    config.task_types.collect = (PICK, LOOK)
    config.games.update({"train": 1, "in_domain": 2, "ood": 1} | games)
    return config


def test_an_axis_is_a_split_of_the_in_domain_types_and_off_by_default(tmp_path):
    config = config_of(tmp_path)
    assert wanted_games(config) == {IN_DOMAIN: 2, OOD: 1}
    assert made_counts(config) == {
        "train": {PICK: 1, LOOK: 1},
        "valid_unseen": {PICK: 1, LOOK: 1, COOL: 1},
    }
    config.games.ood_objects, config.games.ood_rooms = 3, 1
    assert made_counts(config) == {
        "train": {PICK: 1, LOOK: 1},
        "valid_unseen": {PICK: 1, LOOK: 1, COOL: 1},
        OOD_OBJECTS: {PICK: 2, LOOK: 1},
        OOD_ROOMS: {PICK: 1},
    }


def test_made_games_are_sorted_into_domains(tmp_path):
    config = config_of(tmp_path, ood_objects=2, ood_rooms=1)
    games = prepare_games(config)
    assert {domain: len(its) for domain, its in games.domains.items()} == {
        IN_DOMAIN: 2,
        OOD: 1,
        OOD_OBJECTS: 2,
        OOD_ROOMS: 1,
    }
    assert len(games.played) == 6 and len(games.train) == 2
    for domain, its in games.domains.items():
        assert {games.domain_of(game) for game in its} == {domain}
    axes_of = load_world("alfworld").axes_of
    assert not any(axes_of(game) for game in (*games.train, *games.in_domain, *games.ood))
    # Without the axes, the same games of the other domains, unless their goal is held out.
    free = prepare_games(config_of(tmp_path / "free"))
    assert free.axes == {} and list(free.domains) == [IN_DOMAIN, OOD]
    kept = [game.id for game in (*free.train, *free.played) if not axes_of(game)]
    assert set(kept) <= {game.id for game in (*games.train, *games.played)}


def real_games(folder: Path, names: list[str]) -> None:
    """Put a playable game under each of these names."""
    [game] = make_games(folder / "made", {"train": {PICK: 1}}, seed=1)
    for split_and_name in names:
        split, name = split_and_name.split("/", 1)
        shutil.copytree(Path(game.path).parent, folder / split / name / "trial_T2019")


def test_games_that_are_read_are_split_by_name(tmp_path):
    trained = [f"train/{PICK}-Mug-None-Shelf-{n}" for n in (1, 2)]
    objects = [f"train/{PICK}-Watch-None-Safe-201", f"valid_seen/{PICK}-CD-None-Safe-301"]
    rooms = [f"train/{PICK}-Mug-None-Shelf-7", f"valid_seen/{PICK}-Mug-None-Desk-10"]
    both = [f"train/{PICK}-CD-None-Safe-307"]
    seen = [f"valid_seen/{PICK}-Mug-None-Shelf-3"]
    real_games(tmp_path, [*trained, *objects, *rooms, *both, *seen])
    config = config_of(tmp_path, train=0, in_domain=1, ood=0, ood_objects=2, ood_rooms=2)
    config.games.source, config.games.root = "alfworld", str(tmp_path)
    config.games.eval_split = "valid_seen"

    def names(games):
        return sorted(f"{game.split}/{game.id.split('/')[0]}" for game in games)

    games = prepare_games(config)
    assert names(games.train) == trained and names(games.in_domain) == seen
    assert names(games.axes[OOD_OBJECTS]) == objects and names(games.axes[OOD_ROOMS]) == rooms
    config.games.ood_rooms = 0  # off: its games are ordinary ones, and trained on
    games = prepare_games(config)
    assert names(games.train) == sorted([*trained, rooms[0]])
    config.games.ood_objects = 9
    with pytest.raises(DataError, match=r"'valid_seen' and 'train' has 3 games for games.ood_obj"):
        prepare_games(config)


def test_an_axis_needs_a_world_that_has_it_and_training_that_can_leave_it_out(tmp_path):
    config = config_of(tmp_path, ood_rooms=1)
    check_world(config)
    config.data.trajectories = "mine.jsonl"
    with pytest.raises(UsageError, match=r"games.ood_rooms is 1, which holds games out"):
        check_world(config)


def test_the_domain_of_a_game_is_the_one_that_it_is_played_for():
    games = [object() for _ in range(3)]
    sets = GameSets((), (games[0],), (games[1],), "", axes={OOD_ROOMS: (games[2],)})
    assert [sets.domain_of(game) for game in games] == [IN_DOMAIN, OOD, OOD_ROOMS]
    assert sets.played == tuple(games)


def test_collected_episodes_bind_the_axes_and_an_older_run_resumes_without_them(tmp_path):
    mine = json.loads(config_of(tmp_path).to_json_best_effort())
    older = {**mine, "games": {k: v for k, v in mine["games"].items() if k not in AXES}}
    (tmp_path / "trajectories").mkdir()
    (tmp_path / "trajectories" / "train.jsonl").touch()
    (tmp_path / "config.json").write_text(json.dumps(older))
    check_folder(tmp_path, mine)
    mine["games"]["ood_rooms"] = 5
    with pytest.raises(UsageError, match=r"games\.ood_rooms is 0 there, 5 here"):
        check_folder(tmp_path, mine)


def test_a_run_is_described_by_domain(tmp_path):
    config, world = config_of(tmp_path), load_world("alfworld")
    played = (Game("g1", "", "train", PICK), Game("g2", "", "valid_seen", PICK))
    assert _domain(config, world, OOD, played) == {
        "games": 2,
        "split": "valid_unseen",
        "task_types": [COOL],
    }
    about = _domain(config, world, OOD_OBJECTS, played)
    assert about["split"] == "train and valid_seen" and about["task_types"] == [PICK, LOOK]
    assert about["held_out"] == world.axes[OOD_OBJECTS] and "KeyChain" in about["held_out"]
