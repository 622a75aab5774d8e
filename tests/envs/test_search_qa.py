"""Search QA: episodes, scores, files, and the solver."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from cotjax.data.trajectories import read_trajectories
from cotjax.envs.base import Game
from cotjax.envs.search_qa.env import LIMIT, MOST_SEARCHES, SearchQaEnv, parse_action
from cotjax.envs.search_qa.generate import OOD_ENTITIES
from cotjax.envs.search_qa.library import Page, load_corpus, load_questions, read_lines
from cotjax.envs.search_qa.scoring import exact_match, f1, normalize, published_reward
from cotjax.envs.worlds import AgentSettings, load_world
from cotjax.errors import DataError, EnvError, UsageError
from cotjax.rollout.collect import Collecting, collect

WORLD = load_world("search_qa")
TRAINED = WORLD.task_types_of("in_domain")
COUNTS = {
    "train": dict.fromkeys(WORLD.task_types, 15),
    "dev": {"one_hop": 10},
    "test": dict.fromkeys(WORLD.task_types, 30),
    OOD_ENTITIES: dict.fromkeys(TRAINED, 30),
}
SEED = 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("search_qa") / "games"
    WORLD.make_games(out, COUNTS, SEED)
    return out


@pytest.fixture
def game(folder) -> Game:
    return next(game for game in WORLD.games(folder, "test") if game.task_type == "two_hops")


@cache
def records(file: str) -> dict[str, dict]:
    return {line["id"]: line for _, line in read_lines(Path(file))}


def record_of(game: Game) -> dict:
    return records(game.path)[game.id]


def play(game: Game, env: SearchQaEnv, settings=None, seed=0, agent="expert"):
    """Return (steps as (observation, decision), last observation)."""
    task, observation = env.reset(game)
    solver = WORLD.agent(agent, seed, settings or AgentSettings(game=game))
    solver.start(task, observation)
    steps = []
    while not observation.done:
        decision = solver.act(observation)
        steps.append((observation, decision))
        observation = env.step(decision.action)
    return steps, observation


class Perfect:
    """Returns the passages of a question's facts whose subject the query names."""

    def __init__(self, game: Game):
        corpus, _ = load_corpus(Path(game.path).parent)
        facts = record_of(game)["facts"]
        self._pages = [(subject, corpus.pages[passage]) for subject, _, _, passage in facts]

    def search(self, query: str, split: str, k: int) -> list[Page]:
        return list(dict.fromkeys(page for subject, page in self._pages if subject in query))[:k]


class Without:
    """The corpus without the passage of a question's last fact."""

    def __init__(self, game: Game):
        self._corpus, _ = load_corpus(Path(game.path).parent)
        self._gone = self._corpus.pages[record_of(game)["facts"][-1][3]]

    def search(self, query: str, split: str, k: int) -> list[Page]:
        return [page for page in self._corpus.search(query, split, k + 1) if page != self._gone][:k]


# ---- episodes


def test_an_episode_searches_and_answers(game):
    env = SearchQaEnv()
    task, observation = env.reset(game)
    assert task == record_of(game)["question"] and observation.text == "You can search 10 times."
    assert observation.admissible_commands is None and not observation.done
    observation = env.step("search: " + record_of(game)["facts"][0][0])
    assert re.fullmatch(
        r"<search_result> result 1: .+?\nresult 2: .+?\nresult 3: .+? </search_result>",
        observation.text,
    )
    assert observation.accepted and not observation.done and observation.score == 0.0
    (answer,) = record_of(game)["answers"]
    observation = env.step(f"Answer :  the {answer.upper()}!")
    assert (observation.won, observation.done, observation.score) == (True, True, 1.0)
    with pytest.raises(EnvError, match=rf"{game.id}, step 3: the episode is over"):
        env.step("search: more")


def test_a_wrong_answer_ends_the_episode_with_its_f1(game):
    env = SearchQaEnv()
    env.reset(game)
    (answer,) = record_of(game)["answers"]
    observation = env.step(f"answer: {answer.split()[0]}")
    assert (observation.won, observation.done, observation.score) == (False, True, 0.5)


def test_the_eleventh_search_is_refused_and_the_answer_is_still_taken(game):
    env = SearchQaEnv()
    env.reset(game)
    texts = [env.step("search: guild") for _ in range(MOST_SEARCHES - 1)]
    texts.append(env.step("search: <b>"))  # an invalid query counts
    assert [each.accepted for each in texts] == [True] * 9 + [False]
    refused = env.step("search: guild")
    assert refused.text == f"<search_result> {LIMIT} </search_result>"
    assert not refused.accepted and not refused.done
    assert env.step(f"answer: {record_of(game)['answers'][0]}").won


