"""The axes of ALFWorld's games: held-out objects and longer rooms, made and by name."""

import hashlib
import importlib.metadata
import os
import random
from collections import Counter

import pytest

from cotjax.envs.alfworld.catalog import load_catalog
from cotjax.envs.alfworld.maker.make import SPLITS, GameKey, draw_household, make_games
from cotjax.envs.alfworld.maker.pddl import folder_name, problem_text
from cotjax.envs.alfworld.maker.sample import sample_household
from cotjax.envs.alfworld.tasks import (
    AXES,
    HELD_OUT_OBJECTS,
    OOD_GRAMMAR,
    OOD_OBJECTS,
    OOD_ROOMS,
    OOD_TASKS,
    TASK_TYPES,
    is_held_out,
)
from cotjax.envs.base import Game
from cotjax.envs.worlds import load_world

IN_DOMAIN_TASKS = tuple(task for task in TASK_TYPES if task not in OOD_TASKS)
PICK, LOOK = IN_DOMAIN_TASKS[:2]
SEED = 3


def households(split: str, number: int, holds_out: bool = True, types=IN_DOMAIN_TASKS):
    """Yield (game of that name, household), as the maker draws them before it plays them."""
    for task_type in types:
        for index in range(number):
            key = GameKey(split, task_type, index)
            for attempt in range(20):
                drawn = draw_household(
                    load_catalog(), key, random.Random(f"{key} {attempt}"), holds_out
                )
                if drawn is not None:
                    break
            assert drawn is not None, key
            yield Game(f"{folder_name(drawn)}/trial_G0", "", split, task_type), drawn


def axes_of(game: Game) -> frozenset[str]:
    return load_world("alfworld").axes_of(game)


@pytest.mark.parametrize("split", SPLITS)
def test_no_game_of_the_other_splits_has_a_held_out_goal(split):
    goals: set[tuple[str, str]] = set()
    for game, drawn in households(split, 350, types=TASK_TYPES):
        assert not is_held_out(drawn.target, drawn.goal)
        assert axes_of(game) == frozenset()
        goals.add((drawn.target, drawn.goal))
    assert len(goals) > 150
    assert not HELD_OUT_OBJECTS & {target for target, _ in goals}


def test_every_game_of_the_axis_has_one_with_whole_classes_and_pairs_of_known_halves():
    trained = [drawn for _, drawn in households("train", 350)]
    targets = {drawn.target for drawn in trained}
    goals = {(drawn.target, drawn.goal) for drawn in trained}
    kinds: Counter[str] = Counter()
    for game, drawn in households(OOD_OBJECTS, 350):
        assert axes_of(game) == {OOD_OBJECTS}
        assert (drawn.target, drawn.goal) not in goals
        if drawn.target not in HELD_OUT_OBJECTS:
            assert drawn.target in targets
            assert drawn.goal in {goal for _, goal in goals}
        kinds["class" if drawn.target in HELD_OUT_OBJECTS else "pair"] += 1
    assert kinds["class"] > 350 and kinds["pair"] > 50


def test_longer_rooms_are_longer_than_every_room_of_the_other_splits():
    catalog = load_catalog()

    def sizes(split):
        by_room: dict[str, list[int]] = {}
        for game, drawn in households(split, 350):
            room = catalog.floor_plans[drawn.floor_plan].room
            by_room.setdefault(room, []).append(len(drawn.receptacles))
            assert axes_of(game) == ({OOD_ROOMS} if split == OOD_ROOMS else frozenset())
        return by_room

    others = [sizes(split) for split in SPLITS]
    for room, lengths in sizes(OOD_ROOMS).items():
        assert min(lengths) > max(max(each[room]) for each in others), room
        assert max(lengths) <= 46


def test_a_game_whose_goal_is_not_held_out_is_the_same_with_and_without_the_axis():
    drawn = zip(households("train", 100), households("train", 100, holds_out=False), strict=True)
    same = Counter(held == free for (_, held), (_, free) in drawn)
    assert same[True] > 4 * 100 * 0.7
    for (_, held), (_, free) in zip(
        households("train", 100), households("train", 100, holds_out=False), strict=True
    ):
        assert (held == free) == (not is_held_out(free.target, free.goal))


@pytest.mark.skipif(
    importlib.metadata.version("alfworld") != "0.4.2", reason="the hash is of alfworld 0.4.2's data"
)
def test_without_an_axis_the_households_are_those_of_the_first_release():
    digest = hashlib.sha256()
    for split in SPLITS:
        for task in TASK_TYPES:
            for index in range(20):
                rng = random.Random(f"pin {split} {task} {index}")
                drawn = sample_household(load_catalog(), split, task, rng)
                text = problem_text(load_catalog(), drawn, "trial_x") if drawn else "none"
                digest.update(text.encode())
    assert digest.hexdigest() == "963907d30c26488de53aa623ddfa65f95e4ac3a73b3dbf19202c791a3af1ecbf"


def test_games_of_an_axis_are_made_and_won(tmp_path):
    counts = {
        **{"train": {PICK: 1}, OOD_OBJECTS: {PICK: 1, LOOK: 1}},
        **{OOD_ROOMS: {PICK: 1}, OOD_GRAMMAR: {PICK: 1}},
    }
    games = make_games(tmp_path, counts, SEED)
    splits = ["train", OOD_OBJECTS, OOD_OBJECTS, OOD_ROOMS, OOD_GRAMMAR]
    assert [game.split for game in games] == splits
    assert [axes_of(game) for game in games] == [set(), *({split} for split in splits[1:])]
    world = load_world("alfworld")
    for axis in AXES:
        found = world.games(tmp_path, axis)
        assert found == sorted((g for g in games if g.split == axis), key=lambda game: game.id)
        assert [world.game_at(tmp_path / axis / game.id) for game in found] == [
            Game(game.id, str(tmp_path / axis / game.id / "game.tw-pddl"), axis, game.task_type)
            for game in found
        ]


REAL = "trial_T20190907_000000_000000"


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("pick_clean_then_place_in_recep-Mug-None-CoffeeMachine-3", set()),
        ("pick_heat_then_place_in_recep-Egg-None-Fridge-3", {OOD_OBJECTS}),
        ("look_at_obj_in_light-CD-None-DeskLamp-304", {OOD_OBJECTS}),
        ("look_at_obj_in_light-AlarmClock-None-DeskLamp-304", set()),
        ("pick_and_place_simple-Newspaper-None-ArmChair-217", {OOD_ROOMS}),
        ("pick_and_place_simple-Watch-None-Safe-219", {OOD_OBJECTS, OOD_ROOMS}),
    ],
)
def test_real_games_are_split_by_name(name, axes):
    assert axes_of(Game(f"{name}/{REAL}", "", "valid_seen", name.split("-")[0])) == axes


@pytest.mark.skipif(
    not os.environ.get("ALFWORLD_DATA"), reason="ALFWORLD_DATA names no folder of ALFWorld's data"
)
def test_real_training_games_have_enough_on_every_axis():
    world = load_world("alfworld")
    found: Counter[frozenset[str]] = Counter()
    for game in world.games("", "train"):
        if game.task_type in IN_DOMAIN_TASKS:
            found[axes_of(game)] += 1
    assert found[frozenset()] > found.total() / 2
    for axis in (OOD_OBJECTS, OOD_ROOMS):  # ALFWorld 0.4 has no game of the older grammar
        assert found[frozenset({axis})] >= 60
