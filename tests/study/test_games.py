"""The games of a study by domain: which are trained on, which are played."""

import json
import shutil
from pathlib import Path

import pytest

from cotjax.config import default_config, load_config
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.envs.alfworld.older import older_grammar
from cotjax.envs.alfworld.tasks import AXES, OOD_GRAMMAR, OOD_OBJECTS, OOD_ROOMS
from cotjax.envs.base import Game
from cotjax.envs.worlds import IN_DOMAIN, OOD, load_world
from cotjax.errors import DataError, UsageError
from cotjax.study.describe import _domain
from cotjax.study.games import (
    GameSets,
    check_world,
    held_out_types,
    made_counts,
    prepare_games,
    wanted_games,
    whole_split,
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


def test_an_axis_is_a_split_of_the_in_domain_types_and_not_played_by_default(tmp_path):
    config = config_of(tmp_path)
    assert wanted_games(config) == {IN_DOMAIN: 2, OOD: 1}
    assert made_counts(config) == {
        "train": {PICK: 1, LOOK: 1},
        "valid_unseen": {PICK: 1, LOOK: 1, COOL: 1},
    }
    config.games.ood, config.games.ood_domains = 3, (OOD, OOD_OBJECTS, OOD_ROOMS)
    assert wanted_games(config) == {IN_DOMAIN: 2, OOD: 3, OOD_OBJECTS: 3, OOD_ROOMS: 3}
    assert made_counts(config) == {
        "train": {PICK: 1, LOOK: 1},
        "valid_unseen": {PICK: 1, LOOK: 1, COOL: 3},
        OOD_OBJECTS: {PICK: 2, LOOK: 1},
        OOD_ROOMS: {PICK: 2, LOOK: 1},
    }
    config.games.ood = 0
    assert wanted_games(config) == {IN_DOMAIN: 2}


def test_made_games_are_sorted_into_domains(tmp_path):
    config = config_of(tmp_path, ood_domains=(OOD, *AXES))
    games = prepare_games(config)
    assert {domain: len(its) for domain, its in games.domains.items()} == {
        IN_DOMAIN: 2,
        OOD: 1,
        OOD_OBJECTS: 1,
        OOD_ROOMS: 1,
        OOD_GRAMMAR: 1,
    }
    assert len(games.played) == 6 and len(games.train) == 2
    for domain, its in games.domains.items():
        assert {games.domain_of(game) for game in its} == {domain}
    axes_of = load_world("alfworld").axes_of
    free_of_axes = *games.train, *games.domains[IN_DOMAIN], *games.domains[OOD]
    assert not any(map(axes_of, free_of_axes))
    # Without the axes, the same games of the other domains, unless their goal is held out.
    free = prepare_games(config_of(tmp_path / "free"))
    assert list(free.domains) == [IN_DOMAIN, OOD]
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
    config = config_of(tmp_path, train=0, in_domain=1, ood=2, ood_domains=(OOD_OBJECTS, OOD_ROOMS))
    config.games.source, config.games.root = "alfworld", str(tmp_path)
    config.games.eval_split = "valid_seen"

    def names(games):
        return sorted(f"{game.split}/{game.id.split('/')[0]}" for game in games)

    games = prepare_games(config)
    assert names(games.train) == trained and names(games.domains[IN_DOMAIN]) == seen
    assert names(games.domains[OOD_OBJECTS]) == objects
    assert names(games.domains[OOD_ROOMS]) == rooms
    config.games.ood_domains = (OOD_OBJECTS,)  # games of the other are trained on
    games = prepare_games(config)
    assert names(games.train) == sorted([*trained, rooms[0]])
    config.games.ood = 9
    with pytest.raises(DataError, match=r"'valid_seen' and 'train' has 3 games of domain 'ood_obj"):
        prepare_games(config)


def test_games_that_are_read_are_of_the_older_grammar_by_their_content(tmp_path):
    names = [f"train/{PICK}-Mug-None-Shelf-{n}" for n in (1, 2, 3)]
    real_games(tmp_path, [*names, f"valid_seen/{PICK}-Mug-None-Shelf-4"])
    file = tmp_path / names[1] / "trial_T2019" / "game.tw-pddl"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"grammar": older_grammar(content["grammar"])}))
    config = config_of(tmp_path, train=0, in_domain=1, ood=1, ood_domains=(OOD_GRAMMAR,))
    config.games.source, config.games.root = "alfworld", str(tmp_path)
    config.games.eval_split = "valid_seen"
    games = prepare_games(config)
    assert [Path(game.path) for game in games.domains[OOD_GRAMMAR]] == [file]
    assert [game.id.split("/")[0] for game in games.train] == [
        name.removeprefix("train/") for name in (names[0], names[2])
    ]
    config.games.ood = 0  # not played: it is trained on as any other
    assert file in [Path(game.path) for game in prepare_games(config).train]


