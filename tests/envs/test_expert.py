"""The scripted household agents: what they read, what they do, and what their thoughts claim."""

import itertools
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from cotjax.envs.alfworld.catalog import load_catalog
from cotjax.envs.alfworld.env import AlfworldEnv
from cotjax.envs.alfworld.maker.make import make_games
from cotjax.envs.alfworld.older import is_older, older_grammar
from cotjax.envs.alfworld.scripted.expert import SEARCH_ORDER, Expert
from cotjax.envs.alfworld.scripted.explorer import Explorer
from cotjax.envs.alfworld.scripted.memory import Event, Goal, Memory, parse_observation, parse_task
from cotjax.envs.alfworld.scripted.phrases import VOCABULARY
from cotjax.envs.alfworld.scripted.thoughts import MOST_WORDS
from cotjax.envs.alfworld.tasks import OOD_GRAMMAR, TASK_TYPES
from cotjax.envs.base import Game, Observation
from cotjax.errors import EnvError, UsageError

ROOM = (
    "You are in the middle of a room. Looking quickly around you, you see a bed 1, a desk 1, "
    "a drawer 2, a drawer 1, and a safe 1."
)
WORDS_OF = {
    "go": "go|walk",
    "open": "open",
    "close": "close",
    "take": "take|pick up",
    "move": "move|put",
    "heat": "heat|warm",
    "cool": "cool|chill",
    "clean": "clean|wash",
    "use": "use|turn on",
    "examine": "examine|look closely",
    "look": "look around",
    "inventory": "check what i hold|look at my hand",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[AlfworldEnv, list[Game]]:
    """An environment, and one made game of each task type in each of two splits."""
    counts = {split: dict.fromkeys(TASK_TYPES, 1) for split in ("train", "valid_unseen")}
    games = make_games(tmp_path_factory.mktemp("games"), counts, seed=3)
    return AlfworldEnv(max_steps=30, cache_dir=str(tmp_path_factory.mktemp("cache"))), games


def play(
    env: AlfworldEnv, game: Game, agent: Expert
) -> tuple[str, list[tuple[Observation, str, str]], bool]:
    task, observation = env.reset(game)
    agent.start(task, observation)
    turns = []
    while not observation.done:
        decision = agent.act(observation)
        assert (decision.action in observation.admissible_commands) != decision.no_op, (
            task,
            len(turns),
            decision,
        )
        turns.append((observation, decision.thought, decision.action))
        observation = env.step(decision.action)
    return task, turns, observation.won


@pytest.fixture(scope="module")
def episodes(world) -> list[tuple[str, list[tuple[Observation, str, str]]]]:
    """Episodes of every kind of agent, from expert to purely random."""
    env, games = world
    agents = [Expert(0), Expert(1, noise=0.3), Explorer(2, 0.4), Explorer(3, 0.0)]
    return [play(env, game, agent)[:2] for game in games for agent in agents]


@pytest.mark.parametrize(
    ("task", "goal"),
    [
        ("put a book in desk", Goal("book", "desk")),
        ("put some saltshaker on cabinet", Goal("saltshaker", "cabinet")),
        ("put a clean plate in fridge", Goal("plate", "fridge", treatment="clean")),
        ("clean some apple and put it in microwave", Goal("apple", "microwave", treatment="clean")),
        ("put a hot egg in fridge", Goal("egg", "fridge", treatment="heat")),
        ("heat some cup and put it in cabinet", Goal("cup", "cabinet", treatment="heat")),
        ("put a cool pan in stoveburner", Goal("pan", "stoveburner", treatment="cool")),
        ("cool some wine and put it in shelf.", Goal("wine", "shelf", treatment="cool")),
        ("put two pen in drawer", Goal("pen", "drawer", count=2)),
        ("find two pen and put them in drawer", Goal("pen", "drawer", count=2)),
        ("look at alarmclock under the desklamp", Goal("alarmclock", lamp="desklamp")),
        ("examine the book with the desklamp", Goal("book", lamp="desklamp")),
    ],
)
def test_a_task_of_every_wording_is_read(task, goal):
    assert parse_task(task) == goal


def test_another_wording_is_an_error_that_quotes_it():
    with pytest.raises(EnvError, match="'boil the kettle'"):
        parse_task("boil the kettle")


@pytest.mark.parametrize(
    ("text", "event"),
    [
        (ROOM, Event("start", contents=("bed 1", "desk 1", "drawer 2", "drawer 1", "safe 1"))),
        (
            "You are in the middle of a room. Looking quickly around you, you see nothing.",
            Event("facing"),
        ),
        (
            "You are facing the drawer 8, and drawer 7. Next to it, you see nothing.",
            Event("facing", contents=("drawer 8", "drawer 7")),
        ),
        (
            "You arrive at bed 1. On the bed 1, you see a book 2, and an apple 1.",
            Event("seen", "bed 1", contents=("book 2", "apple 1")),
        ),
        ("You arrive at bed 1. On the bed 1, you see nothing.", Event("seen", "bed 1")),
        ("You arrive at safe 1. The safe 1 is closed.", Event("closed", "safe 1")),
        (
            "You arrive at safe 1. The safe 1 is open. In it, you see a cd 1.",
            Event("seen", "safe 1", contents=("cd 1",)),
        ),
        (
            "You open the safe 1. The safe 1 is open. In it, you see nothing.",
            Event("seen", "safe 1"),
        ),
        ("On the bed 1, you see a book 2.", Event("seen", "bed 1", contents=("book 2",))),
        ("The safe 1 is closed.", Event("closed", "safe 1")),
        ("You close the safe 1.", Event("shut", "safe 1")),
        ("You pick up the cd 1 from the safe 1.", Event("take", "safe 1", "cd 1")),
        ("You move the cd 1 to the safe 1.", Event("move", "safe 1", "cd 1")),
        ("You put the cd 1 in/on the safe 1.", Event("move", "safe 1", "cd 1")),
        ("You heat the egg 1 using the microwave 1.", Event("heat", "microwave 1", "egg 1")),
        ("You cool the egg 1 using the fridge 1.", Event("cool", "fridge 1", "egg 1")),
        ("You clean the egg 1 using the sinkbasin 1.", Event("clean", "sinkbasin 1", "egg 1")),
        ("You turn on the desklamp 1.", Event("use", thing="desklamp 1")),
        ("You are carrying: a cd 1.", Event("inventory", contents=("cd 1",))),
        ("You are not carrying anything.", Event("inventory")),
        ("This is a hot and clean egg 1.", Event("examine", thing="egg 1")),
        ("This is a normal mug 1. In it, you see nothing.", Event("examine", thing="mug 1")),
        ("There's nothing special about cd 1.", Event("examine", thing="cd 1")),
        ("Nothing happens.", Event("nothing")),
        ("A bird sings.", Event("other")),
    ],
)
def test_an_observation_of_every_kind_is_read(text, event):
    assert parse_observation(text) == event


def test_memory_follows_things_wherever_they_are_moved():
    memory = Memory()
    for text in (
        ROOM,
        "You arrive at desk 1. On the desk 1, you see a cd 2, and a cd 1.",
        "You pick up the cd 1 from the desk 1.",
        "You arrive at safe 1. The safe 1 is closed.",
    ):
        memory.observe(text)
    assert (memory.holding, memory.spot, memory.closed) == ("cd 1", {"safe 1"}, {"safe 1"})
    assert memory.where("cd") == [("cd 2", "desk 1")]
    memory.observe("You open the safe 1. The safe 1 is open. In it, you see nothing.")
    memory.observe("You move the cd 1 to the safe 1.")
    memory.observe("You close the safe 1.")
    assert memory.holding is None
    assert memory.where("cd") == [("cd 2", "desk 1"), ("cd 1", "safe 1")]
    assert memory.checked == ["desk 1", "safe 1"] and memory.closed == {"safe 1"}


def test_heating_undoes_cooling_and_leaves_cleaning():
    memory = Memory()
    for verb, place in (("clean", "sinkbasin 1"), ("cool", "fridge 1"), ("heat", "microwave 1")):
        memory.observe(f"You {verb} the egg 1 using the {place}.")
    assert [
        memory.is_treated("egg 1", treatment) for treatment in ("clean", "cool", "heat", None)
    ] == [True, False, True, True]


def test_the_expert_wins_every_game_by_admissible_actions_and_looks_into_nothing_twice(world):
    env, games = world
    for game in games:
        _, turns, won = play(env, game, Expert(0))
        assert won, game.id
        assert all(action in observation.admissible_commands for observation, _, action in turns), (
            game.id
        )
        opened = [action for _, _, action in turns if action.startswith(("open", "examine"))]
        assert len(opened) == len(set(opened)), game.id


def test_the_search_goes_class_by_class_in_one_order_and_down_from_the_highest_number():
    receptacles = {name.lower() for name in load_catalog().fits}
    assert receptacles - set(SEARCH_ORDER) <= {"toaster"}  # it can hold nothing
    expert, goes = Expert(0), []
    observation = Observation(
        ROOM,
        ("go to bed 1", "go to desk 1", "go to drawer 1", "go to drawer 2", "go to safe 1"),
        False,
        False,
    )
    expert.start("put a cd in safe", observation)
    for _ in range(3):
        action = expert.act(observation).action
        goes.append(action)
        place = action.removeprefix("go to ")
        observation = Observation(
            f"You arrive at {place}. On the {place}, you see nothing.",
            observation.admissible_commands,
            False,
            False,
        )
    # A bed can't hold a cd, and the safe is where the cd has to go.
    assert goes == ["go to desk 1", "go to drawer 2", "go to drawer 1"]


def test_a_place_at_the_same_standing_point_is_examined():
    expert = Expert(0)
    expert.start("put a cd in safe", Observation(ROOM, (), False, False))
    arrived = Observation(
        "You arrive at desk 1. On the desk 1, you see nothing.",
        ("examine drawer 2", "go to drawer 1"),
        False,
        False,
    )
    assert expert.act(arrived).action == "examine drawer 2"
    assert (
        expert.act(
            Observation(
                "The drawer 2 is closed.", ("open drawer 2", "go to drawer 1"), False, False
            )
        ).action
        == "open drawer 2"
    )


def test_the_same_seed_gives_the_same_episode_and_another_only_other_words(world):
    env, games = world
    (_, first, _), (_, again, _), (_, other, _) = (
        play(env, games[0], Expert(seed)) for seed in (5, 5, 6)
    )
    assert first == again
    assert [turn[2] for turn in first] == [turn[2] for turn in other]
    assert [turn[1] for turn in first] != [turn[1] for turn in other]


def test_skill_one_is_the_expert_and_skill_zero_is_not(world):
    env, games = world
    expert, able, poor = (
        play(env, games[0], agent) for agent in (Expert(7), Explorer(7, 1.0), Explorer(7, 0.0))
    )
    assert able == expert and poor[1] != expert[1]
    with pytest.raises(UsageError, match=r"1\.5"):
        Explorer(0, 1.5)


def test_an_expert_that_slips_goes_on_and_wins_and_its_slips_have_no_thought(world):
    env, games = world
    slips, vain, told = 0, 0, 0
    for game in games:
        _, turns, won = play(env, game, Expert(4, mistakes=0.3))
        assert won, game.id
        for (_, thought, _), (after, next_thought, _) in itertools.pairwise(turns):
            slips += thought is None
            if after.text == "Nothing happens.":
                assert thought is None, "a step that was decided on works"
                vain += 1
                told += next_thought is not None and bool(
                    re.search(r"that did nothing|nothing came of that", next_thought)
                )
    assert slips > 5 and slips * 0.4 < vain < slips and told > 0


def test_without_slips_the_expert_decides_every_step(world):
    env, games = world
    assert all(thought for _, thought, _ in play(env, games[0], Expert(4))[1])
    assert play(env, games[0], Expert(4, mistakes=0.0)) == play(env, games[0], Expert(4))


def test_nothing_happens_after_a_step_in_vain_and_only_then_and_the_next_thought_may_say_so(
    episodes,
):
    """`play` has checked that every other action is admissible, however the things were moved."""
    told = vain = 0
    for _, turns in episodes:
        for (before, _, action), (after, thought, _) in itertools.pairwise(turns):
            in_vain = action not in before.admissible_commands
            assert in_vain == (after.text == "Nothing happens.")
            says_so = bool(re.search(r"that did nothing|nothing came of that", thought))
            assert in_vain or not says_so
            told, vain = told + says_so, vain + in_vain
    assert vain > 10 and told > vain / 2


def test_a_thought_names_only_what_has_been_observed(episodes):
    for _, turns in episodes:
        seen: set[str] = set()
        places = set(re.findall(r"[a-z]+ \d+", turns[0][0].text))
        classes = {place.split()[0] for place in places}
        for observation, thought, action in turns:
            seen.update(re.findall(r"[a-z]+ \d+", observation.text))
            named = set(re.findall(r"[a-z]+ \d+", f"{thought} {action}"))
            assert named <= seen
            assert {name for name in named if name.split()[0] in classes} <= places


def test_what_a_thought_says_of_a_place_or_the_hand_is_true(episodes):
    """Checked against the texts themselves, by another reading than the agents'."""
    absent = present = 0
    for _, turns in episodes:
        things_at: dict[str, str] = {}
        held = None
        for observation, thought, _ in turns:
            text = observation.text
            if match := re.search(
                r"(?:On the|The) (\w+ \d+)(?: is open\. In it)?, you see (.*)\.$", text
            ):
                things_at[match[1]] = match[2]
            if match := re.match(r"You pick up the (\w+ \d+) from the (\w+ \d+)", text):
                held = match[1]
                things_at[match[2]] = re.sub(rf"\b{match[1]}\b", "", things_at.get(match[2], ""))
            if match := re.match(r"You move the (\w+ \d+) to the (\w+ \d+)", text):
                held = None
                things_at[match[2]] = things_at.get(match[2], "") + f", a {match[1]}"
            says_empty = bool(re.search(r"\b(hold nothing|hand is empty|have nothing)\b", thought))
            at_random = re.search(
                r"not sure what helps|just try|no good plan|see what happens|"
                r"i wonder|i want to see",
                thought,
            )
            assert says_empty == (held is None) or (at_random and not says_empty), (text, thought)
            for kind, *places in re.findall(
                r"([a-z]+) (?:is not|not seen|none) at (\w+ \d+)(?:(?:, not at| and) (\w+ \d+))?",
                thought,
            ):
                for place in filter(None, places):
                    assert not re.search(rf"\b{kind} \d", things_at[place]), (text, thought)
                absent += 1
            for thing, place in re.findall(
                r"\b(\w+ \d+) (?:is |seen |here )?at (\w+ \d+)", thought
            ):
                assert re.search(rf"\b{thing}\b", things_at[place]), (text, thought)
                present += 1
            if match := re.search(r"(\w+ \d+) is closed", thought):
                assert f"{match[1]} is closed" in text
    assert min(absent, present) > 20


@cache
def names_of_the_game() -> frozenset[str]:
    catalog = load_catalog()
    return frozenset(
        kind.lower() for kind in catalog.kinds | catalog.fits.keys() | catalog.portable
    )


def test_thoughts_are_short_and_of_a_closed_vocabulary(episodes):
    assert len(VOCABULARY) < 200
    for _, turns in episodes:
        for _, thought, _ in turns:
            assert re.fullmatch(r"[a-z0-9]+([,.]? [a-z0-9]+)*\.", thought), thought
            assert 10 <= len(thought.split()) <= MOST_WORDS, thought
            words = set(re.findall(r"[a-z]+", thought))
            assert words <= VOCABULARY | names_of_the_game(), (
                words - VOCABULARY - names_of_the_game()
            )


def test_the_last_clause_of_a_thought_is_its_action(episodes):
    for _, turns in episodes:
        for _, thought, action in turns:
            clause = re.split(r", so |\. ", thought.removesuffix("."))[-1]
            verb = action.split()[0]
            assert re.search(rf"\bi (?:{WORDS_OF[verb]})\b", clause), (thought, action)
            assert re.findall(r"[a-z]+ \d+", clause) == re.findall(
                r"[a-z]+ \d+", action.removeprefix("go to ")
            )


def test_the_thought_of_a_step_at_random_says_so(world):
    env, games = world
    for game in games[:3]:
        for _, thought, _ in play(env, game, Explorer(11, 0.0))[1]:
            assert re.search(r"wonder|not sure|just try|no good plan|want to see", thought), thought


def test_the_expert_wins_made_games_of_the_older_grammar_by_its_commands(world, tmp_path):
    env, _ = world
    types = dict.fromkeys(TASK_TYPES[:4], 2)
    games = make_games(tmp_path, {OOD_GRAMMAR: types, "train": {TASK_TYPES[0]: 1}}, seed=5)
    *older, present = sorted(games, key=lambda game: game.split == "train")
    assert not is_older(Path(present.path).read_bytes())
    put = 0
    for game in older:
        assert is_older(Path(game.path).read_bytes())
        walkthrough = json.loads(Path(game.path).read_text())["walkthrough"]
        assert not any(command.startswith("move ") for command in walkthrough)
        task, observation = env.reset(game)
        agent = Expert(0)
        agent.start(task, observation)
        while not observation.done:
            decision = agent.act(observation)
            assert decision.action in observation.admissible_commands
            offered = [c for c in observation.admissible_commands if re.match("put|move", c)]
            assert all(re.fullmatch(r"put \w+ \d+ in/on \w+ \d+", each) for each in offered)
            observation = env.step(decision.action)
            if decision.action.startswith("put "):
                put += 1
                thing, place = re.findall(r"\w+ \d+", decision.action)
                assert observation.text == f"You put the {thing} in/on the {place}."
                assert parse_observation(observation.text) == Event("move", place, thing)
        assert observation.won, game.id
    assert put == 6  # all but the two games about light


def in_older_grammar(game: Game, folder: Path) -> Game:
    """Return the game in the grammar of ALFWorld's first releases, with `put X in/on Y`."""
    content = json.loads(Path(game.path).read_text())
    content["grammar"] = older_grammar(content["grammar"])
    path = folder / game.id / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    return replace(game, path=str(path))


def test_the_expert_plays_the_older_grammar_as_the_present_one(world, tmp_path):
    """The episodes are equal, with `put X in/on Y` for `move X to Y`; the random agent's too."""
    env, games = world
    put = 0
    for game in games[:6]:
        older = in_older_grammar(game, tmp_path)
        for agent in (Expert(0), Explorer(4, 0.5)):
            (_, present, won), (_, turns, older_won) = (
                play(env, game, agent),
                play(env, older, agent),
            )
            actions = [action for _, _, action in turns]
            if isinstance(agent, Explorer):
                put += sum(action.startswith("put ") for action in actions)
                continue
            assert won and older_won
            assert [thought for _, thought, _ in turns] == [thought for _, thought, _ in present]
            assert [re.sub(r"^put (.*) in/on ", r"move \1 to ", action) for action in actions] == [
                action for _, _, action in present
            ]
            assert not any(action.startswith("move ") for action in actions)
            put += sum(action.startswith("put ") for action in actions)
    assert put > 6
