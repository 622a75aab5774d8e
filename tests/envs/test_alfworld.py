"""The cached engine against ALFWorld's own, and how it treats broken games.

`COTJAX_REAL_ALFWORLD=<folder holding json_2.1.1/>` adds released games to the slow comparison.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cotjax.envs.alfworld.env import AlfworldEnv, find_games
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.envs.alfworld.tasks import TASK_TYPES
from cotjax.envs.base import Game, games_hash
from cotjax.errors import DataError, EnvError, UsageError

# The stock engine leaves files open.
STOCK_WARNINGS = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
NONSENSE = ("", "fly to the moon", "take mug 99 from fridge 7", "LOOK", "look around")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, list[Game]]:
    root = tmp_path_factory.mktemp("made")
    counts = {"train": {"pick_cool_then_place_in_recep": 1, "look_at_obj_in_light": 1}}
    return root, make_games(root, counts, seed=3, workers=1)


@pytest.fixture
def games(made) -> list[Game]:
    return made[1]


@pytest.fixture
def cache_dir(tmp_path) -> str:
    return str(tmp_path / "pddl")


def copied(game: Game, folder: Path, **changes) -> Game:
    """The game with some of its file's fields changed; a field changed to None is left out."""
    path = folder / "game.tw-pddl"
    content = {**json.loads(Path(game.path).read_text()), **changes}
    path.write_text(
        json.dumps({name: value for name, value in content.items() if value is not None})
    )
    return Game("copied/trial", str(path), game.split, game.task_type)


def varied_action(commands, rng: random.Random) -> str:
    """Draw a verb, then one of its commands, since nine of ten are "go to"; sometimes nonsense."""
    if rng.random() < 0.15:
        return rng.choice(NONSENSE)
    verb = rng.choice(sorted({command.split()[0] for command in commands}))
    return rng.choice([command for command in commands if command.split()[0] == verb])


def walkthrough(game: Game) -> list[str]:
    return json.loads(Path(game.path).read_text())["walkthrough"]


def engines(cache_dir: str):
    AlfworldEnv(cache_dir=cache_dir)  # imports alfworld without a trace
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.core import EnvInfos
    from textworld.envs.pddl.pddl import PddlEnv

    from cotjax.envs.alfworld.engine import CachedPddlEnv

    infos = EnvInfos(won=True, admissible_commands=True, facts=True)
    return AlfredDemangler()(PddlEnv(infos)), CachedPddlEnv(infos, cache_dir)


def assert_same(stock, cached, where) -> None:
    assert stock.feedback == cached.feedback, where
    assert stock["admissible_commands"] == cached["admissible_commands"], where
    assert stock["won"] == cached["won"], where
    assert sorted(map(str, stock["facts"])) == sorted(map(str, cached["facts"])), where


def compare(path: str, stock, cached, actions) -> None:
    """Play `actions(state)`, a command or None to stop, in both engines."""
    stock.load(path)
    cached.load(path)
    states = stock.reset(), cached.reset()
    assert_same(*states, (path, "reset"))
    while (action := actions(states[1])) is not None:
        states = stock.step(action)[0], cached.step(action)[0]
        assert_same(*states, (path, action))


def random_walk(steps: int, seed: int):
    rng = random.Random(seed)
    left = iter(range(steps))
    return lambda state: (
        None if next(left, None) is None else varied_action(state["admissible_commands"], rng)
    )


@STOCK_WARNINGS
def test_the_engine_equals_the_stock_engine(games, cache_dir):
    """Feedback, admissible commands, facts and wins, on random walks and on the way to a win."""
    stock, cached = engines(cache_dir)
    for seed, game in enumerate(games):
        compare(game.path, stock, cached, random_walk(20, seed))
        left = iter([*walkthrough(game), "look", "inventory", "help"])
        compare(game.path, stock, cached, lambda _, left=left: next(left, None))
        assert cached._pddl_state.check_goal()


