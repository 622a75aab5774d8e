"""The invented world: balanced facts, each stated once, and questions without short cuts."""

import random
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from cotjax.envs.search_qa.bm25 import words_of
from cotjax.envs.search_qa.generate import ALL_SPLITS, HOPS, OOD_ENTITIES, TASK_TYPES, Generator
from cotjax.envs.search_qa.invented import LIST_LENGTH, invent
from cotjax.envs.search_qa.pages import LONGEST, write_pages
from cotjax.envs.search_qa.questions import (
    CHAIN,
    COMPARISON,
    INTERSECTION,
    parse_question,
    question_text,
    solve,
)
from cotjax.envs.search_qa.schema import LIST, NUMBER, ONE
from cotjax.envs.search_qa.solver import facts_in
from cotjax.errors import UsageError

SEED = 4
KNOWLEDGE = invent(SEED)
SCHEMA = KNOWLEDGE.schema
PASSAGES = write_pages(KNOWLEDGE, SEED)
GENERATOR = Generator(KNOWLEDGE, PASSAGES, SEED)
TRIPLES = [(fact.subject, fact.relation, name) for fact in KNOWLEDGE.facts for name in fact.objects]


@pytest.fixture(scope="module")
def questions():
    """All questions but most of the comparisons, by task type."""
    every = {}
    for task_type in TASK_TYPES:
        good = [each for each in GENERATOR.candidates(task_type) if not GENERATOR.problem(each)]
        every[task_type] = random.Random(0).sample(good, min(len(good), 2500))
    return every


_INDEX = defaultdict(set)
for _subject, _relation, _object in TRIPLES:
    _INDEX[_subject, _relation].add(_object)


def brute_force(question) -> set[str]:
    """Evaluate a question by joins over sets of triples, with no code of the package."""

    def follow(start, relations):
        reached = {start}
        for relation in relations:
            reached = set().union(*(_INDEX[name, relation] for name in reached))
        return reached

    ends = [follow(chain.start, chain.relations) for chain in question.branches]
    if question.form == INTERSECTION:
        return ends[0] & ends[1]
    if question.form == COMPARISON:
        size = {int(n): name for end in ends for name in end for n in _INDEX[name, question.by]}
        return {size[max(size)]} if len(size) == 2 else set()
    return ends[0]


def test_a_second_evaluator_gives_the_same_single_answer_to_10000_questions(questions):
    checked = 0
    for each in (question for some in questions.values() for question in some):
        (answer,) = solve(each, KNOWLEDGE.objects).answers
        assert brute_force(each) == {answer}
        checked += 1
    assert checked > 10_000


def test_objects_are_balanced():
    for relation in SCHEMA.relations.values():
        counts = Counter(name for _, each, name in TRIPLES if each == relation.name)
        subjects = sum(kind == relation.subject for kind in KNOWLEDGE.kinds.values())
        if relation.form == ONE:
            assert set(counts.values()) == {1} and len(counts) == subjects
        elif relation.form == LIST:
            assert set(counts.values()) == {LIST_LENGTH}
        else:
            assert max(counts.values()) <= 2  # once in each of the two groups
        known = [fact.known for fact in KNOWLEDGE.facts if fact.relation == relation.name]
        assert sum(known) == len(known) / 2


def test_guessing_the_commonest_answer_is_right_at_most_6_percent_at_every_hop_count(questions):
    for task_type, some in questions.items():
        answers, total = defaultdict(Counter), Counter()
        for question in some:
            kind = (question.by, *(chain.relations for chain in question.branches))
            group = (kind, question.starts[0] in KNOWLEDGE.held_out)
            answers[group][solve(question, KNOWLEDGE.objects).answers[0]] += 1
            total[group] += 1
        right = sum(counts.most_common(1)[0][1] for counts in answers.values())
        assert right / total.total() < 0.06, task_type


