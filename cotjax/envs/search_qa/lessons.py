"""Lessons of the search-QA worlds, from facts that are known or not (`cotjax.envs.lessons`).

Each step of a text names the fact that it needs, and states it if it is known, else searches:

    I need the land of Ko Po. Ma Ti Lo, I know, is the land of Ko Po.
    I need the land of Ko Po. So I search. <begin_search> Ko Po land town realm </end_search>

So both ways part right behind "I need the X of Y.", where a choice is cut. A guess looks like a
statement, with another object of the relation.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cotjax.envs.base import Game
from cotjax.envs.lessons import Choice, Lesson, Recall
from cotjax.envs.search_qa.env import ANSWER, FIRST, SEARCH, SearchQaEnv
from cotjax.envs.search_qa.generate import Generator
from cotjax.envs.search_qa.growing import observation_text, piece_text
from cotjax.envs.search_qa.library import keep_own_facts, own_facts
from cotjax.envs.search_qa.questions import (
    CHAIN,
    Chain,
    Key,
    Question,
    phrase,
    question_text,
    solve,
)
from cotjax.envs.search_qa.schema import ONE, Fact, Knowledge
from cotjax.envs.search_qa.solver import EARLIER, KNOWN, LAST, READ, Solver
from cotjax.errors import UsageError

NEED = "I need {what}."
SEARCHES = ("So I search.", "So I look it up.")
AGAIN = ("I do not see {what} there. I search once more.",)
_ATTEMPTS = 2  # searches for one fact
_WORDINGS = 2  # of a question about a known fact


class QaLessons:
    """The lessons of a folder of questions (a `cotjax.envs.lessons.Lessons`).

    Args:
      games: its training questions.
      seed: of the wording and of what is drawn.
    """

    def __init__(self, knowledge: Knowledge, games: Sequence[Game], seed: int, world_seed: int):
        self._knowledge, self._games, self._seed = knowledge, games, seed
        self._world_seed = world_seed
        self._generator = Generator(knowledge, (), world_seed)
        self._memory = {fact.key: fact.objects for fact in knowledge.facts if fact.known}

    def facts(self) -> Iterator[Lesson]:
        """As `Lessons.facts`."""
        for fact in self._knowledge.facts:
            if fact.known:
                yield from self._told(fact)

    def recalls(self) -> list[Recall]:
        """As `Lessons.recalls`; of functional relations alone, whose facts have one answer."""
        sizes = {name: len({*objects}) for name, objects in self._objects().items()}
        return [
            Recall(
                _name("recall", fact),
                question_text(_question(fact), self._knowledge.schema, self._rng("recall", fact)),
                FIRST,
                fact.objects[0],
                fact.known,
                sizes[fact.relation],
            )
            for fact in self._functional()
        ]

    def by_own_facts(
        self, asked: Mapping[str, Any], known: Collection[str] | None = None
    ) -> QaLessons | None:
        """As `Lessons.by_own_facts`. A fact that no recall asks for is unknown."""
        folder = Path(self._games[0].path).parent
        if known is not None:
            facts = (fact.key for fact in self._functional() if _name("recall", fact) in known)
            keep_own_facts(folder, asked, facts)
        kept = own_facts(folder)
        if kept is None or kept[0] != asked:
            return None
        own = tuple(replace(x, known=x.key in kept[1]) for x in self._knowledge.facts)
        knowledge = replace(self._knowledge, facts=own)
        return QaLessons(knowledge, self._games, self._seed, self._world_seed)

    def choices(self, count: int) -> list[Choice]:
        """As `Lessons.choices`; of functional relations alone."""
        made: list[Choice] = []
        for known, wanted in ((False, count // 2), (True, count - count // 2)):
            fitting = self._facts_of(known, "train")
            if len(fitting) < wanted:
                raise UsageError(
                    f"{wanted} choices about {'known' if known else 'unknown'} facts are asked "
                    f"for, and the world has {len(fitting)} such facts of training questions: ask "
                    "for fewer"
                )
            made += map(self._choice, fitting[:wanted])
        return sorted(made, key=lambda choice: choice.id)

    def held_out_choices(self, most: int) -> list[Choice]:
        """As `Lessons.held_out_choices`; of test questions, and of functional relations alone."""
        sides = [self._facts_of(known, "test") for known in (False, True)]
        each = min(most // 2, *map(len, sides))
        made = [self._choice(fact) for facts in sides for fact in facts[:each]]
        return sorted(made, key=lambda choice: choice.id)

    def written(self, games: Sequence[Game]) -> list[Lesson]:
        """As `Lessons.written`."""
        writer = Writer(self._knowledge, self._seed, self._memory)
        return [each.lesson for each in map(writer.write, games) if each.won]

    def episodes(self, searching: int, thinking: int, slips: float = 0.0) -> list[Lesson]:
        """As `Lessons.episodes`."""
        wanted = {True: searching, False: thinking}
        made: dict[bool, list[Lesson]] = {True: [], False: []}
        writer = Writer(self._knowledge, self._seed, self._memory, slips)
        order = sorted(self._games, key=lambda game: game.id)
        random.Random(f"search_qa episodes {self._seed}").shuffle(order)
        for game in order:
            if all(len(made[kind]) >= number for kind, number in wanted.items()):
                break
            written = writer.write(game)
            if written.won and len(made[written.searched]) < wanted[written.searched]:
                made[written.searched].append(written.lesson)
        for kind, number in wanted.items():
            if len(made[kind]) < number:
                how = "with a search" if kind else "from memory alone"
                raise UsageError(
                    f"{number} episodes {how} are asked for, and the {len(order)} training "
                    f"questions give {len(made[kind])}: make more questions, or ask for fewer"
                )
        return sorted(made[True] + made[False], key=lambda lesson: lesson.id)

    # ---- single facts

    def _told(self, fact: Fact) -> Iterator[Lesson]:
        """Yield what is taught about a known fact."""
        name, rng, schema = _name("fact", fact), self._rng("fact", fact), self._knowledge.schema
        for number, template in enumerate(schema.relations[fact.relation].states):
            text = template.format(s=fact.subject, o=", ".join(fact.objects))
            yield Lesson(f"{name}/states/{number}", "", "", text)
        need = NEED.format(what=self._what(fact))
        thought = f"{need} {self._statement(rng, fact, fact.objects)}"
        if schema.relations[fact.relation].form != ONE:
            yield Lesson(f"{name}/thought", "", "", thought)
            return
        thought = f"{thought} {rng.choice(LAST).format(answer=fact.objects[0])}"
        for number in range(_WORDINGS):
            task = question_text(_question(fact), schema, rng)
            # The answer alone, and behind a thought.
            for how, before in (("answer", None), ("thought", thought)):
                text = piece_text(before, f"{ANSWER}: {fact.objects[0]}")
                yield Lesson(f"{name}/{how}/{number}", task, FIRST, text.lstrip())

    def _choice(self, fact: Fact) -> Choice:
        rng, schema = self._rng("choice", fact), self._knowledge.schema
        objects = fact.objects
        if not fact.known:
            others = sorted({*self._objects()[fact.relation]} - {*fact.objects})
            objects = (rng.choice(others),)
        stated = f" {self._statement(rng, fact, objects)}"
        query = f"{fact.subject} {schema.relations[fact.relation].queries[0]}"
        searched = " " + piece_text(rng.choice(SEARCHES), f"{SEARCH}: {query}")
        chosen, rejected = (stated, searched) if fact.known else (searched, stated)
        return Choice(
            _name("choice", fact),
            question_text(_question(fact), schema, rng),
            FIRST,
            NEED.format(what=self._what(fact)),
            chosen,
            rejected,
            searches=not fact.known,
        )

    def _statement(self, rng: random.Random, fact: Fact, objects: Sequence[str]) -> str:
        verb = "are" if len(objects) > 1 else "is"
        told = {"what": self._what(fact), "verb": verb, "objects": ", ".join(objects)}
        return rng.choice(KNOWN).format(**told)

    def _what(self, fact: Fact) -> str:
        return phrase(Chain(fact.subject, (fact.relation,)), self._knowledge.schema)

    def _facts_of(self, known: bool, split: str) -> list[Fact]:
        """Return the facts whose one-hop question is of a split, in an order of the seed."""
        fitting = [
            fact
            for fact in self._functional()
            if fact.known == known and self._generator.split_of(_question(fact)) == split
        ]
        random.Random(f"search_qa choices {self._seed} {known}").shuffle(fitting)
        return fitting

    def _functional(self) -> Iterator[Fact]:
        relations = self._knowledge.schema.relations
        return (fact for fact in self._knowledge.facts if relations[fact.relation].form == ONE)

    def _objects(self) -> dict[str, list[str]]:
        """Return the objects that each functional relation has."""
        objects: dict[str, list[str]] = {}
        for fact in self._functional():
            objects.setdefault(fact.relation, []).append(fact.objects[0])
        return objects

    def _rng(self, kind: str, fact: Fact) -> random.Random:
        return random.Random(f"search_qa {kind} {self._seed} {fact.key}")


@dataclass(frozen=True)
class Written:
    """An episode. `searched`: it has a search; `won`: its answer is right."""

    lesson: Lesson
    searched: bool
    won: bool


class Writer(Solver):
    """Writes an episode as one growing text, in the environment that answers its searches.

    `slips`: share of the searches, but for the first, before which there is a needless one.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        seed: int,
        memory: dict[Key, tuple[str, ...]],
        slips: float = 0.0,
    ):
        super().__init__(knowledge.schema, seed, slips, memory=memory)
        self._env = SearchQaEnv()

    def write(self, game: Game) -> Written:
        """Play a question and return its text."""
        task, seen = self._env.reset(game)
        self.start(task, seen)
        self._rng = random.Random(f"search_qa writer {self._seed} {game.id}")
        text, thought, searched = "", self._stated({}), False
        slips: list[int] = []
        while (missing := solve(self._question, self._facts).missing) is not None:
            attempt = self._attempts.get(missing, 0)
            if attempt == _ATTEMPTS:
                break
            self._attempts[missing], searched = attempt + 1, True
            if self._mistakes and self._queries and self._rng.random() < self._mistakes:
                slips.append(len(self._queries) + len(slips))
                text += self._slip(" ".join(thought))
                thought = []
            what = self._what(missing)
            thought.append(self._rng.choice(AGAIN) if attempt else NEED)
            thought += [] if attempt else [self._rng.choice(SEARCHES)]
            piece = piece_text(
                " ".join(thought).format(what=what), f"{SEARCH}: {self._query(missing, attempt)}"
            )
            self._queries.append(self._query(missing, attempt))
            seen = self._env.step(f"{SEARCH}: {self._queries[-1]}")
            text += piece + observation_text(seen.text)
            thought = self._stated(self._take_in(seen.text), read=missing)
        solution = solve(self._question, self._facts)
        if missing is not None or not solution.answers:
            return Written(Lesson(game.id, task, FIRST, text, tuple(slips)), searched, won=False)
        answer = f"{ANSWER}: {solution.answers[0]}"
        thought.append(self._end(solution, solution.answers[0]))
        text += piece_text(" ".join(thought), answer)
        lesson = Lesson(game.id, task, FIRST, text, tuple(slips))
        return Written(lesson, searched, self._env.step(answer).won)

    def _slip(self, thought: str) -> str:
        """Search for what is not needed; return the piece and its results."""
        action = f"{SEARCH}: {self._needless()}"
        seen = self._env.step(action)
        self._take_in(seen.text)
        return piece_text(thought, action) + observation_text(seen.text)

    def _stated(self, latest: dict[Key, int], read: Key | None = None) -> list[str]:
        """Return sentences for the facts of the way that were not said before.

        `latest`: number of the result that states each. `read`: the fact that was searched for,
        whose need was said.
        """
        sentences: list[str] = []
        for key in solve(self._question, self._facts).used:
            if key in self._said:
                continue
            self._said.add(key)
            words = KNOWN if key in self._memory else READ if key in latest else EARLIER
            told = {"verb": "are" if len(self._facts[key]) > 1 else "is", "n": latest.get(key)}
            told |= {"what": self._what(key), "objects": ", ".join(self._facts[key])}
            need = [] if key == read else [NEED]
            sentences += [words_.format(**told) for words_ in (*need, self._rng.choice(words))]
        return sentences


def _question(fact: Fact) -> Question:
    return Question(CHAIN, (Chain(fact.subject, (fact.relation,)),))


def _name(kind: str, fact: Fact) -> str:
    return f"{kind}/{fact.relation}/{fact.subject.replace(' ', '_')}"