@pytest.mark.parametrize(
    "query",
    [
        "inreceptacle(o:object, r:receptacle)",
        "inreceptacle(o:object, r:receptacle) & inreceptacle(other:object, r:receptacle)",
        "atlocation(a:agent, l:location) & receptacleatlocation(r:receptacle, l:location) "
        "& openable(r:receptacle)",
        "holds(a:agent, o:object)",
    ],
)
def test_queries_are_answered_as_textworld_does(games, cache_dir, query):
    """The same matches in the same order; two objects of a match are never the same one."""
    env = AlfworldEnv(cache_dir=cache_dir)
    from textworld.logic import Rule, State

    env.reset(games[0])
    state, rule = env._engine._pddl_state, Rule.parse_conjunctive_query(query)
    expected = list(State.all_assignments(state, rule))
    assert list(state.all_assignments(rule, {})) == expected
    for match in expected[:3]:
        bound = dict(list(match.items())[-1:])
        assert list(state.all_assignments(rule, bound)) == list(
            State.all_assignments(state, rule, bound)
        )


@STOCK_WARNINGS
def test_a_plan_equals_the_stock_engines_plan(games, cache_dir):
    stock, cached = engines(cache_dir)
    game = next(game for game in games if game.task_type == "look_at_obj_in_light")
    compare(game.path, stock, cached, random_walk(4, seed=1))
    plan = cached._pddl_state.replan(cached._entity_infos)
    assert plan
    assert plan == stock.unwrapped._pddl_state.replan(stock._entity_infos)


@pytest.mark.slow
@STOCK_WARNINGS
def test_the_engine_equals_the_stock_engine_on_more_games(tmp_path, cache_dir):
    games = make_games(
        tmp_path / "games", {"valid_unseen": dict.fromkeys(TASK_TYPES, 1)}, seed=4, workers=1
    )
    if real := os.environ.get("COTJAX_REAL_ALFWORLD"):
        games += random.Random(0).sample(find_games(real, "valid_seen"), 10)
    stock, cached = engines(cache_dir)
    for seed, game in enumerate(games):
        compare(game.path, stock, cached, random_walk(50, seed))


@STOCK_WARNINGS
def test_texts_are_those_of_the_stock_batch_environment(made, cache_dir):
    """`AlfworldEnv` gives the task and observations of the `AlfredTWEnv` that papers use."""
    root, games = made
    env = AlfworldEnv(max_steps=12, cache_dir=cache_dir)
    from alfworld.agents.environment.alfred_tw_env import AlfredTWEnv

    config = {
        "env": {
            "goal_desc_human_anns_prob": 0,
            "task_types": [1, 2, 3, 4, 5, 6],
            "domain_randomization": False,
            "expert_type": "handcoded",
        },
        "dataset": {"data_path": str(root / "train"), "num_train_games": -1},
        "general": {"training_method": "dqn"},
        "rl": {"training": {"max_nb_steps_per_episode": 12}},
    }
    stock = AlfredTWEnv(config, train_eval="train")
    assert sorted(stock.game_files) == sorted(game.path for game in find_games(root, "train"))
    batch = stock.init_env(batch_size=1)
    texts, infos = batch.reset()
    game = next(game for game in games if game.path == infos["extra.gamefile"][0])
    task, observation = env.reset(game)
    assert (
        texts[0].strip()
        == f"-= Welcome to TextWorld, ALFRED! =-\n\n{observation.text}\n\nYour task is to: {task}."
    )
    rng = random.Random(0)
    while not observation.done:
        action = varied_action(observation.admissible_commands, rng)
        texts, _, dones, infos = batch.step([action])
        observation = env.step(action)
        assert observation.text == texts[0].strip()
        assert list(observation.admissible_commands) == [
            c for c in infos["admissible_commands"][0] if c != "help"
        ]
        assert (observation.won, observation.done) == (infos["won"][0], dones[0])
    batch.close()