@pytest.mark.parametrize("split", ALL_SPLITS)
def test_no_answer_is_common_among_the_first_questions(split):
    for task_type in TASK_TYPES:
        counts: Counter[str] = Counter()
        for number, asked in zip(range(1, 101), GENERATOR.draw(split, task_type), strict=False):
            counts[asked.answers[0]] += 1
            assert counts.most_common(1)[0][1] <= max(1, -(-number // 40)), task_type


def test_each_fact_is_stated_in_one_passage_and_nowhere_else():
    stated: Counter[tuple[str, str]] = Counter()
    for passage in PASSAGES:
        facts = facts_in(passage.text, SCHEMA)
        assert set(facts) == set(passage.facts)
        assert all(KNOWLEDGE.objects[key] == objects for key, objects in facts.items())
        stated.update(facts.keys())
        assert len(words_of(f"{passage.title} {passage.text}")) <= LONGEST
    # So no question is answerable by other passages than its own.
    assert set(stated) == set(KNOWLEDGE.objects) and set(stated.values()) == {1}


def test_every_passage_has_near_misses():
    names = Counter(word for each in PASSAGES for word in set(words_of(each.title)))
    told = Counter(name for each in PASSAGES for name in {relation for _, relation in each.facts})
    for passage in PASSAGES:
        assert all(told[relation] >= 3 for _, relation in passage.facts)
        assert any(names[word] >= 2 for word in words_of(passage.title))


def test_no_question_has_a_short_cut(questions):
    for task_type, some in questions.items():
        for question in some:
            solution = solve(question, KNOWLEDGE.objects)
            (answer,) = solution.answers
            assert answer not in question.starts
            if task_type == "one_hop":
                continue
            names = {*question.starts, answer}
            assert not any(names <= each.entities for each in _naming(answer))
            if question.form == INTERSECTION:
                for subject, relation in solution.used:
                    assert len(KNOWLEDGE.objects[subject, relation]) > 1
            if question.form == CHAIN:
                (chain,) = question.branches
                assert len(chain.relations) == HOPS[task_type]
                for index in range(len(chain.relations)):
                    reached = {chain.start}
                    for name in chain.relations[:index] + chain.relations[index + 1 :]:
                        reached = {
                            KNOWLEDGE.objects.get((each, name), ("",))[0] for each in reached
                        }
                    assert answer not in reached


_BY_NAME = defaultdict(list)
for _passage in PASSAGES:
    for _name in _passage.entities:
        _BY_NAME[_name].append(_passage)


def _naming(name: str):
    return _BY_NAME[name]


def test_the_splits_are_disjoint_and_each_is_out_of_domain_in_one_way_only():
    seen: dict[str, str] = {}
    for split in ALL_SPLITS:
        for task_type in TASK_TYPES:
            drawn = list(GENERATOR.draw(split, task_type))
            assert drawn, (split, task_type)
            for asked in drawn:
                assert seen.setdefault(asked.question.key, split) == split
                assert seen.setdefault(asked.text, split) == split
                path = {name for key in asked.used for name in KNOWLEDGE.objects[key]}
                path = (path | set(asked.question.starts)) & set(KNOWLEDGE.kinds)
                held_out = path & KNOWLEDGE.held_out
                assert held_out == (path if split == OOD_ENTITIES else set())
                relations = asked.question.branches[0].relations
                new = any(pair in SCHEMA.new_chains for pair in pairwise(relations))
                assert new == (task_type == "new_chains")


def test_the_parts_of_new_chains_occur_in_training_in_the_same_places():
    pairs = {question.branches[0].relations for question in GENERATOR.candidates("two_hops")}
    assert {first for first, _ in SCHEMA.new_chains} <= {first for first, _ in pairs}
    assert {second for _, second in SCHEMA.new_chains} <= {second for _, second in pairs}
    assert not pairs & SCHEMA.new_chains


def test_a_question_is_read_as_it_was_written(questions):
    for some in questions.values():
        for question in some[:500]:
            text = question_text(question, SCHEMA, random.Random(question.key))
            assert parse_question(text, SCHEMA) == question


@pytest.mark.parametrize("scale", [0, 11])
def test_the_scale_has_limits(scale):
    with pytest.raises(UsageError, match=f"scale of an invented world is 0.25 to 10, not {scale}"):
        invent(0, scale)


def test_no_wording_belongs_to_two_relations():
    relations = list(SCHEMA.relations.values())
    for field in ("asks", "states", "inverse"):
        texts = [text for relation in relations for text in getattr(relation, field)]
        assert len(texts) == len(set(texts))
    numbers = [relation.more for relation in relations if relation.form == NUMBER]
    assert len(set(numbers)) == len(numbers)