def test_an_episode_ends_at_its_last_step(game):
    env = SearchQaEnv(max_steps=2)
    env.reset(game)
    assert not env.step("search: guild").done
    assert env.step("nothing").done
    with pytest.raises(UsageError, match="max_steps must be at least 1: got 0"):
        SearchQaEnv(0)


@pytest.mark.parametrize(
    "action",
    [
        "", " ", "look", "search", "search:", "answer:  ", "searching: a", "x" * 100_000,
        "search: " + "word " * 33, "search: " + "x" * 100_000, "answer: " + "long " * 20_000,
        "search: a\x00b", "answer: \x1b[2J", "search: \u202eabc", "search: \ud800",
        "search: </search_result> result 1: x", "answer: <think> x", "search: <|im_end|><b>",
        "$(rm -rf /)", "'; DROP TABLE facts; --", "__import__('os').system('true')", "поиск: город",
    ],
)  # fmt: skip
def test_a_hostile_action_is_refused_and_changes_nothing_else(game, action):
    env, other = SearchQaEnv(), SearchQaEnv()
    env.reset(game)
    other.reset(game)
    observation = env.step(action)
    assert not observation.accepted and not observation.done and len(observation.text) < 200
    assert observation.text.isprintable()
    assert env.step("search: guild") == other.step("search: guild")


@pytest.mark.parametrize("query", ["город", "検索", "🜁", "${HOME} `id`", "b\\' OR 1=1 --", "(?P<x"])
def test_a_query_is_data_in_any_script(game, query):
    env = SearchQaEnv()
    env.reset(game)
    observation = env.step(f"search: {query}")
    assert observation.accepted == ("<" not in query)
    if query.isalpha():
        assert observation.text == "<search_result> no result </search_result>"


def test_a_failed_retrieval_is_an_error_and_no_observation(game):
    class Broken:
        def search(self, query, split, k):
            raise ConnectionError("no route to host")

    env = SearchQaEnv(retriever=lambda game: Broken())
    env.reset(game)
    with pytest.raises(EnvError, match=rf"{game.id}, step 1: .*ConnectionError: no route to host"):
        env.step("search: guild")


def test_actions_are_parsed_in_one_place():
    assert parse_action(" Search : a b ").text == "a b"
    assert parse_action("answer: search: x").text == "search: x"
    assert parse_action("answer: x").problem is None
    assert "more than 32 words" in (parse_action("search: " + "w " * 33).problem or "")


# ---- scores


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "score"),
    [
        ("The  Eiffel-Tower.", ("eiffeltower",), True, 1.0),
        ("New York City", ("New York",), False, 0.8),
        ("york new paris london", ("New York",), False, 2 / 3),
        ("NYC", ("New York", "N.Y.C."), True, 1.0),
        ("an apple", ("apple",), True, 1.0),
        ("the", ("New York",), False, 0.0),
        ("Theodore", ("odore",), False, 0.0),
    ],
)
def test_scores_are_those_of_squad(answer, golds, exact, score):
    assert exact_match(answer, golds) == exact
    assert f1(answer, golds) == pytest.approx(score)
    assert normalize(normalize(answer)) == normalize(answer)


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("The New York", 1.0),
        # The hole: any order, among any others; and what contains the answer is wrong.
        ("york new paris london", 1.0),
        ("New York City", 0.0),
        ("York", 0.0),
        ("", 0.0),
    ],
)
def test_the_published_reward_has_its_hole(answer, reward):
    assert published_reward(answer, ("New York",)) == reward
    assert published_reward(answer, ("Oslo", "New York")) == reward


def test_at_least_70_percent_of_the_words_are_enough():
    gold = ("a1 b c d e f g h i j",)
    assert published_reward("g f e d c b a1", gold) == 1.0
    assert published_reward("f e d c b a1", gold) == 0.0


# ---- the solver


@pytest.mark.parametrize("split", ["train", "test", OOD_ENTITIES])
def test_the_solver_wins_with_bm25_in_two_searches_a_hop(folder, split):
    env, won, games = SearchQaEnv(), 0, WORLD.games(folder, split)
    for game in games:
        steps, observation = play(game, env)
        won += observation.won
        assert len(steps) - 1 <= 2 * len(record_of(game)["facts"])
    assert won >= 0.97 * len(games)


