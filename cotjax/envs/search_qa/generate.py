"""Draw the questions of a split: those with one answer that no short cut gives."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations, pairwise

from cotjax.envs.search_qa.pages import Passage
from cotjax.envs.search_qa.questions import (
    CHAIN,
    COMPARISON,
    INTERSECTION,
    Chain,
    Question,
    question_text,
    solve,
)
from cotjax.envs.search_qa.schema import LIST, NUMBER, ONE, Knowledge
from cotjax.envs.search_qa.scoring import normalize

ONE_HOP, TWO_HOPS, THREE_HOPS, FOUR_HOPS = "one_hop", "two_hops", "three_hops", "four_hops"
NEW_CHAINS = "new_chains"
HOPS = {ONE_HOP: 1, TWO_HOPS: 2, NEW_CHAINS: 2, THREE_HOPS: 3, FOUR_HOPS: 4}
TASK_TYPES = (ONE_HOP, TWO_HOPS, COMPARISON, INTERSECTION, NEW_CHAINS, THREE_HOPS, FOUR_HOPS)
OOD_ENTITIES = "ood_entities"  # the split of the questions about held-out entities
# Share of the questions about entities that are not held out, by split.
SHARES = {"train": 0.6, "dev": 0.2, "test": 0.2}
ALL_SPLITS = (*SHARES, OOD_ENTITIES)
_PARTNERS = 8  # entities that one entity is compared with
COMMONEST = 0.06  # largest share of the questions with the same relations that have one answer


@dataclass(frozen=True)
class Asked:
    """A question of a split, in words, with its answer first and then the answer's other names."""

    question: Question
    text: str
    answers: tuple[str, ...]
    used: tuple[tuple[str, str], ...]


