"""Policies whose searches are worth what is known beforehand get the figures that they deserve."""

import random
from collections import defaultdict
from pathlib import Path

import pytest
from helpers.growing import ScriptPolicy
from helpers.rollouts import as_record, play_games

from cotjax.data.codec import Codec
from cotjax.data.growing_text import TOKENS
from cotjax.data.word_tokenizer import build_word_tokenizer
from cotjax.diagnostics.searches import FIGURES, figures, grouped, judged, sim_to_real
from cotjax.envs.pool.pool import EnvPool
from cotjax.envs.search_qa.env import SearchQaEnv
from cotjax.envs.search_qa.figures import Perfect
from cotjax.envs.search_qa.growing import piece_text
from cotjax.envs.search_qa.library import read_lines
from cotjax.envs.worlds import AgentSettings, load_world
from cotjax.errors import DataError, UsageError
from cotjax.formats import CHATML, Prompt

WORLD = load_world("search_qa")
END = "<|im_end|>"


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    out = tmp_path_factory.mktemp("searches") / "games"
    return WORLD.make_games(out, {"test": {"one_hop": 24, "two_hops": 16}}, 0)


@pytest.fixture(scope="module")
def asked(games):
    """Return id -> the question's line."""
    return {line["id"]: line for _, line in read_lines(Path(games[0].path))}


@pytest.fixture(scope="module")
def codec(asked):
    texts = [
        *WORLD.words(),
        "I search. } unknown Nobody",
        *(each["question"] for each in asked.values()),
    ]
    prompt = Prompt(task_text=WORLD.task_text, growing=WORLD.growing)
    return Codec(build_word_tokenizer(texts, CHATML, TOKENS), CHATML, prompt)


def _play(codec, games, asked, script, **how):
    """Return the judged episodes of a policy that writes these pieces, by a perfect retriever."""
    questions = {name: line["question"] for name, line in asked.items()}
    policy = ScriptPolicy(codec, script, questions, slots=8, **how)
    with EnvPool(lambda: SearchQaEnv(30, Perfect), 8, 0) as pool:
        played = play_games(
            codec,
            games,
            policy=policy,
            environments=pool,
            kinds=(),
            max_new_tokens=120,
            max_steps=30,
            simulated="results" in how,
        )
    by_id = {(game.split, game.id): game for game in games}
    return judged([as_record(episode) for episode in played], WORLD, by_id)


def _written_by(agent_of, games):
    """Return game -> what a scripted agent writes in it, by a perfect retriever."""
    script = defaultdict(list)
    for game in games:
        env, agent = SearchQaEnv(30, Perfect), agent_of(game)
        task, seen = env.reset(game)
        agent.start(task, seen)
        while not seen.done:
            decision = agent.act(seen)
            seen = env.step(decision.action)
            script[game.id].append(piece_text(decision.thought, decision.action))
        script[game.id][-1] += END
    return script


def _unknown(line):
    return [subject for subject, _, known, _ in line["facts"] if not known]


def _share(values):
    values = list(values)
    return sum(values) / len(values)


def test_one_that_never_searches_is_right_where_all_is_known(codec, games, asked):
    said = {name: "Nobody" if _unknown(x) else x["answers"][0] for name, x in asked.items()}
    script = {name: [piece_text("I answer.", f"answer: {x}") + END] for name, x in said.items()}
    found = figures(_play(codec, games, asked, script))
    assert {*found} == {*FIGURES}
    known = _share(not _unknown(line) for line in asked.values())
    assert 0.2 < known < 0.8
    assert found["exact"].value == pytest.approx(known) == pytest.approx(found["f1"].value)
    assert found["searches"].value == 0 and found["precision"].value is None
    assert found["recall"].value == 0 and found["trigger_f1"].value == 0
    assert found["regret"].value == pytest.approx(1 - known)
    assert found["gold_seen"].value == 0 and found["reading"].value is None
    # Without a search a chain gets as far as its facts are known.
    hops = [[known for _, _, known, _ in line["facts"]] for line in asked.values()]
    reached = sum((*own, False).index(False) for own in hops)
    assert found["reached"].value == pytest.approx(reached / sum(map(len, hops)))
    assert found["guessing"].value == found["exact"].value and found["answered"].value == 1
    assert found["oracle"].value == pytest.approx(_share(len(_unknown(x)) for x in asked.values()))
    assert found["exact"].low < known < found["exact"].high and found["exact"].games == len(games)


def test_one_that_always_searches_has_the_share_of_unknown_facts_as_its_precision(
    codec, games, asked
):
    script = _written_by(lambda game: WORLD.agent("expert", 0, AgentSettings(game=game)), games)
    episodes = _play(codec, games, asked, script)
    found = figures(episodes)
    needed = searches = 0
    for each in episodes:
        unknown = _unknown(asked[each.record.game.id])
        for turn in each.record.steps[:-1]:
            searches += 1
            needed += any(subject in turn.executed for subject in unknown)
    assert found["exact"].value == 1 and found["recall"].value == 1
    assert found["precision"].value == pytest.approx(needed / searches)
    assert 0.3 < needed / searches < 0.7
    assert found["found"].value == 1 and found["repeated"].value == 0
    assert found["regret"].value == pytest.approx((searches - needed) / len(games))
    assert found["reading"].value == 1 and found["guessing"].value is None
    assert found["gold_seen"].value == 1
    assert found["right_known"].value == found["right_unknown"].value == 1
    assert found["invented"].value == 0
    by_type = {name: figures(own) for name, own in grouped(
        episodes, lambda each: each.record.game.task_type).items()}  # fmt: skip
    one, two = (by_type[name]["searches"].value for name in ("one_hop", "two_hops"))
    assert one == 1 and 1 < two <= 2


