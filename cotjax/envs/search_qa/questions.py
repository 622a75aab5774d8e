"""Questions: chains of relations, comparisons and intersections, and how they are worded and read.

chain         What is the land of the birthplace of Bel Tor Na?
comparison    Which is older: the birthplace of Bel Tor Na or the birthplace of Ko Ra Vel?
intersection  Which town is both a port of Sa Mel Du and a seat of Gor Ti Za?
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cotjax.envs.search_qa.schema import Schema
from cotjax.errors import EnvError

CHAIN, COMPARISON, INTERSECTION = "chain", "comparison", "intersection"
Key = tuple[str, str]  # subject and relation of a fact


@dataclass(frozen=True)
class Chain:
    """A starting entity, and the relations to follow from it, nearest first."""

    start: str
    relations: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A question as a query over facts.

    Attributes:
      form: CHAIN, of one branch; COMPARISON, of two whose ends have numbers; INTERSECTION, of two
        that end in lists.
      branches: the chains.
      by: the relation that gives the numbers of a comparison; "" in other forms.
    """

    form: str
    branches: tuple[Chain, ...]
    by: str = ""

    @property
    def key(self) -> str:
        """The question in one line, whatever its wording."""
        branches = (" > ".join((chain.start, *chain.relations)) for chain in self.branches)
        return f"{self.form} {self.by}: {' | '.join(branches)}"

    @property
    def starts(self) -> tuple[str, ...]:
        return tuple(chain.start for chain in self.branches)


@dataclass(frozen=True)
class Solution:
    """How far some facts answer a question.

    Attributes:
      answers: all right answers; () where a fact is missing.
      used: keys of the facts that were followed, in order.
      missing: key of the first fact that is needed and not there; None if there is an answer.
    """

    answers: tuple[str, ...]
    used: tuple[Key, ...]
    missing: Key | None = None


def solve(question: Question, objects: Mapping[Key, tuple[str, ...]]) -> Solution:
    """Evaluate a question over facts, (subject, relation) -> objects."""
    used: list[Key] = []
    ends: list[tuple[str, ...]] = []
    numbers: list[int] = []
    for chain in question.branches:
        found: tuple[str, ...] = (chain.start,)
        for name in chain.relations + ((question.by,) if question.by else ()):
            key = (found[0], name)
            if key not in objects:
                return Solution((), tuple(used), key)
            used.append(key)
            if name == question.by:
                numbers.append(int(objects[key][0]))
            else:
                found = objects[key]
        ends.append(found)
    if question.form == COMPARISON:
        largest = max(numbers)
        winners = (end for end, number in zip(ends, numbers, strict=True) if number == largest)
        return Solution(tuple(end[0] for end in winners), tuple(used))
    if question.form == INTERSECTION:
        return Solution(tuple(name for name in ends[0] if name in ends[1]), tuple(used))
    return Solution(ends[0], tuple(used))


def phrase(chain: Chain, schema: Schema, rng: random.Random | None = None) -> str:
    """Return "the land of the birthplace of …". Without `rng` in the first wording of each."""
    text = chain.start
    for name in chain.relations:
        asks = schema.relations[name].asks
        text = f"{rng.choice(asks) if rng else asks[0]} {text}"
    return text


def question_text(question: Question, schema: Schema, rng: random.Random) -> str:
    """Return the question in words."""
    last = [schema.relations[chain.relations[-1]] for chain in question.branches]
    if question.form == INTERSECTION:
        first, second = (
            f"{relation.common} {chain.start}"
            for relation, chain in zip(last, question.branches, strict=True)
        )
        return f"Which {last[0].object} is both {first} and {second}?"
    phrases = [phrase(chain, schema, rng) for chain in question.branches]
    if question.form == COMPARISON:
        return f"Which {schema.relations[question.by].more}: {phrases[0]} or {phrases[1]}?"
    return f"{'Who' if last[0].object in schema.people else 'What'} is {phrases[0]}?"


def parse_question(text: str, schema: Schema) -> Question:
    """Return the question of a text, the inverse of `question_text`. Raises EnvError."""
    if chain := re.fullmatch(r"(?:Who|What) is (.+)\?", text):
        return Question(CHAIN, (_parse_chain(chain[1], schema),))
    for relation in schema.relations.values():
        if relation.more and (
            pair := re.fullmatch(rf"Which {relation.more}: (.+) or (.+)\?", text)
        ):
            branches = tuple(_parse_chain(each, schema) for each in pair.groups())
            return Question(COMPARISON, branches, relation.name)
    lists = [relation for relation in schema.relations.values() if relation.common]
    for first in lists:
        for second in lists:
            both = rf"Which .+ is both {first.common} (.+) and {second.common} (.+)\?"
            if pair := re.fullmatch(both, text):
                chains = (Chain(pair[1], (first.name,)), Chain(pair[2], (second.name,)))
                return Question(INTERSECTION, chains)
    raise EnvError(f"no question of search_qa has this wording: {text!r}")


def _parse_chain(text: str, schema: Schema) -> Chain:
    openings = {
        ask: relation.name for relation in schema.relations.values() for ask in relation.asks
    }
    relations: list[str] = []
    while True:
        fitting = [ask for ask in openings if text.startswith(f"{ask} ")]
        if not fitting:
            return Chain(text, tuple(reversed(relations)))
        longest = max(fitting, key=len)
        relations.append(openings[longest])
        text = text[len(longest) + 1 :]
