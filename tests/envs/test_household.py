"""Made households: equal bytes from equal seeds, winnable in ALFWorld, repaired on disk."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cotjax.envs.alfworld.catalog import load_catalog
from cotjax.envs.alfworld.env import AlfworldEnv
from cotjax.envs.alfworld.maker import make as household
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.envs.alfworld.maker.pddl import folder_name, problem_text
from cotjax.envs.alfworld.maker.sample import TREATMENTS, floor_plans_of, sample_household
from cotjax.envs.alfworld.maker.walkthrough import engine_names
from cotjax.envs.alfworld.tasks import TASK_TYPES, UNSEEN_FLOOR_PLANS
from cotjax.errors import DataError, EnvError, UsageError

PICK, LOOK, CLEAN, HEAT, COOL, TWO = TASK_TYPES
COUNTS = {
    "train": dict.fromkeys(TASK_TYPES, 1),
    "valid_seen": {PICK: 1, TWO: 1},
    "valid_unseen": {CLEAN: 1},
}
SEED = 7


@pytest.fixture(scope="module", autouse=True)
def _cache_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, games): one game of each type and a few of the other splits; read only."""
    out = tmp_path_factory.mktemp("households")
    return out, make_games(out, COUNTS, SEED)


@pytest.fixture
def one_game(tmp_path):
    """(folder, game) to do harm to."""
    [game] = make_games(tmp_path, {"train": {PICK: 1}}, SEED)
    return tmp_path, game


def contents(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
    }


def worlds(task_type: str, split: str = "train", number: int = 150):
    for index in range(number):
        world = sample_household(
            load_catalog(), split, task_type, random.Random(f"{split} {task_type} {index}")
        )
        if world is not None:
            yield world


# ---- seeds


def test_a_game_is_the_same_for_any_workers_and_counts(made, tmp_path):
    # Spawned processes have other hash seeds than this one, so this covers those as well.
    make_games(tmp_path, {"train": {PICK: 2, COOL: 1}, "valid_seen": {TWO: 1}}, SEED, workers=2)
    here, there = contents(tmp_path), contents(made[0])
    shared = [name for name in here.keys() & there.keys() if name != "manifest.json"]
    assert len(shared) == 3 * 3  # three files of three games; the second pick game is new
    assert all(here[name] == there[name] for name in shared)
    assert len(here) == 1 + 3 * 4