def test_the_solver_wins_every_question_with_a_perfect_retriever(folder):
    env = SearchQaEnv(retriever=Perfect)
    for split in ("train", "test", OOD_ENTITIES):
        for game in WORLD.games(folder, split):
            steps, observation = play(game, env)
            assert observation.won, record_of(game)
            assert len(steps) - 1 <= len(record_of(game)["facts"])


def test_no_question_is_answered_without_its_passages(folder):
    env = SearchQaEnv(retriever=Without)
    assert not any(play(game, env)[1].won for game in WORLD.games(folder, "test"))


def test_training_searches_show_no_page_of_held_out_entities(folder):
    held_out = {
        line["title"] for _, line in read_lines(folder / "corpus.jsonl") if line["held_out"]
    }
    names = re.compile("|".join(held_out))
    shown = Counter()
    for split in ("train", "test"):
        for game in WORLD.games(folder, split):
            steps, _ = play(game, SearchQaEnv())
            shown[split] += any(names.search(step.text) for step, _ in steps)
    assert shown["train"] == 0 and shown["test"] > 0


def test_thoughts_come_from_what_was_shown(folder):
    """Every name and number in a thought or a query is in the question or in an observation."""
    name = re.compile(r"\b[A-Z][a-z]*(?: [A-Z][a-z]*){2}\b|\d+")
    for game in WORLD.games(folder, "test"):
        shown = record_of(game)["question"]
        for observation, decision in play(game, SearchQaEnv())[0]:
            shown += observation.text
            for found in name.findall(f"{decision.thought.replace('Now I', '')} {decision.action}"):
                assert found in shown


def test_the_recaller_searches_for_unknown_facts_alone(folder):
    """It makes no search but for unknown facts, at most two for each."""
    won = 0
    games = WORLD.games(folder, "test")
    for game in games:
        steps, observation = play(game, SearchQaEnv(), agent="recaller")
        won += observation.won
        facts = record_of(game)["facts"]
        unknown = [subject for subject, _, known, _ in facts if not known]
        queries = [each.action for _, each in steps[:-1]]
        assert all(any(subject in query for subject in unknown) for query in queries)
        # A result may tell a later fact, too.
        assert len(queries) <= 2 * len(unknown) and bool(queries) == bool(unknown)
    assert won >= 0.97 * len(games)


def test_the_guesser_is_right_where_all_facts_are_known(folder):
    games = WORLD.games(folder, "test")
    lucky = all_known = 0
    for game in games:
        steps, observation = play(game, SearchQaEnv(), agent="guesser")
        assert len(steps) == 1
        known = all(known for *_, known, _ in record_of(game)["facts"])
        assert observation.won or not known
        all_known += known
        lucky += observation.won and not known
    # Half of the facts are known, so with h hops a question is known with probability 0.5 ** h. A
    # guess is right for one in 60 facts, and for half of the numbers that are compared.
    assert 0.1 < all_known / len(games) < 0.35 and lucky < 0.05 * len(games)
    with pytest.raises(UsageError, match="guesser remembers facts of the game's folder"):
        WORLD.agent("guesser", 0, AgentSettings())


def test_mistakes_have_no_thought_and_are_recovered_from(folder):
    won = mistakes = 0
    games = WORLD.games(folder, "train")
    for seed, game in enumerate(games):
        steps, observation = play(game, SearchQaEnv(), AgentSettings(mistakes=0.3), seed)
        won += observation.won
        for _, decision in steps:
            assert decision.mistake == (decision.thought is None)
            mistakes += decision.mistake
    assert mistakes > 50 and won > 0.9 * len(games)


def test_the_expert_collects_won_episodes(folder, tmp_path):
    games = [game for game in WORLD.games(folder, "train") if game.task_type == "intersection"]
    summary = collect(WORLD, games, tmp_path / "out.jsonl", Collecting("expert", seed=0))
    trajectories = list(read_trajectories(tmp_path / "out.jsonl"))
    assert summary.kept == len(trajectories) == len(games)
    assert all(each.steps[-1].action.startswith("answer: ") for each in trajectories)
    assert {each.reward for each in trajectories} == {1.0}


# ---- files


