"""The search-QA worlds behind the door of `cotjax.envs.worlds`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from cotjax.envs.base import Agent, Game, SearchCounts, TextEnv
from cotjax.envs.search_qa import invented, packages
from cotjax.envs.search_qa.bm25 import words_of
from cotjax.envs.search_qa.env import (
    ANSWER,
    FIRST,
    LIMIT,
    NOTHING_FOUND,
    SEARCH,
    SearchQaEnv,
    parse_action,
)
from cotjax.envs.search_qa.figures import figure_lines
from cotjax.envs.search_qa.generate import (
    FOUR_HOPS,
    NEW_CHAINS,
    OOD_ENTITIES,
    SHARES,
    TASK_TYPES,
    THREE_HOPS,
)
from cotjax.envs.search_qa.growing import SearchPieces
from cotjax.envs.search_qa.judging import judge
from cotjax.envs.search_qa.lessons import QaLessons
from cotjax.envs.search_qa.library import load_known, load_questions, seed_of, source_of
from cotjax.envs.search_qa.make import make_questions
from cotjax.envs.search_qa.real import real_facts, real_words
from cotjax.envs.search_qa.schema import Knowledge, load_schema
from cotjax.envs.search_qa.scoring import normalize, published_reward
from cotjax.envs.search_qa.solver import PHRASES, Solver
from cotjax.envs.worlds import IN_DOMAIN, AgentSettings, World
from cotjax.errors import UsageError
from cotjax.runtime.files import local_path

# Task type -> its OOD domain; all others are in-domain.
_OOD = {NEW_CHAINS: "ood_chains", THREE_HOPS: "ood_hops", FOUR_HOPS: "ood_hops"}
INVENTED, REAL_FACTS = "invented", "real"  # sources of facts
_INSTRUCTION = """\
You answer a question with the help of a search engine. It searches a small encyclopedia{about}, \
and shows the three passages that fit the words of your query best. Your actions are:
search: (query of at most 32 words)
answer: (the name that is asked for, and nothing else)
You can search 10 times. The first answer ends the episode.
In each turn, reason about what to do next between <think> and </think>, then give exactly one \
action between <action> and </action>, and write nothing else, as here:
<think>I need the {what}, so I search for it.</think>\
<action>search: {query}</action>"""
# The same for one growing text.
_GROWING = """\
You answer a question with the help of a search engine. It searches a small encyclopedia{about}, \
and shows the three passages that fit the words of your query best. Reason about the question. \
Where you need a fact that you do not know, write a query of at most 32 words as below. The \
results follow, and you go on. You can search 10 times. When you know the answer, end your \
reasoning and give the name that is asked for, and nothing else, as here:
<think> I need the {what}. <begin_search> {query} </end_search><search_result> … </search_result>

Result 1 says that the {what} is {answer}. </think>

\\boxed{{{answer}}}"""
# Source -> what differs in the instruction.
_ABOUT = {
    INVENTED: {
        "about": ", whose facts you cannot know otherwise",
        "what": "birthplace of Bel Tor Na",
        "query": "Bel Tor Na birthplace",
        "answer": "Jor Ko Po",
    },
    REAL_FACTS: {
        "about": " of cities, countries and chemical elements",
        "what": "capital of Norway",
        "query": "Norway capital",
        "answer": "Oslo",
    },
}
INSTRUCTIONS = {source: _INSTRUCTION.format(**about) for source, about in _ABOUT.items()}
_PIECES = {source: SearchPieces(_GROWING.format(**about)) for source, about in _ABOUT.items()}


class SearchQa(World):
    """Questions over invented or real facts, with a maker and a solver.

    Args:
      scale: factor on the number of invented entities; 1 gives 1,176 of them, with a page each.
      source: INVENTED or REAL_FACTS, which are read from other packages.
    """

    domains = MappingProxyType({task: _OOD.get(task, IN_DOMAIN) for task in TASK_TYPES})
    axes = MappingProxyType({OOD_ENTITIES: "questions about entities that training never shows"})
    splits = tuple(SHARES)
    agents = ("expert", "recaller", "guesser")
    sources = (INVENTED, REAL_FACTS)
    makes_games = True
    lists_commands = False
    task_text = "Question: {task}"

    def __init__(
        self,
        name: str = "search_qa",
        title: str = "Search QA",
        scale: float = 1,
        source: str = INVENTED,
    ):
        self.name, self.title, self._scale, self._source = name, title, scale, source
        self.instruction, self.growing = INSTRUCTIONS[source], _PIECES[source]

    def of_source(self, source: str) -> World:
        self.check_source(source)
        return self if source == self._source else {INVENTED: WORLD, REAL_FACTS: REAL}[source]

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
        if (source := source_of(file.parent)) not in (self._source, None):
            raise UsageError(
                f"{root}: these questions are over {source} facts, and world {self.name!r} has "
                f"{self._source} ones: give --source {source}, or as config.world "
                f"{'search_qa' if source == INVENTED else 'cotjax.envs.search_qa:REAL'}"
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
        said = ""
        source = f"{INVENTED} x {self._scale}"
        if self._source == REAL_FACTS:
            versions = packages.versions()
            each = ", ".join(f"{name} {version}" for name, version in versions.items())
            source, said = f"{REAL_FACTS}: {each}", packages.notice(versions)
        return make_questions(Path(out), counts, seed, source, self._knowledge, said, progress)

    def meaning(self, action: str) -> Hashable:
        wanted = parse_action(action)
        read = words_of(wanted.text) if wanted.kind == SEARCH else [normalize(wanted.text)]
        return (wanted.kind, wanted.problem, *read)

    def judge_searches(
        self, game: Game, task: str, seen: Sequence[str], actions: Sequence[str]
    ) -> SearchCounts:
        return judge(game, load_schema(self._source), task, seen, actions)

    def published_reward(self, game: Game, action: str) -> float:
        wanted = parse_action(action)
        if wanted.kind != ANSWER or wanted.problem is not None:
            return 0.0
        return published_reward(wanted.text, load_questions(Path(game.path))[game.id].answers)

    def words(self) -> Iterator[str]:
        if self._source == REAL_FACTS:
            yield from real_words()
        else:
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

    def lessons(self, root: str | os.PathLike[str], seed: int) -> QaLessons:
        """Return the lessons of a folder of questions, by the facts that are `known`."""
        games = self.games(root, "train")
        made = seed_of(Path(games[0].path).parent)
        return QaLessons(self._knowledge(made), games, seed, made)

    def figure_lines(self, games: Sequence[Game]) -> Iterator[str]:
        """Yield lines by task type on the solver and a guess, and lines on searches."""
        seed = seed_of(Path(games[0].path).parent)

        def solver(game: Game) -> Agent:
            return self.agent("expert", 0, AgentSettings(game=game))

        return figure_lines(games, solver, self._knowledge(seed), seed)

    def _knowledge(self, seed: int) -> Knowledge:
        if self._source == REAL_FACTS:
            return real_facts(seed)
        return invented.invent(seed, self._scale)


WORLD = SearchQa()
# --config.world=cotjax.envs.search_qa:REAL, or --source real
REAL = SearchQa("search_qa_real", "Search QA over real facts", source=REAL_FACTS)
# A quarter of the entities, so that a tiny model learns the known facts by heart in minutes:
# --config.world=cotjax.envs.search_qa:SMALL
SMALL = SearchQa("search_qa_small", "Search QA, a small world", scale=0.25)
# About ten thousand pages: --config.world=cotjax.envs.search_qa:LARGE
LARGE = SearchQa("search_qa_large", "Search QA, ten times as large", scale=10)