def test_another_seed_gives_other_games(made, one_game, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    [game] = make_games(other, {"train": {PICK: 1}}, SEED + 1)
    assert game.id != one_game[1].id


def test_splits_share_no_game_and_unseen_has_its_own_floor_plans(made):
    catalog = load_catalog()
    numbers = {split: {plan.number for plan in floor_plans_of(catalog, split)} for split in COUNTS}
    assert numbers["valid_unseen"] == set(UNSEEN_FLOOR_PLANS)
    assert (
        numbers["train"] == numbers["valid_seen"] and not numbers["train"] & numbers["valid_unseen"]
    )
    assert len(numbers["train"]) == 116
    games = made[1]
    for game in games:
        assert int(game.id.split("/")[0].rsplit("-", 1)[1]) in numbers[game.split]
    problems = [
        re.sub(r"plan_trial_\w+", "", json.loads(Path(game.path).read_text())["pddl_problem"])
        for game in games
    ]
    assert len(set(problems)) == len(games)


def test_two_worlds_in_one_floor_plan_differ_in_layout_and_goal():
    by_plan: dict[int, list] = {}
    for world in worlds(HEAT, "valid_unseen"):
        by_plan.setdefault(world.floor_plan, []).append(world)
    [kitchens] = by_plan.values()  # one unseen kitchen
    assert len({tuple(r.id for r in world.receptacles) for world in kitchens}) > len(kitchens) / 2
    assert len({(world.target, world.goal) for world in kitchens}) > 20


# ---- properties of a household


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_no_world_starts_at_its_goal(task_type):
    catalog, seen = load_catalog(), 0
    for world in worlds(task_type):
        seen += 1
        kinds = {r.id: r.kind for r in world.receptacles}
        targets = [item for item in world.objects if item.kind == world.target]
        assert len(targets) >= (2 if task_type == TWO else 1)
        assert all(kinds[item.inside] != world.goal for item in targets)
        if task_type == LOOK:
            assert world.goal == "" and world.toggle == "DeskLamp" and world.lamps
        else:
            assert (
                world.goal in kinds.values()
                and world.target in catalog.fits[world.goal]
                and not world.toggle
            )
        if treatment := TREATMENTS.get(task_type):
            assert world.target in catalog.affords[treatment.affordance]
            assert treatment.station in kinds.values() and treatment.station != world.goal
    assert seen > 140


def test_things_lie_where_they_fit_and_no_two_share_an_id():
    catalog = load_catalog()
    for task_type in TASK_TYPES:
        for world in worlds(task_type, number=40):
            receptacles = {r.id: r for r in world.receptacles}
            assert all(
                item.kind in catalog.fits[receptacles[item.inside].kind] for item in world.objects
            )
            assert all(
                item.spot == receptacles[item.inside].spot for item in world.items if item.inside
            )
            ids = [*receptacles, *(item.id for item in world.items)]
            assert len(set(ids)) == len(ids)
            assert world.start not in {thing.spot for thing in (*world.receptacles, *world.items)}


def test_rooms_are_as_large_as_released_ones():
    # Medians of the released training games: receptacles and objects; kitchens have fewer than 34.
    released = {
        "Kitchen": (26, 45),
        "LivingRoom": (14, 21),
        "Bedroom": (14, 24),
        "Bathroom": (15, 17),
    }
    sizes: dict[str, list[tuple[int, int]]] = {room: [] for room in released}
    for task_type in TASK_TYPES:
        for world in worlds(task_type):
            room = load_catalog().floor_plans[world.floor_plan].room
            sizes[room].append(
                (len(world.receptacles), sum(item.inside is not None for item in world.items))
            )
    for room, expected in released.items():
        medians = [sorted(values)[len(values) // 2] for values in zip(*sizes[room], strict=True)]
        assert medians == pytest.approx(expected, rel=0.2), room


def test_the_problem_declares_every_name_it_uses():
    catalog = load_catalog()
    for task_type in TASK_TYPES:
        for world in worlds(task_type, number=10):
            head, body = problem_text(catalog, world, "trial_x").split("(:init")
            declared = {line.split(" - ")[0].strip() for line in head.splitlines() if " - " in line}
            facts = body.split("(:goal")[0]
            assert {
                word
                for fact in re.findall(r"\((\w+(?: \w+)+)\)", facts)
                for word in fact.split()[1:]
            } <= declared


# ---- in the engines


def test_names_are_the_engines_own(made):
    for game in made[1]:
        problem = json.loads(Path(game.path).read_text())["pddl_problem"]
        spelled = re.findall(r"^\s+(\w+) - receptacle", problem, re.MULTILINE)
        ids = [
            name.replace("_bar_", "|")
            .replace("_plus_", "+")
            .replace("_minus_", "-")
            .replace("_dot_", ".")
            for name in spelled
        ]
        _, observation = AlfworldEnv().reset(game)
        assert set(re.findall(r"an? (\w+ \d+)", observation.text)) == set(
            engine_names(ids).values()
        )


@pytest.mark.filterwarnings("ignore")  # the stock environment leaves files open
@pytest.mark.parametrize(
    "task_type",
    [
        pytest.param(task, marks=() if task in (LOOK, TWO) else pytest.mark.slow)
        for task in TASK_TYPES
    ],
)
def test_the_walkthrough_wins_in_the_stock_environment(made, task_type, tmp_path, monkeypatch):
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))  # importing alfworld creates this folder
    from alfworld.agents.environment import get_environment
    from alfworld.agents.utils.misc import get_templated_task_desc

    config = {
        "dataset": {"data_path": str(made[0] / "train"), "num_train_games": -1},
        "env": {
            "task_types": [TASK_TYPES.index(task_type) + 1],
            "goal_desc_human_anns_prob": 0,
            "domain_randomization": False,
            "expert_type": "handcoded",
        },
        "general": {"training_method": "dqn"},
        "rl": {"training": {"max_nb_steps_per_episode": 50}},
    }
    stock = get_environment("AlfredTWEnv")(config, train_eval="train")
    [path] = stock.game_files
    [game] = [game for game in made[1] if game.split == "train" and game.task_type == task_type]
    assert Path(path).samefile(game.path)
    env = stock.init_env(batch_size=1)
    try:
        [text], infos = env.reset()
        for command in json.loads(Path(path).read_text())["walkthrough"]:
            assert command in infos["admissible_commands"][0] and not infos["won"][0]
            _, _, [done], infos = env.step([command])
        assert infos["won"][0] and done
    finally:
        env.close()
    header = json.loads(Path(path).with_name("traj_data.json").read_text())
    task = re.search(r"Your task is to: (.*)\.", text)[1]
    assert task in {get_templated_task_desc(header) for _ in range(100)}
    assert Path(path).parent.name == header["task_id"]


def test_a_game_that_is_not_won_is_never_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(household, "walkthrough", lambda catalog, world: ["look"])
    monkeypatch.setattr(household, "_MOST_ATTEMPTS", 2)
    with pytest.raises(EnvError, match=f"2 attempts at train/{PICK}/0 with seed {SEED}"):
        make_games(tmp_path, {"train": {PICK: 1}}, SEED)
    assert set(contents(tmp_path)) == {"manifest.json"}


# ---- files


def test_folders_and_games_are_named_as_alfworld_names_them(made):
    out, games = made
    assert [(game.split, game.task_type) for game in games] == [
        (split, task)
        for split in COUNTS
        for task in TASK_TYPES
        for _ in range(COUNTS[split].get(task, 0))
    ]
    for game in games:
        path = Path(game.path)
        assert path == out / game.split / game.id / "game.tw-pddl"
        game_file, header = (
            json.loads(path.read_text()),
            json.loads(path.with_name("traj_data.json").read_text()),
        )
        goal = header["pddl_params"]["parent_target"] or header["pddl_params"]["toggle_target"]
        target, scene = header["pddl_params"]["object_target"], header["scene"]["scene_num"]
        folder = f"{game.task_type}-{target}-None-{goal}-{scene}"
        assert game.id == f"{folder}/{header['task_id']}"
        assert game_file["solvable"] is True
        assert path.with_name("initial_state.pddl").read_text() == game_file["pddl_problem"]
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", *COUNTS]


def test_folder_name_of_a_lamp_task():
    world = next(worlds(LOOK))
    assert (
        folder_name(world)
        == f"look_at_obj_in_light-{world.target}-None-DeskLamp-{world.floor_plan}"
    )


def test_a_second_call_makes_nothing(made):
    out, games = made
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    calls = []
    assert (
        make_games(
            out,
            {**COUNTS, "valid_seen": {**COUNTS["valid_seen"], LOOK: 0}},
            SEED,
            1,
            lambda *call: calls.append(call),
        )
        == games
    )
    assert calls == [(9, 9)]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("harm", [lambda path: path.write_text("{}"), lambda path: path.unlink()])
def test_a_damaged_game_is_made_again(one_game, harm):
    out, game = one_game
    before = contents(out)
    harm(Path(game.path))
    calls = []
    assert make_games(
        out, {"train": {PICK: 1}}, SEED, progress=lambda *call: calls.append(call)
    ) == [game]
    assert contents(out) == before and calls == [(1, 1)]


@pytest.mark.parametrize(
    ("counts", "seed", "differing"),
    [
        ({"train": {PICK: 1}}, SEED + 1, f"with seed {SEED}, not {SEED + 1}"),
        ({"train": {PICK: 2}}, SEED, f"1 train/{PICK}, not 2"),
        ({"valid_seen": {PICK: 1}}, SEED, f"1 train/{PICK}, not 0; 0 valid_seen/{PICK}, not 1"),
    ],
)
def test_a_manifest_that_disagrees_is_named(one_game, counts, seed, differing):
    with pytest.raises(UsageError, match=re.escape(differing) + ": choose another folder"):
        make_games(one_game[0], counts, seed)


def test_a_manifest_of_another_generator_is_named(one_game):
    manifest = one_game[0] / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"household 1', '"household 0'))
    with pytest.raises(UsageError, match=r"by household 0 on alfworld [\d.]+, not household 1"):
        make_games(one_game[0], {"train": {PICK: 1}}, SEED)


def test_a_signal_to_all_processes_ends_the_first_with_one_line(tmp_path):
    """As `timeout` and a terminal send it."""
    arguments = ["games", "make", "--out", str(tmp_path), "--split", "train", "--workers", "2"]
    made = subprocess.Popen(
        [sys.executable, "-m", "cotjax.cli", *arguments, "--per-type", "50"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while made.poll() is None and not any(tmp_path.glob("train/*/*/game.tw-pddl")):
        time.sleep(0.05)
    os.killpg(made.pid, signal.SIGTERM)
    said = made.communicate()[1].splitlines()
    assert made.returncode == 75 and len(said) == 1 and "the same command resumes" in said[0]


def test_a_damaged_manifest_is_named(one_game):
    (one_game[0] / "manifest.json").write_text('{"games": ')
    with pytest.raises(DataError, match=r"manifest\.json cannot be read \(JSONDecodeError"):
        make_games(one_game[0], {"train": {PICK: 1}}, SEED)


def test_a_folder_with_games_of_others_is_left_alone(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(UsageError, match="was not made by cotjax"):
        make_games(tmp_path, {"train": {PICK: 1}}, SEED)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"counts": {"test": {PICK: 1}}}, "no split is called 'test'"),
        ({"counts": {"train": {"cook": 1}}}, r"no task type is called 'cook' \(split train\)"),
        ({"counts": {"train": {PICK: -1}}}, "must be a whole number from 0 up, not -1"),
        ({"counts": {"train": {PICK: 1.5}}}, "must be a whole number from 0 up, not 1.5"),
        ({"counts": {"train": {PICK: 0}}}, "no games are asked for"),
        ({"counts": {}}, "no games are asked for"),
        ({"seed": "x"}, "must be a whole number, not 'x'"),
        ({"workers": 0}, "at least 1 worker, not 0"),
        ({"out": "Sliced"}, "'Sliced' in its path: choose another folder"),
    ],
)
def test_bad_requests(tmp_path, changed, message):
    request = {"out": "games", "counts": {"train": {PICK: 1}}, "seed": SEED, **changed}
    with pytest.raises(UsageError, match=message):
        make_games(**{**request, "out": tmp_path / request["out"]})
    assert not list(tmp_path.iterdir())


def test_reading_the_package_leaves_no_trace(tmp_path):
    code = (
        "import os, random, sys\nstate, before = random.getstate(), dict(os.environ)\n"
        "from cotjax.envs.alfworld.catalog import load_catalog\nload_catalog()\n"
        "assert random.getstate() == state and dict(os.environ) == before\n"
        "assert 'alfworld' not in sys.modules"
    )
    environment = {
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert not list(tmp_path.iterdir())
