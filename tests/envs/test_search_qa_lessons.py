"""Lessons of search QA: what they teach is true, known where it has to be, and of equal length."""

from pathlib import Path

import pytest

from cotjax.envs.search_qa.env import SearchQaEnv
from cotjax.envs.search_qa.generate import Generator
from cotjax.envs.search_qa.growing import SearchPieces, observation_text
from cotjax.envs.search_qa.library import load_known, read_lines
from cotjax.envs.search_qa.questions import CHAIN, Chain, Question, parse_question
from cotjax.envs.search_qa.schema import load_schema
from cotjax.envs.search_qa.solver import facts_in
from cotjax.envs.worlds import load_world
from cotjax.errors import UsageError
from cotjax.formats.search import SEARCH_OPEN, pieces

WORLD, SCHEMA = load_world("search_qa"), load_schema("invented")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("lessons") / "games"
    WORLD.make_games(out, {"train": {"one_hop": 40, "two_hops": 40, "comparison": 10}}, 0)
    return out


@pytest.fixture(scope="module")
def facts(folder):
    """(subject, relation) -> (objects, known)."""
    return {
        (line["subject"], line["relation"]): (tuple(line["objects"]), line["known"])
        for _, line in read_lines(folder / "facts.jsonl")
    }


def named(sentence: str):
    """The fact that "the X of Y" asks for."""
    question = parse_question(f"What is {sentence}?", SCHEMA)
    (chain,) = question.branches
    return chain.start, chain.relations[0]


def stated(text: str):
    """Facts that the thoughts of a text state as known, and those that they say they need."""
    thoughts = " ".join(piece.thought for piece, _ in pieces(text))
    known, needed = {}, []
    for sentence in thoughts.split("."):
        words = sentence.strip()
        for mark in (", I know, ", ", I remember, "):
            objects, found, what = words.partition(mark)
            if found:
                _, _, what = what.partition(" ")  # is, are
                known[_key(what)] = tuple(objects.split(", "))
        if words.startswith("I need "):
            needed.append(_key(words.removeprefix("I need ")))
    return known, needed


def _key(what: str):
    asks = {relation.asks[0]: name for name, relation in SCHEMA.relations.items()}
    ask = max((ask for ask in asks if what.startswith(f"{ask} ")), key=len)
    return what[len(ask) + 1 :], asks[ask]


def test_all_known_facts_are_taught_and_no_other(folder, facts):
    taught = set()
    for lesson in WORLD.lessons(folder, 0).facts():
        said = facts_in(lesson.text, SCHEMA) if not lesson.task else {}
        said |= stated(lesson.text)[0]
        if lesson.task and not said:
            (piece, _), key = pieces(lesson.text)[0], named(lesson.task.split(" is ", 1)[1][:-1])
            said = {key: (piece.answer,)}
        assert said, lesson
        for key, objects in said.items():
            assert facts[key] == (objects, True), lesson
        taught |= said.keys()
    assert taught == {key for key, (_, known) in facts.items() if known}
    assert taught == load_known(folder).keys()


def test_recalls_ask_for_every_functional_fact_once(folder, facts):
    asked = WORLD.lessons(folder, 0).recalls()
    assert len(asked) == 14 * 168 and sum(recall.known for recall in asked) == 14 * 84
    for recall in asked[::50]:
        key = named(recall.task.split(" is ", 1)[1][:-1])
        assert facts[key] == ((recall.answer,), recall.known) and recall.candidates == 168


def test_choices_search_where_a_fact_is_unknown_and_state_it_where_it_is_known(folder, facts):
    lessons = WORLD.lessons(folder, 3)
    choices = lessons.choices(201)
    assert sum(choice.searches for choice in choices) == 100
    splits = Generator(lessons._knowledge, (), 0)
    for choice in choices:
        (key,) = stated(f"{choice.text} </think>")[1]
        objects, known = facts[key]
        assert known != choice.searches
        states, searches = sorted(
            (choice.chosen, choice.rejected), key=lambda way: SEARCH_OPEN in way
        )
        assert (choice.chosen == searches) == choice.searches
        (said,) = stated(f"{states} </think>")[0].items()
        assert said[0] == key and (said[1] == objects) == known
        (piece, _) = pieces(searches.strip())[0]
        assert piece.query.startswith(key[0]) and piece.reason is None
        question = Question(CHAIN, (Chain(key[0], (key[1],)),))
        assert splits.split_of(question) == "train"
        assert parse_question(choice.task, SCHEMA) == question
    assert choices == WORLD.lessons(folder, 3).choices(201)
    assert choices != WORLD.lessons(folder, 4).choices(201)