def test_an_episode_ends_with_the_win_or_with_its_steps(games, cache_dir):
    env = AlfworldEnv(max_steps=len(walkthrough(games[0])), cache_dir=cache_dir)
    task, first = env.reset(games[0])
    assert not task.endswith(".") and "Your task" not in task
    assert first.text.startswith("You are in the middle of a room.") and "task" not in first.text
    assert not first.done and "help" not in first.admissible_commands
    env.step(walkthrough(games[0])[0])
    assert env.reset(games[0]) == (task, first)  # a reset in between takes nothing along
    observations = [env.step(action) for action in walkthrough(games[0])]
    assert [observation.done for observation in observations] == [False] * (
        len(observations) - 1
    ) + [True]
    assert observations[-1].won
    with pytest.raises(EnvError, match="episode is over"):
        env.step("look")

    env.reset(games[0])
    idle = [env.step("nothing that anyone understands") for _ in observations]
    assert {observation.text for observation in idle} == {"Nothing happens."}
    assert idle[-1].done and not idle[-1].won


def test_interleaved_environments_do_not_mix(games, cache_dir):
    """Four slots over two games, stepped in turn, see what each would have seen alone."""

    def played(env, game, seed):
        rng = random.Random(seed)
        _, observation = env.reset(game)
        yield observation
        for _ in range(15):
            observation = env.step(varied_action(observation.admissible_commands, rng))
            yield observation

    alone = AlfworldEnv(cache_dir=cache_dir)
    slots = [(games[slot % 2], slot) for slot in range(4)]
    expected = [list(played(alone, *slot)) for slot in slots]
    together = zip(
        *(played(AlfworldEnv(cache_dir=cache_dir), *slot) for slot in slots), strict=True
    )
    assert [list(column) for column in zip(*together, strict=True)] == expected


def test_a_kept_translation_is_used_and_a_damaged_one_made_again(games, cache_dir, monkeypatch):
    env = AlfworldEnv(cache_dir=cache_dir)
    from cotjax.envs.alfworld import translation as alfworld_translation
    from cotjax.envs.alfworld.engine import CachedPddlEnv

    made = []
    real = alfworld_translation.translate
    monkeypatch.setattr(
        alfworld_translation, "translate", lambda *arguments: made.append(1) or real(*arguments)
    )
    CachedPddlEnv.forget()
    fresh = env.reset(games[0])
    CachedPddlEnv.forget()
    assert env.reset(games[0]) == fresh
    assert len(made) == 1
    (kept,) = [path for path in Path(cache_dir).rglob("*") if path.is_file()]
    intact = kept.read_bytes()
    middle = len(intact) // 2
    for damaged in (
        b"",
        intact[:middle],
        intact[:middle] + b"?" + intact[middle + 1 :],
        intact[:-4] + bytes(4),
    ):
        kept.write_bytes(damaged)
        CachedPddlEnv.forget()
        assert env.reset(games[0]) == fresh
        assert kept.read_bytes() == intact
    assert len(made) == 5
    # The next write deletes a killed process's partial file, and keeps a recent one.
    old, new = kept.parent / ".old.partial", kept.parent / ".new.partial"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    kept.unlink()
    CachedPddlEnv.forget()
    assert env.reset(games[0]) == fresh
    assert set(kept.parent.iterdir()) == {kept, new}


def test_memory_does_not_grow_with_the_games_played(games, cache_dir, monkeypatch):
    env = AlfworldEnv(cache_dir=cache_dir, games_kept=1)
    from mementos.core import _memento_cache as facts

    from cotjax.envs.alfworld import engine

    def played(rounds: int) -> int:
        for _ in range(rounds):
            for game in games:
                assert env.reset(game)
                assert env.step("look")
        gc.collect()
        return len(gc.get_objects())

    kept = []
    for capacity in (10**9, 10):
        monkeypatch.setattr(engine, "_MEMENTO_CAPACITY", capacity)
        before = played(1)
        kept.append(len(facts))
    assert kept[1] < 0.8 * kept[0], "textworld's cache holds the facts of one game, not of both"
    assert played(5) < 1.02 * before
    (entry,) = engine.CachedPddlEnv._entries.values()
    text = entry.translation.sas.decode()
    assert text.startswith("begin_version") and len(entry.translation.packed) < len(text) / 5