def test_an_axis_needs_a_world_that_has_it_and_training_that_can_leave_it_out(tmp_path):
    config = config_of(tmp_path, ood_domains=(OOD_ROOMS,))
    check_world(config)
    config.data.trajectories = "mine.jsonl"
    with pytest.raises(UsageError, match=r"games.ood_domains has ood_rooms, which holds games out"):
        check_world(config)
    config.games.ood = 0
    check_world(config)


@pytest.mark.parametrize("domains", [("ood_hops",), (OOD, OOD), (IN_DOMAIN,)])
def test_a_domain_that_the_world_lacks_or_that_is_named_twice_is_refused(tmp_path, domains):
    config = config_of(tmp_path, ood_domains=domains)
    with pytest.raises(UsageError, match=r"ood_domains is .*'alfworld': ood, ood_objects, ood_roo"):
        check_world(config)


def test_a_task_type_is_played_in_one_domain(tmp_path):
    config = config_of(tmp_path)
    config.task_types.in_domain = (PICK, COOL)
    with pytest.raises(UsageError, match=r"in_domain and task_types\.ood both have 'pick_cool"):
        check_world(config)
    config.games.ood = 0
    check_world(config)


def test_task_types_may_make_up_any_number_of_domains():
    config = default_config("bfcl")
    assert config.games.ood_domains == (OOD,)
    assert dict(config.task_types) == {
        "in_domain": ("base",),
        "ood": ("long_context",),
        "miss_func": ("miss_func",),
        "miss_param": ("miss_param",),
        "collect": ("base", "long_context", "miss_func", "miss_param"),
    }
    assert sorted(held_out_types(config)) == ["long_context", "miss_func", "miss_param"]
    config = default_config("search_qa")
    assert config.games.ood_domains == ("ood_chains", "ood_hops")
    config.games.in_domain, config.games.ood = 4, 2
    config.games.ood_domains = load_world("search_qa").ood_domains
    assert {split: sum(types.values()) for split, types in made_counts(config).items()} == {
        "test": 8,
        "ood_entities": 2,
    }


def test_a_whole_split_is_played_by_domain(tmp_path):
    counts = {"valid_unseen": {PICK: 2, LOOK: 1, COOL: 2}}
    make_games(tmp_path, counts, seed=0)
    config = config_of(tmp_path)
    config.games.root = str(tmp_path)
    assert whole_split(config) == {IN_DOMAIN: 3, "ood": 2, "ood_domains": (OOD,)}
    config.task_types.ood = ()
    assert whole_split(config) == {IN_DOMAIN: 3, "ood": 0, "ood_domains": ()}
    assert whole_split(config, (OOD,)) == {IN_DOMAIN: 3, "ood": 0, "ood_domains": (OOD,)}


def test_the_demo_has_the_games_that_it_always_had(monkeypatch):
    configs = Path(__file__).parents[2] / "configs"
    monkeypatch.syspath_prepend(str(configs))
    trained = load_world("alfworld").task_types_of(IN_DOMAIN)
    for name, numbers in (("demo", (150, 16, 3)), ("demo_quick", (20, 3, 2))):
        config = load_config(configs / f"{name}.py")
        counts = made_counts(config)
        assert list(counts) == ["train", "valid_unseen", OOD_ROOMS]
        for (split, types), number in zip(counts.items(), numbers, strict=True):
            assert set(types) == set(trained) and max(types.values()) == number, split
        assert sum(counts[OOD_ROOMS].values()) == config.games.ood


