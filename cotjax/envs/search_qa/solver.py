"""A solver that knows the wording of questions and passages, and no fact but those it has read.

It writes down which fact it needs and searches for it. Where the results lack it, it searches once
more in other words. With a memory it also states the facts in there, as a model does that was
trained on them, and without searches it guesses all others.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from cotjax.envs.base import Decision, Observation
from cotjax.envs.search_qa.questions import (
    COMPARISON,
    INTERSECTION,
    Chain,
    Key,
    Question,
    Solution,
    parse_question,
    phrase,
    solve,
)
from cotjax.envs.search_qa.schema import LIST, Relation, Schema

_ATTEMPTS = 2  # searches for one fact
_GIVE_UP = "unknown"
_RESULT = re.compile(r"result (\d+): ([^:]*): (.*)")
_NAME = r"([^\Wa-z_][^.]*?)"  # names and numbers do not begin with a small letter, nor have a stop

NEED = ("I need {what}", "Now I need {what}")
SEARCHES = ("so I search for it.", "which I do not know, so I search.", "so I look it up.")
AGAIN = (
    "No result says {what}, so I search in other words.",
    "I do not see {what} there. I search once more.",
)
READ = ("Result {n} says that {what} {verb} {objects}.", "By result {n}, {what} {verb} {objects}.")
EARLIER = ("An earlier result says that {what} {verb} {objects}.",)
# Objects first: where a model would state a fact it also sees whether it recalls one.
KNOWN = ("{objects}, I know, {verb} {what}.", "{objects}, I remember, {verb} {what}.")
GUESS = ("I do not know {what}, so I guess {objects}.",)
LESS = "{less} is less than {more}, so the answer is {answer}."
BOTH = "Both have {answer}, so that is the answer."
LAST = ("So the answer is {answer}.", "That is the answer: {answer}.")
LOST = "I cannot find {what}, so I have no answer."
PHRASES = (*NEED, *SEARCHES, *AGAIN, *READ, *EARLIER, *KNOWN, *GUESS, LESS, BOTH, *LAST, LOST)


class Solver:
    """Answers one question at a time.

    Args:
      seed: of the wording and the mistakes; the same seed and question give the same episode.
      mistakes: share of the steps that are a needless search: for another entity, or the last query
        again.
      memory: facts that it states without a search, (subject, relation) -> objects.
      searches: whether it searches for facts that are not in its memory. It guesses them otherwise,
        from the objects that the relation has there.
    """

    def __init__(
        self,
        schema: Schema,
        seed: int,
        mistakes: float = 0.0,
        memory: Mapping[Key, tuple[str, ...]] = MappingProxyType({}),
        searches: bool = True,
    ):
        self._schema, self._seed, self._mistakes = schema, seed, mistakes
        self._memory, self._searches = memory, searches

    def start(self, task: str, observation: Observation) -> None:
        """Begin a question. Raises EnvError for another wording than the world's."""
        self._rng = random.Random(f"search_qa solver {self._seed}")
        self._question: Question = parse_question(task, self._schema)
        self._facts = dict(self._memory)
        self._guessed: set[Key] = set()
        self._said: set[Key] = set()
        self._attempts: dict[Key, int] = {}
        self._queries: list[str] = []
        self._names: list[str] = []

    def follow(self, action: str, observation: Observation) -> None:
        """Remember what another agent read. (`cotjax.envs.base.Successor`)

        A search in the solver's own words for the fact that it needs is not done again.
        """
        missing = solve(self._question, self._facts).missing
        if missing is not None:
            attempt = self._attempts.get(missing, 0)
            if attempt < _ATTEMPTS and action == f"search: {self._query(missing, attempt)}":
                self._attempts[missing] = attempt + 1
        self._take_in(observation.text)

    def act(self, observation: Observation) -> Decision:
        """Return the next search or the answer, and the thought before it."""
        latest = self._take_in(observation.text)
        if self._queries and self._rng.random() < self._mistakes:
            return Decision(None, f"search: {self._needless()}", mistake=True)
        solution = solve(self._question, self._facts)
        while not self._searches and solution.missing is not None:
            self._facts[solution.missing] = self._guess(solution.missing[1])
            self._guessed.add(solution.missing)
            solution = solve(self._question, self._facts)
        thought = self._news(solution, latest)
        if solution.missing is None:
            answer = solution.answers[0] if solution.answers else _GIVE_UP
            return Decision(" ".join([*thought, self._end(solution, answer)]), f"answer: {answer}")
        what, attempt = self._what(solution.missing), self._attempts.get(solution.missing, 0)
        if attempt == _ATTEMPTS:
            return Decision(" ".join([*thought, LOST.format(what=what)]), f"answer: {_GIVE_UP}")
        self._attempts[solution.missing] = attempt + 1
        if attempt:
            thought.append(self._rng.choice(AGAIN).format(what=what))
        else:
            need = NEED[1 if self._said else 0].format(what=what)
            thought.append(f"{need}, {self._rng.choice(SEARCHES)}")
        query = self._query(solution.missing, attempt)
        self._queries.append(query)
        return Decision(" ".join(thought), f"search: {query}")

    def _query(self, key: Key, attempt: int) -> str:
        subject, name = key
        return f"{subject} {self._schema.relations[name].queries[attempt]}"

    def _take_in(self, text: str) -> dict[Key, int]:
        """Remember the facts of an observation; return the number of the result with each."""
        latest: dict[Key, int] = {}
        for number, title, body in _RESULT.findall(text):
            self._names.append(title)
            for key, objects in facts_in(body, self._schema).items():
                self._facts[key] = objects
                latest.setdefault(key, int(number))
        return latest

    def _news(self, solution: Solution, latest: Mapping[Key, int]) -> list[str]:
        """Return a sentence for each fact of the way that was not mentioned before."""
        sentences = []
        for key in solution.used:
            if key not in self._said:
                self._said.add(key)
                words = READ if key in latest else EARLIER
                words = KNOWN if key in self._memory else GUESS if key in self._guessed else words
                objects = self._facts[key]
                told = {"verb": "are" if len(objects) > 1 else "is", "objects": ", ".join(objects)}
                text = self._rng.choice(words)
                sentences.append(text.format(n=latest.get(key), what=self._what(key), **told))
        return sentences

    def _guess(self, name: str) -> tuple[str, ...]:
        objects = sorted(each for (_, of), each in self._memory.items() if of == name)
        return self._rng.choice(objects or [("0",)])

    def _what(self, key: Key) -> str:
        return phrase(Chain(key[0], (key[1],)), self._schema)

    def _end(self, solution: Solution, answer: str) -> str:
        if self._question.form == COMPARISON:
            numbers = [key for key in solution.used if key[1] == self._question.by]
            less, more = sorted((self._facts[key][0] for key in numbers), key=int)
            return LESS.format(less=less, more=more, answer=answer)
        if self._question.form == INTERSECTION:
            return BOTH.format(answer=answer)
        return self._rng.choice(LAST).format(answer=answer)

    def _needless(self) -> str:
        """Return the last query, or one for an entity that was only seen in a title."""
        if self._names and self._rng.random() < 0.5:
            words = self._queries[-1].split()[-2:]
            return " ".join([self._rng.choice(self._names), *words])
        return self._queries[-1]


def facts_in(text: str, schema: Schema) -> dict[Key, tuple[str, ...]]:
    """Return the facts that the sentences of a passage state, (subject, relation) -> objects."""
    facts: dict[Key, tuple[str, ...]] = {}
    for sentence in re.findall(r"[^.]+\.", text):
        for name, pattern in _patterns(schema):
            if match := pattern.fullmatch(sentence.strip()):
                objects = match["o"]
                relation = schema.relations[name]
                facts[match["s"], name] = (
                    tuple(objects.split(", ")) if relation.form == LIST else (objects,)
                )
    return facts


@cache
def _patterns_of(relations: tuple[Relation, ...]) -> list[tuple[str, re.Pattern[str]]]:
    patterns = []
    for relation in relations:
        for template in relation.states + relation.inverse:
            text = re.escape(template)
            for slot in ("s", "o"):
                text = text.replace(rf"\{{{slot}\}}", _NAME.replace("(", f"(?P<{slot}>", 1), 1)
            patterns.append((relation.name, re.compile(text)))
    return patterns


def _patterns(schema: Schema) -> list[tuple[str, re.Pattern[str]]]:
    return _patterns_of(tuple(schema.relations.values()))