def test_without_a_writable_cache_games_still_play(games, tmp_path):
    (tmp_path / "file").write_text("in the way")
    task, _ = AlfworldEnv(cache_dir=str(tmp_path / "file" / "pddl")).reset(games[0])
    assert task


@pytest.mark.parametrize(
    "changes",
    [
        {"pddl_problem": None},
        {"grammar": None},
        {"pddl_domain": 7},
        {"pddl_problem": "(define (problem"},
        {"grammar": "grammar :: {"},
    ],
    ids=str,
)
def test_a_broken_game_is_named(games, cache_dir, tmp_path, changes):
    env = AlfworldEnv(cache_dir=cache_dir)
    broken = copied(games[0], tmp_path, **changes)
    with pytest.raises(DataError, match=r"game\.tw-pddl: .* make or unpack it again") as caught:
        env.reset(broken)
    assert "\n" not in str(caught.value)
    with pytest.raises(EnvError, match="reset the environment"):
        env.step("look")
    assert env.reset(games[0])[1].admissible_commands  # the slot plays on


def test_a_game_cut_short_is_named(games, cache_dir, tmp_path):
    env = AlfworldEnv(cache_dir=cache_dir)
    path = tmp_path / "game.tw-pddl"
    path.write_bytes(Path(games[0].path).read_bytes()[:5000])
    for place in (path, tmp_path / "absent.tw-pddl"):
        with pytest.raises(DataError, match=str(place)):
            env.reset(Game("cut/trial", str(place), "train", games[0].task_type))


