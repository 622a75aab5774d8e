"""The search environment: it answers queries with passages, and scores the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cotjax.envs.base import Game, Observation, in_play
from cotjax.envs.search_qa.library import Page, Retriever, load_corpus, load_questions
from cotjax.envs.search_qa.scoring import exact_match, f1
from cotjax.errors import DataError, EnvError, UsageError
from cotjax.formats import search

MOST_SEARCHES, RESULTS = 10, 3
LONGEST = 32  # words of a query or an answer
SEARCH, ANSWER = "search", "answer"
FIRST = f"You can search {MOST_SEARCHES} times."
LIMIT = "The maximum search limit is exceeded. You are not allowed to search."
NOTHING_FOUND = "no result"
_ACTION = re.compile(rf"({SEARCH}|{ANSWER})\s*:\s*(.*)", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"</?[A-Za-z]")


@dataclass(frozen=True)
class SearchAction:
    """A parsed action. `problem`: why it is refused; None if it is carried out."""

    kind: str
    text: str
    problem: str | None = None


def parse_action(action: str) -> SearchAction:
    """Return what an action asks for: "search: QUERY" or "answer: TEXT"."""
    match = _ACTION.fullmatch(action.strip())
    if match is None:
        return SearchAction("", "", f'give "{SEARCH}: QUERY" or "{ANSWER}: TEXT"')
    kind, text = match[1].lower(), match[2].strip()
    name = "query" if kind == SEARCH else "answer"
    if not text:
        return SearchAction(kind, "", f"the {name} is empty")
    if not text.isprintable():
        return SearchAction(kind, "", f"the {name} has a control character")
    if _TAG.search(text):
        return SearchAction(kind, "", f"the {name} has a tag")
    # Characters are counted too, because a script without spaces is one word.
    if len(text.split()) > LONGEST or len(text) > LONGEST * 32:
        return SearchAction(kind, "", f"the {name} has more than {LONGEST} words")
    return SearchAction(kind, text)


def result_text(pages: Sequence[Page]) -> str:
    """Return the block of results that follows a search."""
    found = [f"{page.title}: {page.text}" for page in pages]
    return search.result_text(found).strip() if found else _block(NOTHING_FOUND)


def _block(text: str) -> str:
    return search.result_block(text).strip()


class SearchQaEnv:
    """Plays one question at a time. Its actions are those of `parse_action`.

    An answer ends the episode; it is won by an exact match, and its score is the F1. A query that
    is refused counts as a search, any refused action as a step.

    Args:
      max_steps: the episode is done after this many steps, won or not.
      retriever: in place of the corpus of the game's folder.
    """

    def __init__(self, max_steps: int = 30, retriever: Callable[[Game], Retriever] | None = None):
        if max_steps < 1:
            raise UsageError(f"max_steps must be at least 1: got {max_steps}")
        self._max_steps = max_steps
        self._retriever_of = retriever or _corpus_of
        self._game: Game | None = None
        self._steps = self._searches = 0
        self._done = False

    def reset(self, game: Game) -> tuple[str, Observation]:
        """Return the question and the first observation. Raises DataError for broken files."""
        self._game = None
        questions = load_questions(Path(game.path))
        if game.id not in questions:
            raise DataError(f"{game.path}: no question has the id {game.id!r}; make it again")
        self._retriever = self._retriever_of(game)
        self._question = questions[game.id]
        self._game, self._steps, self._searches, self._done = game, 0, 0, False
        return self._question.text, self._observation(FIRST)

    def step(self, action: str) -> Observation:
        """Search, or end the episode with an answer."""
        in_play(self._game, self._steps, self._done)
        self._steps += 1
        wanted = parse_action(action)
        if wanted.kind == SEARCH:
            return self._search(wanted)
        if wanted.problem:
            return self._observation(f"Invalid action: {wanted.problem}.", accepted=False)
        golds = self._question.answers
        won = exact_match(wanted.text, golds)
        text = "Your answer is right." if won else "Your answer is wrong."
        return self._observation(text, won, True, score=f1(wanted.text, golds))

    def close(self) -> None:
        """Leave the question."""
        self._game = None

    def _search(self, wanted: SearchAction) -> Observation:
        assert self._game is not None
        if self._searches >= MOST_SEARCHES:
            return self._observation(_block(LIMIT), accepted=False)
        self._searches += 1
        if wanted.problem:
            return self._observation(_block(f"Invalid: {wanted.problem}."), accepted=False)
        try:
            pages = self._retriever.search(wanted.text, self._game.split, RESULTS)
        except Exception as error:
            # Never an observation: the policy would be trained on the failure of a server.
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise EnvError(
                f"{self._game.id}, step {self._steps}: the retrieval failed ({reason})"
            ) from error
        return self._observation(result_text(pages))

    def _observation(
        self,
        text: str,
        won: bool = False,
        answered: bool = False,
        accepted: bool = True,
        score: float = 0.0,
    ) -> Observation:
        self._done = answered or self._steps >= self._max_steps
        return Observation(text, None, won, self._done, accepted, score)


def _corpus_of(game: Game) -> Retriever:
    folder = Path(game.path).parent
    corpus, hash_ = load_corpus(folder)
    wanted = load_questions(Path(game.path))[game.id].corpus
    if wanted != hash_:
        raise DataError(
            f"{folder / 'corpus.jsonl'} is not the corpus that {game.id} was made for "
            f"({hash_[:12]}, not {wanted[:12]}); make the questions again"
        )
    return corpus