def test_the_domain_of_a_game_is_the_one_that_it_is_played_for():
    games = [object() for _ in range(3)]
    domains = {name: (game,) for name, game in zip((IN_DOMAIN, OOD, OOD_ROOMS), games, strict=True)}
    sets = GameSets((), domains)
    assert [sets.domain_of(game) for game in games] == [IN_DOMAIN, OOD, OOD_ROOMS]
    assert sets.played == tuple(games)


def as_json(config):
    return json.loads(config.to_json_best_effort())


def test_collected_episodes_bind_the_axes_alone(tmp_path):
    mine = as_json(config_of(tmp_path))
    (tmp_path / "trajectories").mkdir()
    (tmp_path / "trajectories" / "train.jsonl").touch()
    (tmp_path / "config.json").write_text(json.dumps(mine))
    for number, domains in ((5, [OOD]), (0, [OOD]), (0, [OOD_ROOMS]), (5, [])):
        mine["games"] |= {"ood": number, "ood_domains": domains}
        check_folder(tmp_path, mine)
    mine["games"] |= {"ood": 5, "ood_domains": [OOD, OOD_ROOMS]}
    with pytest.raises(
        UsageError, match=r"games\.ood_domains holds out of training is \[\] there, \['ood_rooms'\]"
    ):
        check_folder(tmp_path, mine)


@pytest.mark.parametrize(
    ("older", "number", "domains"),
    [
        ({"ood": 0, "ood_objects": 0, "ood_rooms": 12}, 12, (OOD_ROOMS,)),  # the demo
        ({"ood": 30, "ood_objects": 0, "ood_rooms": 0}, 30, (OOD,)),
        ({"ood": 30}, 30, (OOD,)),  # of a version before axes
        ({"ood": 9, "ood_objects": 9, "ood_rooms": 9}, 9, (OOD, OOD_OBJECTS, OOD_ROOMS)),
        ({"ood": 0, "ood_objects": 0, "ood_rooms": 0}, 0, (OOD,)),
    ],
)
def test_a_run_with_a_number_for_each_domain_resumes(tmp_path, older, number, domains):
    mine = as_json(config_of(tmp_path, ood=number, ood_domains=domains))
    games = {name: value for name, value in mine["games"].items() if name != "ood_domains"}
    (tmp_path / "trajectories").mkdir()
    for name in ("train.jsonl", "held_out.jsonl"):
        (tmp_path / "trajectories" / name).touch()
    (tmp_path / "config.json").write_text(json.dumps({**mine, "games": games | older}))
    check_folder(tmp_path, mine)
    mine["games"]["ood"] += 1
    with pytest.raises(UsageError, match=rf"games\.ood is {number} there, {number + 1} here"):
        check_folder(tmp_path, mine)
    (tmp_path / "config.json").write_text(
        json.dumps({**mine, "games": games | {"ood": 3, "ood_objects": 2}})
    )
    with pytest.raises(UsageError, match=r"2 of ood_objects|holds out of training"):
        check_folder(tmp_path, mine)


def test_a_run_is_described_by_domain(tmp_path):
    config, world = config_of(tmp_path), load_world("alfworld")
    played = (Game("g1", "", "train", PICK), Game("g2", "", "valid_seen", PICK))
    assert _domain(config, world, OOD, played) == {
        "games": 2,
        "split": "train and valid_seen",
        "task_types": [COOL],
    }
    about = _domain(config, world, OOD_OBJECTS, played)
    assert about["split"] == "train and valid_seen" and about["task_types"] == [PICK, LOOK]
    assert about["held_out"] == world.axes[OOD_OBJECTS] and "KeyChain" in about["held_out"]