def test_a_failing_engine_names_game_and_step(games, cache_dir, monkeypatch):
    env = AlfworldEnv(cache_dir=cache_dir)
    env.reset(games[0])
    env.step("look")
    monkeypatch.setattr(env._engine, "step", lambda action: 1 // 0)
    with pytest.raises(EnvError) as caught:
        env.step("look")
    assert f"{games[0].id}, step 2" in str(caught.value)


def test_games_that_differ_in_their_goal_line_alone_keep_their_own(games, cache_dir, tmp_path):
    env = AlfworldEnv(cache_dir=cache_dir)
    grammar = json.loads(Path(games[0].path).read_text())["grammar"]
    task, observation = env.reset(games[0])
    # The last one is written with characters that the goal line's short cut does not know.
    for other in ("examine a spoon", "put two cups in the safe", "find a spoon (any one) & wait"):
        assert grammar.count(task) == 1
        reworded = copied(games[0], tmp_path, grammar=grammar.replace(task, other))
        assert env.reset(reworded) == (other, observation)
    assert env.reset(games[0]) == (task, observation)


def test_find_games_filters_as_alfworld_does(games, tmp_path):
    source = Path(games[0].path).parent

    def placed(id_: str) -> Path:
        folder = tmp_path / "json_2.1.1" / "train" / id_
        shutil.copytree(source, folder)
        return folder

    for kept in ("b/trial_2", "b/trial_1", "a/trial_3"):
        placed(kept)
    placed("pick_movable-x/trial_1")
    placed("pick-AppleSliced/trial_1")
    (placed("no_game/trial_1") / "game.tw-pddl").unlink()
    (placed("no_trajectory/trial_1") / "traj_data.json").unlink()
    (placed("other_task/trial_1") / "traj_data.json").write_text('{"task_type": "juggle"}')
    for number, change in enumerate(({"solvable": False}, {"solvable": None})):
        copied(games[0], placed(f"unsolvable/trial_{number}"), **change)

    left_out = Counter()
    found = find_games(tmp_path, "train", left_out)
    assert left_out == {
        "not marked solvable": 2,
        "of no known task type": 1,
        "with 'Sliced' in the name": 1,
        "with 'movable' in the name": 1,
        "without game.tw-pddl": 1,
        "without traj_data.json": 1,
    }
    assert [game.id for game in found] == ["a/trial_3", "b/trial_1", "b/trial_2"]
    assert {game.task_type for game in found} == {games[0].task_type}
    assert find_games(tmp_path / "json_2.1.1", "train") == found

    before = games_hash(found)
    assert games_hash(reversed(found)) == before
    Path(found[1].path).write_bytes(Path(found[1].path).read_bytes() + b"\n")
    assert games_hash(found) != before

    for name in ("game.tw-pddl", "traj_data.json"):
        broken = placed(f"broken_{name}/trial_1") / name
        broken.write_text("{")
        with pytest.raises(DataError, match=str(broken)):
            find_games(tmp_path, "train")
        shutil.rmtree(broken.parent)


def test_a_folder_whose_games_are_all_left_out_says_how_many_and_why(games, tmp_path):
    for number, name in enumerate(("unsolvable", "AppleSliced", "unsolvable", "bare")):
        folder = tmp_path / "valid_seen" / name / f"trial_{number}"
        shutil.copytree(Path(games[0].path).parent, folder)
        if name == "unsolvable":
            copied(games[0], folder, solvable=False)
        elif name == "bare":
            (folder / "game.tw-pddl").unlink()
    with pytest.raises(DataError) as caught:
        find_games(tmp_path, "valid_seen")
    said = str(caught.value)
    assert "none of its 4 games is played: 2 not marked solvable, 1 " in said
    assert "1 with 'Sliced' in the name" in said and "1 without game.tw-pddl" in said
    assert "games make" not in said and "cotjax play --game" in said, "advice for one who has games"


def test_a_wrong_split_is_answered_by_those_that_there_are(made):
    with pytest.raises(UsageError, match=r"split 'nope' in it.* \(there are train\); download"):
        find_games(made[0], "nope")


def test_a_folder_without_games_says_how_to_make_some(tmp_path):
    (tmp_path / "valid_seen").mkdir()
    with pytest.raises(UsageError, match="cotjax games make"):
        find_games(tmp_path, "train")
    with pytest.raises(DataError, match="cotjax games make"):
        find_games(tmp_path, "valid_seen")


def test_nothing_is_printed_and_nothing_leaks_into_the_process(games, tmp_path):
    """A fresh process prints nothing, keeps arguments and environment, and adds only our cache."""
    code = (
        "import os, sys; before = (list(sys.argv), dict(os.environ), sys.stdout, sys.stderr)\n"
        "from cotjax.envs.alfworld.env import AlfworldEnv; from cotjax.envs.base import Game\n"
        f"env = AlfworldEnv(); env.reset(Game('g', {games[0].path!r}, 's', 't'))\n"
        "env.step('look')\n"
        "assert before == (sys.argv, dict(os.environ), sys.stdout, sys.stderr)\n"
        "assert 'jax' not in sys.modules and 'torch' not in sys.modules"
    )
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in ("ALFWORLD_DATA", "XDG_CACHE_HOME")
    }
    environ |= {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "mine"],
        env=environ,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.glob(".cache/*")) == ["cotjax"]


def with_intro(game: Game, folder: Path, addition: str) -> Game:
    """The game whose first text has `addition`, as a JSON string spells it, before the room."""
    grammar = json.loads(Path(game.path).read_text())["grammar"]
    start = "#look.feedback#\\n\\n#task#"
    assert grammar.count(start) == 1
    return copied(game, folder, grammar=grammar.replace(start, addition + start))


@pytest.mark.parametrize("place", ["text", "list", "command"])
def test_a_game_file_runs_no_code(games, cache_dir, tmp_path, place):
    """The game is refused at loading, for an expression in a text, a list or a command."""
    made = tmp_path / "made"
    hostile = f"open('{made}', 'w').close() or 'x'"
    if place == "command":
        grammar = json.loads(Path(games[0].path).read_text())["grammar"]
        game = copied(
            games[0], tmp_path, grammar=grammar.replace("close {r}", f"close {{{hostile}}}")
        )
    else:
        game = with_intro(
            games[0],
            tmp_path,
            f"[{{{hostile} | holds(a:agent, o:object)}}]" if place == "list" else f"{{{hostile}}}",
        )
    with pytest.raises(DataError, match=r"game\.tw-pddl: not a playable ALFWorld game"):
        AlfworldEnv(cache_dir=cache_dir).reset(game)
    assert not made.exists()


