"""The search-QA worlds behind the door of `cotjax.envs.worlds`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from cotjax.envs.base import Agent, Game, TextEnv
from cotjax.envs.search_qa import invented
from cotjax.envs.search_qa.env import ANSWER, FIRST, LIMIT, NOTHING_FOUND, SEARCH, SearchQaEnv
from cotjax.envs.search_qa.generate import (
    FOUR_HOPS,
    NEW_CHAINS,
    OOD_ENTITIES,
    SHARES,
    TASK_TYPES,
    THREE_HOPS,
)
from cotjax.envs.search_qa.library import load_known, load_questions
from cotjax.envs.search_qa.make import make_questions
from cotjax.envs.search_qa.schema import Knowledge, load_schema
from cotjax.envs.search_qa.solver import PHRASES, Solver
from cotjax.envs.worlds import IN_DOMAIN, AgentSettings, World
from cotjax.errors import UsageError
from cotjax.runtime.files import local_path

# Task type -> its OOD domain; all others are in-domain.
_OOD = {NEW_CHAINS: "ood_chains", THREE_HOPS: "ood_hops", FOUR_HOPS: "ood_hops"}
INSTRUCTION = """\
You answer a question with the help of a search engine. It searches a small encyclopedia, whose \
facts you cannot know otherwise, and shows the three passages that fit the words of your query \
best. Your actions are:
search: (query of at most 32 words)
answer: (the name that is asked for, and nothing else)
You can search 10 times. The first answer ends the episode.
In each turn, reason about what to do next between <think> and </think>, then give exactly one \
action between <action> and </action>, and write nothing else, as here:
<think>I need the birthplace of Bel Tor Na, so I search for it.</think>\
<action>search: Bel Tor Na birthplace</action>"""


class SearchQa(World):
    """Questions over invented facts, with a maker and a solver.

    Args:
      scale: factor on the number of entities; 1 gives 1,176 of them, with a page each.
    """

    domains = MappingProxyType({task: _OOD.get(task, IN_DOMAIN) for task in TASK_TYPES})
    axes = MappingProxyType({OOD_ENTITIES: "questions about entities that training never shows"})
    splits = tuple(SHARES)
    agents = ("expert", "recaller", "guesser")
    makes_games = True
    lists_commands = False
    task_text = "Question: {task}"
    instruction = INSTRUCTION

    def __init__(self, name: str = "search_qa", title: str = "Search QA", scale: int = 1):
        self.name, self.title, self._scale = name, title, scale
        self._source = "invented"

    def axes_of(self, game: Game) -> frozenset[str]:
        return frozenset({OOD_ENTITIES} & {game.split})

    def games(
        self, root: str | os.PathLike[str], split: str, left_out: Counter[str] | None = None
    ) -> list[Game]:
        if not root:
            raise UsageError(
                f"world {self.name!r} needs a folder of questions: make one with `cotjax games "
                f"make --world {self.name}`"
            )
        file = local_path(os.fspath(root)) / f"{split}.jsonl"
        if not file.is_file():
            raise UsageError(
                f"{root}: no questions of split {split!r} in it; make them with `cotjax games make "
                f"--world {self.name} --split {split}`"
            )
        questions = load_questions(file)
        return [
            Game(id_, str(file), split, question.task_type)
            for id_, question in sorted(questions.items())
        ]

    def make_env(self, max_steps: int, games_kept: int | None = None) -> Callable[[], TextEnv]:
        return partial(SearchQaEnv, max_steps)

    def make_games(
        self,
        out: Path,
        counts: Mapping[str, Mapping[str, int]],
        seed: int,
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Game]:
        source = f"{self._source} x {self._scale}"
        return make_questions(Path(out), counts, seed, source, self._knowledge, progress)

    def words(self) -> Iterator[str]:
        yield from (syllable.title() for syllable in invented.syllables(self._scale))
        yield from map(str, invented.numbers(self._scale))
        for relation in load_schema(self._source).relations.values():
            yield from (*relation.asks, *relation.states, *relation.inverse, *relation.queries)
            yield f"Which {relation.object} is both {relation.common} and {relation.more}: or?"
        yield "Who is What Question: What is? are"
        yield from (FIRST, LIMIT, NOTHING_FOUND, f"{SEARCH}: {ANSWER}: unknown result 1 2 3")
        yield "<search_result> </search_result> Invalid: action. Your answer is right. wrong."
        yield from PHRASES

    def agent(self, name: str, seed: int, settings: AgentSettings) -> Agent:
        """Return the solver; "recaller" remembers known facts, "guesser" also never searches."""
        self.check_agent(name)
        schema = load_schema(self._source)
        if name == "expert":
            return Solver(schema, seed, settings.mistakes)
        if settings.game is None:
            raise UsageError(f"{name} remembers facts of the game's folder: give it the game")
        memory = load_known(Path(settings.game.path).parent)
        return Solver(schema, seed, settings.mistakes, memory, searches=name == "recaller")

    def _knowledge(self, seed: int) -> Knowledge:
        return invented.invent(seed, self._scale)


WORLD = SearchQa()
# About ten thousand pages: --config.world=cotjax.envs.search_qa:LARGE
LARGE = SearchQa("search_qa_large", "Search QA, ten times as large", scale=10)