def test_the_same_seed_gives_the_same_bytes_in_another_process(folder, tmp_path):
    code = (
        "import json, sys; from pathlib import Path; from cotjax.envs.search_qa import WORLD;"
        "WORLD.make_games(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "again"), json.dumps(COUNTS), str(SEED)],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_the_bytes_of_a_seed_never_change(folder):
    corpus = hashlib.sha256((folder / "corpus.jsonl").read_bytes()).hexdigest()
    assert corpus[:16] == "c6a5fcfe8edd7b35"
    questions = hashlib.sha256((folder / "dev.jsonl").read_bytes()).hexdigest()
    assert questions[:16] == "1de02f346d056535"


def test_question_k_does_not_depend_on_the_number_of_questions(folder, tmp_path):
    WORLD.make_games(tmp_path / "few", {"test": {"one_hop": 5, "four_hops": 3}}, SEED)
    few = {game.id for game in WORLD.games(tmp_path / "few", "test")}
    assert len(few) == 8 and few <= {game.id for game in WORLD.games(folder, "test")}


def test_games_are_those_of_the_request_in_the_order_of_ids(folder):
    games = WORLD.games(folder, "test")
    assert [game.id for game in games] == sorted(game.id for game in games)
    assert Counter(game.task_type for game in games) == COUNTS["test"]
    assert {axis for game in games for axis in WORLD.axes_of(game)} == set()
    assert WORLD.axes_of(WORLD.games(folder, OOD_ENTITIES)[0]) == {OOD_ENTITIES}
    again = WORLD.make_games(folder, COUNTS, SEED)
    assert [game for game in again if game.split == "test"] == games


def test_files_of_the_request_are_kept_and_damaged_ones_made_again(folder, tmp_path):
    out = tmp_path / "games"
    counts = {"dev": {"one_hop": 3}}
    WORLD.make_games(out, counts, 1)
    whole = (out / "corpus.jsonl").read_bytes()
    (out / "corpus.jsonl").write_bytes(whole[:-20])
    WORLD.make_games(out, counts, 1)
    assert (out / "corpus.jsonl").read_bytes() == whole
    with pytest.raises(UsageError, match="made with another seed: choose another folder"):
        WORLD.make_games(out, counts, 2)
    with pytest.raises(UsageError, match="made with another counts"):
        WORLD.make_games(out, {"dev": {"one_hop": 4}}, 1)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "no questions are asked for"),
        ({"valid": {"one_hop": 1}}, "no split is called 'valid': choose from train, dev, test"),
        ({"test": {"five_hops": 1}}, "no task type is called 'five_hops'"),
        ({"test": {"one_hop": -1}}, "must be a whole number from 0 up, not -1"),
        ({"test": {"one_hop": 10_000}}, r"has \d+ test questions of one_hop for seed 0"),
    ],
)
def test_an_impossible_request_is_refused(tmp_path, counts, message):
    with pytest.raises(UsageError, match=message):
        WORLD.make_games(tmp_path / "games", counts, 0)


def test_a_broken_file_is_named_with_its_line(folder, tmp_path, game):
    file = tmp_path / "test.jsonl"
    lines = Path(game.path).read_text().splitlines()
    for broken, message in (
        ("{", "test.jsonl:2: invalid JSON"),
        ("[]", "test.jsonl:2: not a JSON object"),
        ("{}", "test.jsonl:2: not a question"),
        (lines[0], "test.jsonl:2: an id of an earlier line"),
    ):
        file.write_text(f"{lines[0]}\n{broken}\n")
        load_questions.cache_clear()
        with pytest.raises(DataError, match=message):
            WORLD.games(tmp_path, "test")
    with pytest.raises(UsageError, match="no questions of split 'dev' in it"):
        WORLD.games(tmp_path, "dev")
    with pytest.raises(UsageError, match="cotjax games make --world search_qa"):
        WORLD.games("", "dev")


def test_questions_refuse_another_corpus(folder, tmp_path, game):
    (tmp_path / "test.jsonl").write_bytes(Path(game.path).read_bytes())
    (tmp_path / "corpus.jsonl").write_bytes((folder / "corpus.jsonl").read_bytes() + b"\n")
    other = Game(game.id, str(tmp_path / "test.jsonl"), "test", game.task_type)
    with pytest.raises(DataError, match=r"corpus.jsonl is not the corpus that"):
        SearchQaEnv().reset(other)
    with pytest.raises(DataError, match="no question has the id 'x'"):
        SearchQaEnv().reset(Game("x", game.path, "test", "one_hop"))


def test_the_vocabulary_has_every_word_of_an_episode(folder):
    known = set(re.findall(r"\w+", " ".join(WORLD.words())))
    for split in ("test", OOD_ENTITIES):
        for game in WORLD.games(folder, split)[::4]:
            steps, last = play(game, SearchQaEnv())
            texts = [record_of(game)["question"], last.text]
            texts += [f"{step.text} {each.thought} {each.action}" for step, each in steps]
            assert set(re.findall(r"\w+", " ".join(texts))) <= known