RUNS_CODE = (
    "__import__('os').getpid()",
    "[x for x in [1]]",
    "(lambda: 1)()",
    "'{0}'.upper()",
    "exec()",
    "r.name if r else r.id",
    "r.__class__",
    "r.serialize",
    "r.name.upper",
    "f'{r}'",
    "'a' * 9",
    "1",
    "None",
    "r[0]",
    "r.name and r.id",
    "(" * 150 + ")" * 150,
    "r" * 500,
    "not",
    "",
)


@pytest.mark.parametrize("text", RUNS_CODE)
def test_no_expression_is_more_than_names_and_their_attributes(text, cache_dir):
    AlfworldEnv(cache_dir=cache_dir)
    from cotjax.envs.alfworld.grammar import _read_expression

    with pytest.raises(ValueError, match="must not run code"):
        _read_expression(text)


def test_a_refused_expression_is_named_with_the_game_file(games, cache_dir, tmp_path):
    game = with_intro(games[0], tmp_path, "{open('x')}")
    with pytest.raises(DataError) as caught:
        AlfworldEnv(cache_dir=cache_dir).reset(game)
    assert (
        game.path in str(caught.value)
        and "{open('x')}" in str(caught.value)
        and "must not run code" in str(caught.value)
    )


def test_expressions_are_names_attributes_texts_plus_and_or(cache_dir):
    AlfworldEnv(cache_dir=cache_dir)
    from textworld.generator.game import EntityInfo

    from cotjax.envs.alfworld.grammar import _read_expression

    mug, unnamed = EntityInfo("mug_1", "object"), EntityInfo("cup_1", "object")
    mug.name, mug.indefinite = "mug 1", "a"
    variables = {"o": mug, "u": unnamed}
    texts = (
        "o",
        "o.name ",
        "o.indefinite + ' ' + o.name ",
        "u.name or u.id",
        "u.name or u.desc",
        "'' or o.id or u.id",
        "('a' + o.id) or 'b'",
    )
    for text in texts:
        assert _read_expression(text).value(variables) == eval(text, {}, variables)
        assert _read_expression(text).names <= {"o", "u"}


def test_a_text_without_end_is_refused(games, cache_dir, tmp_path):
    grammar = json.loads(Path(games[0].path).read_text())["grammar"]
    game = copied(
        games[0], tmp_path, grammar=grammar.replace("#look.feedback#\\n\\n#task#", "#intro##intro#")
    )
    with pytest.raises(EnvError, match="does not end"):
        AlfworldEnv(cache_dir=cache_dir).reset(game)


@STOCK_WARNINGS
def test_a_command_that_changes_during_a_game_is_derived_anew(games, cache_dir, tmp_path):
    """For a command that names the drawer's state, no step shows that of the state before."""
    grammar = json.loads(Path(games[0].path).read_text())["grammar"]
    told = "examine {r}[{' of ' + o.name | inreceptacle(o:object, r:receptacle)}]"
    assert grammar.count("examine {r}") == 1
    game = copied(games[0], tmp_path, grammar=grammar.replace("examine {r}", told))
    stock, cached = engines(cache_dir)
    left = iter(walkthrough(game))
    compare(game.path, stock, cached, lambda _: next(left, None))


def test_facts_that_were_looked_up_are_looked_up_again_when_they_change(games, cache_dir):
    """What lies on a place is said anew after each thing that is taken from it and put back."""
    env = AlfworldEnv(cache_dir=cache_dir)
    env.reset(games[0])
    for action in walkthrough(games[0]):
        env.step(action)
        if action.startswith("take "):
            break
    thing, place = action.removeprefix("take ").split(" from ")
    listed = f"a {thing}"
    assert listed not in env.step(f"examine {place}").text and thing in env.step("inventory").text
    env.step(f"move {thing} to {place}")
    assert listed in env.step(f"examine {place}").text and thing not in env.step("inventory").text
    env.step(f"take {thing} from {place}")
    assert listed not in env.step(f"examine {place}").text and thing in env.step("inventory").text
