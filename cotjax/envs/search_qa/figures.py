"""Figures of a folder of questions, for `cotjax bench worlds`."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cotjax.envs.base import Agent, Game
from cotjax.envs.search_qa.env import RESULTS, SearchQaEnv
from cotjax.envs.search_qa.generate import TASK_TYPES, Generator, relations_of
from cotjax.envs.search_qa.library import Corpus, Page, load_corpus, read_lines
from cotjax.envs.search_qa.pages import Passage, write_pages
from cotjax.envs.search_qa.questions import solve
from cotjax.envs.search_qa.schema import Knowledge

_STEPS = 30


class Perfect:
    """A retriever that finds the passages of a question's facts whose subject a query names."""

    def __init__(self, game: Game):
        corpus, _ = load_corpus(Path(game.path).parent)
        facts = next(
            line["facts"] for _, line in read_lines(Path(game.path)) if line["id"] == game.id
        )
        self._pages = [(subject, corpus.pages[passage]) for subject, _, _, passage in facts]

    def search(self, query: str, split: str, k: int) -> list[Page]:
        """Return the passages that a query of the solver asks for."""
        return list(dict.fromkeys(page for subject, page in self._pages if subject in query))[:k]


def figure_lines(
    games: Sequence[Game], agent: Callable[[Game], Agent], knowledge: Knowledge, seed: int
) -> Iterator[str]:
    """Yield what the solver wins and a guess would win by task type, and how searches fare.

    Args:
      games: of one folder.
      agent: returns the solver for a game.
      knowledge: the facts of the folder.
      seed: of the folder.
    """
    passages = write_pages(knowledge, seed)
    guessed = majority(Generator(knowledge, passages, seed))
    by_type: dict[str, list[Game]] = defaultdict(list)
    for game in games:
        by_type[game.task_type].append(game)
    retrievers = SearchQaEnv(_STEPS), SearchQaEnv(_STEPS, Perfect)
    for task_type in TASK_TYPES:
        some = by_type.get(task_type, [])
        outcomes = [[_play(env, game, agent(game)) for game in some] for env in retrievers]
        won = [sum(won for won, _ in each) for each in outcomes]
        steps = sum(steps for _, steps in outcomes[0])
        right, total = guessed[task_type]
        played = (
            f"solver {won[0] / len(some):.1%} of {len(some)} with BM25 in {steps / len(some):.1f} "
            f"steps, {won[1] / len(some):.1%} with a perfect retriever; "
            if some
            else ""
        )
        yield (
            f"{task_type}: {played}majority guess {right / max(1, total):.1%} of all {total:,} "
            "questions"
        )
    corpus, _ = load_corpus(Path(games[0].path).parent)
    yield from _search_lines(corpus, knowledge, passages)


def majority(generator: Generator) -> dict[str, tuple[int, int]]:
    """Return task type -> (questions that the best constant guess answers, questions).

    The guess is the commonest answer of the questions that ask for the same relations, about
    entities that are held out or about the others.
    """
    knowledge = generator.knowledge
    right: dict[str, tuple[int, int]] = {}
    for task_type in TASK_TYPES:
        answers: dict[object, Counter[str]] = defaultdict(Counter)
        for question in generator.of_all_splits(task_type):
            (answer,) = solve(question, knowledge.objects).answers
            held_out = question.starts[0] in knowledge.held_out
            answers[relations_of(question), held_out][answer] += 1
        best = sum(max(counts.values()) for counts in answers.values())
        right[task_type] = best, sum(counts.total() for counts in answers.values())
    return right


def _play(env: SearchQaEnv, game: Game, agent: Agent) -> tuple[bool, int]:
    """Return (won, steps) of an episode."""
    task, seen = env.reset(game)
    agent.start(task, seen)
    steps = 0
    while not seen.done:
        seen = env.step(agent.act(seen).action)
        steps += 1
    return seen.won, steps


def _search_lines(
    corpus: Corpus, knowledge: Knowledge, passages: Sequence[Passage]
) -> Iterator[str]:
    """Yield how often the solver's queries find a fact's passage, and searches a second."""
    where = {key: each for each in passages for key in each.facts}
    found = [0, 0]
    searches = 0
    start = time.process_time()
    for fact in knowledge.facts:
        for attempt, words in enumerate(knowledge.schema.relations[fact.relation].queries):
            searches += 1
            pages = corpus.search(f"{fact.subject} {words}", "test", RESULTS)
            if where[fact.key].text in [page.text for page in pages]:
                found[attempt] += 1
                break
    seconds = max(time.process_time() - start, 1e-9)
    facts = len(knowledge.facts)
    yield (
        f"of {facts:,} facts, the first query finds {found[0] / facts:.1%} among {RESULTS} "
        f"passages, the second {found[1] / facts:.1%} more"
    )
    yield (
        f"searches/s of one core's time, over {len(corpus.pages):,} passages: "
        f"{searches / seconds:,.0f}"
    )