def test_the_oracle_has_no_regret(codec, games, asked):
    script = _written_by(lambda game: WORLD.agent("recaller", 0, AgentSettings(game=game)), games)
    found = figures(_play(codec, games, asked, script))
    assert [found[name].value for name in ("exact", "precision", "recall", "trigger_f1")] == [1] * 4
    assert found["regret"].value == 0 and found["found"].value == found["reached"].value == 1
    assert 0 < found["searches"].value <= found["oracle"].value
    # A retriever gives facts of the question alone here, so what was answered from memory was not
    # shown.
    shown = found["gold_seen"].value
    assert shown < 1 and found["guessing"].value == 1


def test_one_that_searches_by_chance_has_the_base_rate_as_its_precision(codec, games, asked):
    one_hop = [game for game in games if game.task_type == "one_hop"]
    rng, script, drawn = random.Random(0), {}, {}
    for game in one_hop:
        line, drawn[game.id] = asked[game.id], rng.random() < 0.5
        subject = line["facts"][0][0]
        search = [piece_text("I search.", f"search: {subject} born")] if drawn[game.id] else []
        script[game.id] = [*search, piece_text("I answer.", "answer: Nobody") + END]
    found = figures(_play(codec, one_hop, asked, script))
    unknown = {game.id: bool(_unknown(asked[game.id])) for game in one_hop}
    hits = sum(drawn[name] and unknown[name] for name in drawn)
    assert found["precision"].value == pytest.approx(hits / sum(drawn.values()))
    assert found["recall"].value == pytest.approx(hits / sum(unknown.values()))
    assert found["exact"].value == 0
    assert found["reading"].value == 0 and found["guessing"].value == 0


def test_repeated_refused_and_invalid_searches_are_counted(codec, games, asked):
    game = next(game for game in games if _unknown(asked[game.id]))
    subject = _unknown(asked[game.id])[0]
    search = piece_text("I search.", f"search: {subject}")
    script = {game.id: [*[search] * 11, "<begin_search> </end_search>", f"I answer. </think>{END}"]}
    (episode,) = _play(codec, [game], asked, script)
    counts = episode.counts
    assert (counts.searches, counts.repeated, counts.refused) == (12, 10, 2)
    assert counts.needed == 1 and counts.needless == 11 and not counts.answered
    found = figures([episode])
    assert found["invalid"].value == pytest.approx(2 / 13) and found["cut"].value == 0
    assert found["limit"].value == 1 and found["answered"].value == 0


def test_what_a_policy_makes_up_is_held_against_the_facts(codec, games, asked):
    game = next(g for g in games if g.task_type == "one_hop" and _unknown(asked[g.id]))
    script = _written_by(lambda one: WORLD.agent("expert", 0, AgentSettings(game=one)), [game])
    (real,) = _play(codec, [game], asked, script)
    shown = real.record.steps[1].observation.removeprefix("<search_result>")
    right, subject = asked[game.id]["answers"][0], _unknown(asked[game.id])[0]
    wrong = next(line["answers"][0] for line in asked.values() if line["answers"][0] != right)
    for text, stated in (
        (shown, (1, 1, 0)),
        (shown.replace(right, wrong), (1, 0, 0)),
        (shown.replace(subject, "Bel Bel Bel"), (0, 0, 1)),
    ):
        made_up = codec.encode(text)
        (episode,) = _play(codec, [game], asked, script, results=lambda _, ids=made_up: ids)
        counts = episode.counts
        read = counts.stated_unknown, counts.right_unknown, counts.invented
        assert all(a >= b for a, b in zip(read, stated, strict=True)), (text, counts)
        assert (counts.right_unknown > 0) == (stated[1] > 0)
        assert (counts.invented > 0) == (stated[2] > 0)
        assert episode.record.success, "the answer was written whatever was read"
        assert counts.gold_seen == (right in text)
    gap = sim_to_real([episode], [real])
    assert gap.value == 0 and gap.games == 1


def test_only_what_the_policy_played_of_known_games_is_judged(codec, games, asked):
    script = {name: [piece_text("I answer.", "answer: Nobody") + END] for name in asked}
    (episode,) = _play(codec, games[:1], asked, script)
    others = [
        episode.record.model_copy(update={"driver": "reference"}),
        episode.record.model_copy(update={"ended": "env_error"}),
    ]
    assert judged(others, WORLD, {}) == []
    with pytest.raises(DataError, match="there is no such game in split 'test'"):
        judged([episode.record], WORLD, {})
    world = load_world("alfworld")
    with pytest.raises(UsageError, match="has no searches"):
        judged([episode.record], world, {("test", games[0].id): games[0]})
    assert all(not estimate.measured for estimate in figures([]).values())
