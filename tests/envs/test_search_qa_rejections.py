"""Every reason to reject a question, on facts that have nothing else against it."""

from collections import Counter

import pytest

from cotjax.envs.search_qa.generate import COMMONEST, Generator
from cotjax.envs.search_qa.pages import Passage
from cotjax.envs.search_qa.questions import CHAIN, COMPARISON, Chain, Question, solve
from cotjax.envs.search_qa.schema import Fact, Knowledge, load_schema

TWO_HOPS = Question(CHAIN, (Chain("a", ("r", "s")),))
THREE_HOPS = Question(CHAIN, (Chain("a", ("r", "s", "t")),))
LARGER = Question(COMPARISON, (Chain("a", ("r",)), Chain("d", ("r",))), "size")
GOOD = {
    **{("a", "r"): ("b",), ("b", "s"): ("c",), ("c", "t"): ("e",), ("d", "r"): ("f",)},
    **{("b", "size"): ("50",), ("f", "size"): ("90",)},
}


def generator(facts, *passages: set[str]) -> Generator:
    known = tuple(Fact(subject, name, found, True) for (subject, name), found in facts.items())
    knowledge = Knowledge(load_schema("invented"), {}, known, frozenset(), closest=0.1)
    pages = [
        Passage(number, "", "", (), frozenset(entities), False)
        for number, entities in enumerate(passages)
    ]
    return Generator(knowledge, pages, seed=0)


@pytest.mark.parametrize(
    ("reason", "question", "facts", "passages"),
    [
        ("not one answer", TWO_HOPS, {("b", "s"): ("c", "e")}, ()),
        ("not one answer", TWO_HOPS, {("b", "s"): ()}, ()),
        ("not one answer", TWO_HOPS, {("a", "r"): ("z",)}, ()),
        ("not one answer", LARGER, {("b", "size"): ("90",)}, ()),
        ("the answer is in the question", TWO_HOPS, {("b", "s"): ("The A.",)}, ()),
        ("it comes back to an entity", THREE_HOPS, {("c", "t"): ("b",)}, ()),
        ("one passage names all", TWO_HOPS, {}, ({"a", "b"}, {"a", "c"})),
        ("one passage names all", LARGER, {}, ({"a", "d"}, {"a", "d", "f"})),
        ("fewer hops lead to the answer", TWO_HOPS, {("a", "s"): ("c",)}, ()),
        ("fewer hops lead to the answer", THREE_HOPS, {("b", "t"): ("e",)}, ()),
        ("the numbers are close", LARGER, {("b", "size"): ("81",)}, ()),
    ],
)
def test_each_reason_alone_rejects(reason, question, facts, passages):
    apart = ({"a", "b"}, {"b", "c"}, {"c", "e"}, {"d", "f"})
    assert generator(GOOD, *apart).problem(question) is None
    assert generator(GOOD | facts, *apart, *passages).problem(question) == reason


def test_an_answer_that_is_a_part_of_a_word_is_not_in_the_question():
    facts = GOOD | {("abc", "r"): ("b",), ("b", "s"): ("bc",)}
    question = Question(CHAIN, (Chain("abc", ("r", "s")),))
    assert generator(facts).problem(question) is None


def test_one_answer_of_many_questions_is_kept_for_as_many_as_do_not_make_it_common():
    """Of 100 questions with one relation 41 have the same answer, the others their own."""
    answers = [f"b{max(number - 40, 0)}" for number in range(100)]
    facts = {(f"a{number}", "r"): (answer,) for number, answer in enumerate(answers)}
    made = generator(facts)
    made.candidates = lambda task_type: (Question(CHAIN, (Chain(a, ("r",)),)) for a, _ in facts)
    kept = Counter(
        solve(question, made.knowledge.objects).answers[0]
        for question in made.of_all_splits("one_hop")
    )
    # 3 of 62 are 5 %; 4 of 63 would be over 6.
    assert COMMONEST == 0.06 and kept["b0"] == 3 and kept.total() == 62