class Generator:
    """Draws questions over a world's facts and passages.

    Args:
      seed: with the question's own key it decides the split and the wording.
    """

    def __init__(self, knowledge: Knowledge, passages: Sequence[Passage], seed: int):
        self.knowledge, self.seed = knowledge, seed
        self._drawn: dict[str, dict[str, list[Question]]] = {}
        self._passages: dict[str, set[int]] = defaultdict(set)
        for passage in passages:
            for name in passage.entities:
                self._passages[name].add(passage.id)
        self._entities: dict[str, list[str]] = defaultdict(list)
        for name, kind in sorted(knowledge.kinds.items()):
            self._entities[kind].append(name)

    def draw(self, split: str, task_type: str) -> Iterable[Asked]:
        """Return all questions of a task type in a split, in a seeded order.

        The first n are the same whatever n is. No answer comes a second time before each other one
        has come once, so no answer is common: with 50 answers or more, at most 2 % of the first n
        have the same one, or a single one.
        """
        order = self._of_splits(task_type)[split].copy()
        random.Random(f"search_qa {self.seed} {split} {task_type}").shuffle(order)
        rounds: list[list[Asked]] = []
        given: Counter[str] = Counter()
        for question in order:
            asked = self._asked(question)
            if given[asked.answers[0]] == len(rounds):
                rounds.append([])
            rounds[given[asked.answers[0]]].append(asked)
            given[asked.answers[0]] += 1
        return chain.from_iterable(rounds)

    def _of_splits(self, task_type: str) -> dict[str, list[Question]]:
        """Return split -> the questions of a task type that are not rejected."""
        if task_type not in self._drawn:
            parts: dict[str, list[Question]] = {split: [] for split in ALL_SPLITS}
            for question in self._questions(task_type):
                parts[self.split_of(question)].append(question)
            self._drawn[task_type] = parts
        return self._drawn[task_type]

    def of_all_splits(self, task_type: str) -> Iterator[Question]:
        """Yield the questions of a task type, split by split."""
        return chain.from_iterable(self._of_splits(task_type).values())

    def _questions(self, task_type: str) -> Iterator[Question]:
        """Yield the questions of a task type, without those that are rejected.

        Of those that ask for the same relations and have the same answer, only so many are kept
        that guessing it is right for at most COMMONEST of what is kept.
        """
        alike: dict[object, dict[str, list[Question]]] = defaultdict(lambda: defaultdict(list))
        order: list[Question] = []
        for question in self.candidates(task_type):
            if not self.problem(question):
                (answer,) = solve(question, self.knowledge.objects).answers
                held_out = not self.knowledge.held_out.isdisjoint(question.starts)
                alike[relations_of(question), held_out][answer].append(question)
                order.append(question)
        kept = set()
        for by_answer in alike.values():
            most = _most_of_each([len(some) for some in by_answer.values()])
            for some in by_answer.values():
                some.sort(key=lambda question: _hash(self.seed, question))
                kept.update(some[:most])
        yield from (question for question in order if question in kept)

    def _asked(self, question: Question) -> Asked:
        solution = solve(question, self.knowledge.objects)
        (answer,) = solution.answers
        names = (answer, *self.knowledge.aliases.get(answer, ()))
        rng = random.Random(f"search_qa wording {self.seed} {question.key}")
        text = question_text(question, self.knowledge.schema, rng)
        return Asked(question, text, names, solution.used)

    def candidates(self, task_type: str) -> Iterator[Question]:
        """Yield the questions of a task type, with those that are then rejected."""
        if task_type == COMPARISON:
            return self._comparisons()
        if task_type == INTERSECTION:
            return self._intersections()
        return self._chains(HOPS[task_type], task_type == NEW_CHAINS)

    def split_of(self, question: Question) -> str:
        """Return the split that a question belongs to, by a hash of its key."""
        path = self._path(question, solve(question, self.knowledge.objects).used)
        if self.knowledge.held_out & path:
            return OOD_ENTITIES
        place = int.from_bytes(_hash(self.seed, question)[:4], "big") / 2**32
        for split, share in SHARES.items():
            if place < share:
                return split
            place -= share
        return next(reversed(SHARES))

    def problem(self, question: Question) -> str | None:
        """Return why a question is rejected; None if it is not."""
        solution = solve(question, self.knowledge.objects)
        if solution.missing is not None or len(solution.answers) != 1:
            return "not one answer"
        (answer,) = solution.answers
        starts = " ".join(normalize(start) for start in question.starts)
        if f" {normalize(answer)} " in f" {starts} ":
            return "the answer is in the question"
        if len(solution.used) > 1:
            path = [subject for subject, _ in solution.used]
            if question.form == CHAIN and len({*path, answer}) <= len(path):
                return "it comes back to an entity"
            pages = (self._passages[name] for name in (*question.starts, answer))
            if set.intersection(*pages):
                return "one passage names all"
        if question.form == CHAIN and answer in self._shorter(question.branches[0]):
            return "fewer hops lead to the answer"
        if question.form == COMPARISON and self._close(question, solution.used):
            return "the numbers are close"
        return None

    def _close(self, question: Question, used: Iterable[tuple[str, str]]) -> bool:
        """Return whether the numbers of a comparison are too close to each other."""
        numbers = [int(self.knowledge.objects[key][0]) for key in used if key[1] == question.by]
        return max(numbers) - min(numbers) <= self.knowledge.closest * max(numbers)

    def _shorter(self, whole: Chain) -> Iterator[str]:
        """Yield what a chain leads to with one of its hops left out."""
        for index in range(len(whole.relations)):
            rest = whole.relations[:index] + whole.relations[index + 1 :]
            if rest:
                short = Question(CHAIN, (Chain(whole.start, rest),))
                yield from solve(short, self.knowledge.objects).answers

    def _path(self, question: Question, used: Iterable[tuple[str, str]]) -> set[str]:
        """Return the entities that a question names or leads to."""
        objects = (self.knowledge.objects[key] for key in used)
        return {*question.starts, *(name for names in objects for name in names)}

    def _chains(self, hops: int, new: bool) -> Iterator[Question]:
        for names in self._compositions[hops]:
            pairs = {pair in self.knowledge.schema.new_chains for pair in pairwise(names)}
            # New chains have a held-out pair; all other chains, of any length, have none.
            if (True in pairs) == new:
                for start in self._entities[self.knowledge.schema.relations[names[0]].subject]:
                    yield Question(CHAIN, (Chain(start, names),))

    @cached_property
    def _compositions(self) -> Mapping[int, list[tuple[str, ...]]]:
        """Return number of hops -> the sequences of functional relations, none twice."""
        schema = self.knowledge.schema
        lengths: dict[int, list[tuple[str, ...]]] = {
            1: [(relation.name,) for kind in schema.kinds for relation in schema.of(kind, ONE)]
        }
        for hops in range(2, max(HOPS.values()) + 1):
            lengths[hops] = [
                (*names, after.name)
                for names in lengths[hops - 1]
                for after in schema.of(schema.relations[names[-1]].object, ONE)
                if after.name not in names
            ]
        return lengths

    def _comparisons(self) -> Iterator[Question]:
        schema = self.knowledge.schema
        for relation in schema.relations.values():
            if relation.form != ONE:
                continue
            members = self._entities[relation.subject]
            rng = random.Random(f"search_qa pairs {self.seed} {relation.name}")
            order = rng.sample(members, len(members))
            for by in schema.of(relation.object, NUMBER):
                for first, second in _pairs(order):
                    if (first in self.knowledge.held_out) != (second in self.knowledge.held_out):
                        continue
                    chains = Chain(first, (relation.name,)), Chain(second, (relation.name,))
                    yield Question(COMPARISON, chains, by.name)

    def _intersections(self) -> Iterator[Question]:
        """Yield pairs of lists that share an object."""
        listed: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for fact in self.knowledge.facts:
            if self.knowledge.schema.relations[fact.relation].form == LIST:
                for name in fact.objects:
                    listed[name].append(fact.key)
        seen: set[tuple[tuple[str, str], ...]] = set()
        for name in sorted(listed):
            for pair in combinations(sorted(listed[name], key=lambda key: key[::-1]), 2):
                if pair[0][0] != pair[1][0] and pair not in seen:
                    seen.add(pair)
                    chains = tuple(Chain(start, (relation,)) for start, relation in pair)
                    yield Question(INTERSECTION, chains)


def relations_of(question: Question) -> tuple[object, ...]:
    """Return what a question asks for, without the entities that it starts from."""
    return (question.by, *(chain.relations for chain in question.branches))


def _hash(seed: int, question: Question) -> bytes:
    return hashlib.sha256(f"{seed} {question.key}".encode()).digest()


def _most_of_each(counts: Sequence[int]) -> int:
    """Return how many questions of one answer may be kept, given how many each answer has.

    The largest number that is at most COMMONEST of what is then kept; 0 if there is none.
    """
    numbers = range(max(counts), 0, -1)
    kept = (sum(min(count, most) for count in counts) for most in numbers)
    pairs = zip(numbers, kept, strict=True)
    return next((most for most, total in pairs if most <= COMMONEST * total), 0)


def _pairs(order: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pair each entity with the next ones, and no two twice."""
    for distance in range(1, min(_PARTNERS, (len(order) - 1) // 2) + 1):
        for index, first in enumerate(order):
            yield first, order[(index + distance) % len(order)]