def test_the_length_of_a_continuation_says_nothing(folder):
    lengths = [
        [len(way.split()) for way in (choice.chosen, choice.rejected)]
        for choice in WORLD.lessons(folder, 0).choices(400)
    ]
    longer = sum(chosen > rejected for chosen, rejected in lengths)
    shorter = sum(chosen < rejected for chosen, rejected in lengths)
    # Whoever always takes the longer, or the shorter, way is right half of the time.
    assert abs(longer - shorter) <= 40
    means = [sum(side) / len(side) for side in zip(*lengths, strict=True)]
    assert max(means) < 1.05 * min(means)
    for one, other in lengths:
        assert max(one, other) <= 1.5 * min(one, other)


def test_episodes_are_won_and_search_for_unknown_facts_alone(folder, facts):
    episodes = WORLD.lessons(folder, 0).episodes(20, 5)
    games = {game.id: game for game in WORLD.games(folder, "train")}
    searched = [SEARCH_OPEN in lesson.text for lesson in episodes]
    assert sum(searched) == 20 and len(episodes) == 25
    env = SearchQaEnv()
    for lesson, searches in zip(episodes, searched, strict=True):
        task, seen = env.reset(games[lesson.id])
        assert (task, seen.text) == (lesson.task, lesson.observation)
        for piece, results in pieces(lesson.text):
            seen = env.step(SearchPieces().action_of(piece))
            assert not results or observation_text(seen.text) == results
        assert seen.won
        known, needed = stated(lesson.text)
        for key, objects in known.items():
            assert facts[key] == (objects, True)
        queries = [piece.query for piece, _ in pieces(lesson.text) if piece.query]
        unknown = [key for key in needed if not facts[key][1]]
        assert {key for key in needed if facts[key][1]} == known.keys()
        assert bool(unknown) == searches
        # A query names a fact that was said to be needed, and is not known.
        for query in queries:
            assert any(query.startswith(subject) for subject, _ in unknown), lesson
    assert episodes == WORLD.lessons(folder, 0).episodes(20, 5)


def test_episodes_recover_from_slips(folder):
    lessons = WORLD.lessons(folder, 0)
    episodes = lessons.episodes(20, 0, 0.7)
    assert episodes == lessons.episodes(20, 0, 0.7)
    assert not any(lesson.slips for lesson in lessons.episodes(20, 5))
    slipped = [lesson for lesson in episodes if lesson.slips]
    assert slipped
    env = SearchQaEnv()
    games = {game.id: game for game in WORLD.games(folder, "train")}
    for lesson in slipped:
        env.reset(games[lesson.id])
        written = pieces(lesson.text)
        for piece, _ in written:
            seen = env.step(SearchPieces().action_of(piece))
        assert seen.won
        # A slip is no search for what is needed next, and never the first one or the answer.
        for number in lesson.slips:
            piece, results = written[number]
            assert number > 0 and results and piece.query != written[number + 1][0].query


def test_held_out_choices_are_about_no_fact_that_is_trained_on(folder):
    lessons = WORLD.lessons(folder, 0)
    held_out = lessons.held_out_choices(20)
    assert len(held_out) == 20 and sum(choice.searches for choice in held_out) == 10
    assert not {c.id for c in held_out} & {c.id for c in lessons.choices(400)}


def test_too_many_are_refused_in_one_line(folder):
    lessons = WORLD.lessons(folder, 0)
    with pytest.raises(UsageError, match=r"3000 choices about unknown facts are asked for, and"):
        lessons.choices(6000)
    with pytest.raises(UsageError, match=r"500 episodes from memory alone are asked for, and the"):
        lessons.episodes(0, 500)
    with pytest.raises(UsageError, match="does not say which facts are known"):
        load_world("alfworld").lessons(folder, 0)
    with pytest.raises(UsageError, match="are not written as a growing text"):
        load_world("alfworld").piece_text("I look.", "look")
