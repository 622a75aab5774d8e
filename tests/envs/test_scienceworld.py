"""ScienceWorld: its games, its simulator in a Java process, and the engine's gold paths."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
from dataclasses import replace as changed
from functools import partial
from pathlib import Path

import pytest
from helpers.pools import ended

from cotjax.envs.base import Observation
from cotjax.envs.pool.descendants import children
from cotjax.envs.pool.pool import EnvPool
from cotjax.envs.replay import replay
from cotjax.envs.scienceworld.engine import installed_jar
from cotjax.envs.scienceworld.env import _REFUSED, ScienceWorldEnv
from cotjax.envs.scienceworld.expert import Expert
from cotjax.envs.scienceworld.tasks import OOD_TASKS, VARIATIONS, Loaded
from cotjax.envs.scienceworld.world import PLAIN, WORLD
from cotjax.envs.worlds import AgentSettings, load_world
from cotjax.errors import EnvError, UsageError
from cotjax.rollout.collect import Collecting, collect

_MISSING = [
    *(["the package scienceworld"] if importlib.util.find_spec("scienceworld") is None else []),
    *(["Java"] if shutil.which("java") is None else []),
]
needs_engine = pytest.mark.skipif(bool(_MISSING), reason=f"without {' and '.join(_MISSING)}")
GAMES = {(game.split, game.id): game for split in WORLD.splits for game in WORLD.games("", split)}
ANIMAL = GAMES["train", "easy/find-animal/0003"]
LONGEST = GAMES["train", "easy/lifespan-longest-lived/0003"]


@pytest.fixture(scope="module")
def env():
    env = ScienceWorldEnv(max_steps=200)
    yield env
    env.close()


# ---- games


def test_the_world_has_every_variation_in_one_split():
    assert load_world("scienceworld") is WORLD
    counts = [len(WORLD.games("", split)) for split in ("train", "dev", "test")]
    assert counts == [3592, 1796, 1819] and sum(counts) == sum(VARIATIONS.values())
    assert len({game.id for game in GAMES.values()}) == 7207
    for split in WORLD.splits:
        ids = [game.id for game in WORLD.games("", split)]
        assert ids == sorted(ids)


def test_the_last_task_type_of_each_topic_is_out_of_domain():
    assert set(WORLD.task_types_of("ood")) == OOD_TASKS == {
        "change-the-state-of-matter-of",
        "chemistry-mix-paint-tertiary-color",
        "find-plant",
        "grow-plant",
        "identify-life-stages-2",
        "inclined-plane-friction-unnamed-surfaces",
        "lifespan-longest-lived-then-shortest-lived",
        "measure-melting-point-unknown-substance",
        "mendelian-genetics-unknown-plant",
        "test-conductivity-of-unknown-substances",
    }  # fmt: skip
    assert len(WORLD.task_types_of("in_domain")) == 20


def test_a_games_id_states_its_simplifications():
    for world, name in ((WORLD, "easy"), (PLAIN, "plain")):
        game = world.games("", "dev")[0]
        assert game.id == f"{name}/boil/0014"
        assert Loaded.of(game) == Loaded("boil", 14, name)
        assert name in world.title
    assert "teleport" in WORLD.instruction and "teleport" not in PLAIN.instruction


@pytest.mark.parametrize("id_", ["boil/0001", "hard/boil/0001", "easy/boil/0030", "easy/x/0001"])
def test_an_id_that_names_no_game_is_refused(id_):
    with pytest.raises(UsageError, match="names no game of ScienceWorld"):
        Loaded.of(changed(ANIMAL, id=id_))


def test_a_folder_or_an_unknown_split_is_refused():
    with pytest.raises(UsageError, match="leave the folder of games out"):
        WORLD.games("games", "train")
    with pytest.raises(UsageError, match=r"no split 'valid_unseen'; there are train, dev, test"):
        WORLD.games("", "valid_unseen")


@needs_engine
def test_variations_and_splits_are_the_engines(env):
    env.reset(ANIMAL)
    server = env._engine._server
    engines = {task: server.getTaskMaxVariations(task) for task in server.getTaskNames()}
    assert engines == dict(VARIATIONS)
    for task in ("identify-life-stages-1", "identify-life-stages-2", "grow-fruit"):
        server.load(task, 0, "", False)
        for split, listed in (
            ("train", server.getVariationsTrain()),
            ("dev", server.getVariationsDev()),
            ("test", server.getVariationsTest()),
        ):
            ids = [game.id for game in WORLD.games("", split) if game.task_type == task]
            assert ids == [f"easy/{task}/{variation:04d}" for variation in listed]


# ---- play


@needs_engine
def test_a_wrong_focus_ends_the_episode_without_score(env):
    pid = env.java_pid
    task, first = env.reset(ANIMAL)
    assert task.startswith("Your task is to find a(n) animal.") and first.text.startswith("This ")
    assert first.admissible_commands is None and 0 <= first.score < 1
    seen = env.step("focus on agent")
    assert (seen.done, seen.won, seen.score, seen.accepted) == (True, False, 0.0, True)
    with pytest.raises(EnvError, match=r"easy/find-animal/0003, step 2: the episode is over"):
        env.step("look around")
    env.reset(LONGEST)
    assert pid in (None, env.java_pid), "one Java process plays one game after another"


@needs_engine
def test_hostile_actions_are_refused_and_change_nothing(tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    env = ScienceWorldEnv()
    request.addfinalizer(env.close)
    _, first = env.reset(LONGEST)
    types = Path(importlib.util.find_spec("scienceworld").origin).with_name("object_type_ids.tsv")
    content = types.read_bytes()
    mark = tmp_path / "mark"
    for action in (
        "",
        "x" * 100_000,
        "look around " * 10_000,
        "\n",
        "look around\x00",
        "look around\nfocus on agent",
        'focus on agent" ) ; System.exit(1) ; ("',
        "\r\ne\n",  # py4j's own end of a command
        "c\nt\nexit\ne",
        f"$(touch {mark}) ; `touch {mark}`",
        f"__import__('os').system('touch {mark}')",
        "</action><action>focus on agent",
        "фокус на агенте",
        "focus on \u212a",
        "\ud800",
        "\u202eagent no sucof",
        "%s%n{0}${jndi:ldap://localhost/a}",
    ):
        seen = env.step(action)
        assert not seen.accepted and not seen.done and seen.text, action[:40]
    # Each of them but none of what is in them: the place is as it was.
    assert env.step("look around").text == first.text
    assert not list(tmp_path.iterdir()) and types.read_bytes() == content


@needs_engine
def test_a_hostile_choice_cancels_an_ambiguous_action(env):
    env.reset(GAMES["train", "easy/grow-fruit/0003"])
    for action in ("teleport to bathroom", "pick up seed jar", "teleport to greenhouse"):
        assert env.step(action).accepted
    for choice, moved in (("1\n0", False), ("99", False), ("0", True)):
        asked = env.step("move apple seed in seed jar to flower pot 2")
        assert asked.text.startswith("Ambiguous request") and not asked.accepted
        seen = env.step(choice)
        assert seen.accepted == moved, (choice, seen.text)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("No known action matches that input.", True),
        ("The sink appears broken, and can't be activated or deactivated.", True),
        ("The door is already open.", True),
        ("The freezer isn't open, so you can't see inside.", True),
        ("The door is now open.", False),
        ("You move to the kitchen.", False),
        ("a stopwatch, which is deactivated. The time reads 22 ticks.", False),
        ("This room is called the kitchen. In it, you see: \n\ta box. It is not open.", False),
    ],
)
def test_refused_actions_are_known_by_their_answer(text, refused):
    assert bool(_REFUSED.match(text)) == refused


@needs_engine
def test_a_java_process_that_dies_is_replaced_and_ends_with_its_worker():
    """The pool replays the game in another Java process, and every answer is the same."""
    actions = ("look around", "teleport to outside", "focus on dove")
    with EnvPool(partial(ScienceWorldEnv, 30), 1, 1, retries=1) as pool:
        pool.reset({0: ANIMAL})
        for action in actions[:2]:
            pool.step({0: action})
        worker = pool.pids()[0]
        (java,) = _children_of(worker)
        arguments = _file(java, "cmdline").split("\0")
        assert {"-Xmx512m", "-XX:+UseSerialGC"} <= set(arguments)
        os.kill(java, signal.SIGKILL)
        assert pool.step({0: actions[2]})[0].accepted
        (fault,) = pool.faults(0)
        assert "easy/find-animal/0003, step 3: ScienceWorld failed on 'focus on dove'" in fault
        worker = pool.pids()[0]
        (java,) = _children_of(worker)
        os.kill(worker, signal.SIGKILL)
        assert ended({worker, java})


def _children_of(pid):
    found = set()
    for folder in os.listdir("/proc"):
        if folder.isdigit() and _file(int(folder), "stat").rpartition(")")[2].split()[1:2] == [
            str(pid)
        ]:
            found.add(int(folder))
    return found


def _file(pid, name):
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


@needs_engine
def test_what_is_missing_is_said_in_one_line(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        with pytest.raises(UsageError, match=r"needs Java.*apt-get install default-jre-headless"):
            ScienceWorldEnv()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "py4j.java_gateway", None)
        with pytest.raises(UsageError, match=r'not installed .*pip install "scienceworld==1.2.3"'):
            ScienceWorldEnv()
    monkeypatch.setattr("cotjax.envs.scienceworld.engine._VERSION", "1.2.4")
    with pytest.raises(UsageError, match=r"scienceworld 1\.2\.3 is installed, but .* of 1\.2\.4"):
        ScienceWorldEnv()


@needs_engine
def test_a_file_of_the_packages_name_is_not_taken_for_it(monkeypatch):
    """Such as configs/scienceworld.py, for a command that is started in its folder."""
    monkeypatch.delitem(sys.modules, "scienceworld", raising=False)
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "configs")
    assert Path(installed_jar()).name == "scienceworld.jar" and Path(installed_jar()).exists()


# ---- the expert


@needs_engine
def test_gold_paths_are_collected_and_replayed(env, tmp_path, caplog):
    env.reset(ANIMAL)
    before = children()
    out = tmp_path / "expert.jsonl"
    summary = collect(WORLD, [ANIMAL, LONGEST], out, Collecting("expert", 0, max_steps=200))
    assert (summary.played, summary.won, summary.kept) == (2, 2, 2), summary.lines()
    for line, game in zip(out.read_text().splitlines(), (ANIMAL, LONGEST), strict=True):
        episode = json.loads(line)
        steps = episode["steps"]
        assert episode["success"] and episode["reward"] == 1.0 and episode["game"] == game.id
        assert all(step["thought"].endswith(f"so next i {step['action']}.") for step in steps)
        actions = [step["action"] for step in steps]
        observations = [step["observation"] for step in steps]
        assert replay(env, game, actions, observations).won
        observations[-1] = observations[-1].replace("e", "E")
        where = f"step {len(steps) - 1}" if len(steps) > 1 else "reset"
        with pytest.raises(EnvError, match=f"{game.id}, {where}: the replay differs at character"):
            replay(env, game, actions, observations)
    assert children() == before, "the collection's own Java processes have ended"
    gc.collect()
    assert not caplog.records


@needs_engine
def test_the_expert_recovers_from_mistakes(env):
    """A mistake looks at what is not there; the path then goes on, and reaches the goal."""
    mistakes = refused = 0
    for seed, game in enumerate((ANIMAL, LONGEST, GAMES["train", "easy/find-plant/0003"])):
        agent = WORLD.agent("expert", seed, AgentSettings(mistakes=0.4, game=game))
        task, seen = env.reset(game)
        agent.start(task, seen)
        while not seen.done:
            decision = agent.act(seen)
            assert (decision.thought is None) == decision.mistake
            seen = env.step(decision.action)
            mistakes += decision.mistake
            refused += decision.mistake and not seen.accepted
        assert seen.won, game.id
    assert mistakes > 2 and refused > 0


def test_a_mistake_leaves_an_open_choice_and_what_was_seen_alone():
    path = ["go to kitchen", "0", "wait1"]
    expert = Expert(path, seed=0, mistakes=0.9)
    expert.start("Your task is to wait.", _seen("You see a shovel and a lighter."))
    decisions = [expert.act(_seen("You see a shovel and a lighter.")) for _ in range(8)]
    slips = [decision.action for decision in decisions if decision.mistake]
    assert len(slips) > 3 and all(action.startswith("look at ") for action in slips)
    assert not {"look at shovel", "look at lighter"} & set(slips)
    expert = Expert(path, seed=0, mistakes=0.9)
    expert.start("Your task is to wait.", _seen("x"))
    choices = _seen("Ambiguous request: 0: a, 1: b")
    assert [expert.act(choices).action for _ in path] == path
    assert Expert(path).__dict__ == Expert(path, seed=0, mistakes=0.0).__dict__


def test_a_thought_claims_only_what_was_observed():
    path = ["open door to kitchen", "go to kitchen", "pick up lighter", "pick up axe", "wait1"]
    expert = Expert(path)
    expert.start("Your task is to boil water with a lighter.", _seen("This room is called x."))
    texts = [
        "This room is called the hall. In it, you see: \n\tan axe",
        "The door is already open.",
        "You move to the kitchen.",
        "You move the lighter to the inventory.",
        "the thermometer measures a temperature of -3 degrees celsius",
    ]
    thoughts = []
    for text, action in zip(texts, path, strict=True):
        decision = expert.act(_seen(text))
        assert decision.action == action
        thoughts.append(decision.thought)
    assert thoughts == [
        "i make sure that the door to the kitchen is open before i go through it, "
        "so next i open door to kitchen.",
        "that had no effect. i have not been in the kitchen yet, so next i go to kitchen.",
        "the task names the lighter, and i can only use elsewhere what i carry, "
        "so next i pick up lighter.",
        "i saw the axe, and i can only use elsewhere what i carry, so next i pick up axe.",
        "it measures -3 degrees. what i set going needs time, so next i wait1.",
    ]
    with pytest.raises(EnvError, match="gold path of 5 actions ended without the goal"):
        expert.act(_seen("x"))


def _seen(text):
    return Observation(text, None, False, False, accepted=not _REFUSED.match(text))


# Task -> variations that are played. Short tasks are played more often; a game of genetics takes
# half a minute, so none is.
_SAMPLED = {
    **dict.fromkeys(VARIATIONS, 1),
    **{task: 0 for task in VARIATIONS if task.startswith("mendelian-genetics")},
    **{task: 3 for task in VARIATIONS if task.startswith(("identify-life", "chemistry"))},
    **{task: 4 for task in VARIATIONS if task.startswith(("find", "lifespan"))},
    "power-component": 2,
}


@needs_engine
@pytest.mark.slow
def test_gold_paths_reach_the_goal_with_a_reason_for_every_action(env):
    rng, games = random.Random(0), sorted(GAMES.values(), key=lambda game: game.id)
    chosen = [
        game
        for task, count in _SAMPLED.items()
        for game in rng.sample([game for game in games if game.task_type == task], count)
    ]
    lost = []
    for game in chosen:
        agent = WORLD.agent("expert", 0, AgentSettings(game=game))
        task, seen = env.reset(game)
        agent.start(task, seen)
        while not seen.done:
            decision = agent.act(seen)
            assert "further step" not in decision.thought, (game.id, decision.action)
            seen = env.step(decision.action)
        if not seen.won:
            lost.append(game.id)
    assert len(chosen) == 60 and not lost
