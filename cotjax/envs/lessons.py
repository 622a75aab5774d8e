"""What a world teaches the stages of AutoCoA (arXiv 2503.06580), as texts.

A `Lesson` is a growing text (`cotjax.formats.search`) behind its question, or, without a question,
a plain text. A `Choice` is a question, the beginning of its growing text, and two ways to go on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cotjax.envs.base import Game


@dataclass(frozen=True)
class Lesson:
    """A text to be trained on.

    task, observation: the question, and what the environment says first; "" for a plain text.
    text: the growing text, from behind `<think>` to the end of the answer.
    slips: pieces, from 0, that are mistakes: the text goes on after them, and nothing is learned
      from them.
    """

    id: str
    task: str
    observation: str
    text: str
    slips: tuple[int, ...] = ()


@dataclass(frozen=True)
class Choice:
    """Two ways to go on with a growing text.

    text: what both begin with; "" where they differ from the first word on.
    chosen, rejected: what follows it.
    searches: the chosen one searches, and the other does not; else the reverse.
    """

    id: str
    task: str
    observation: str
    text: str
    chosen: str
    rejected: str
    searches: bool


@dataclass(frozen=True)
class Recall:
    """A question about one fact, to be answered from memory.

    known: the fact is taught.
    candidates: how many answers such a question can have, all of them as common.
    """

    id: str
    task: str
    observation: str
    answer: str
    known: bool
    candidates: int


class Lessons(Protocol):
    """The lessons of one folder of games. The same folder and seed give the same texts."""

    def facts(self) -> Iterator[Lesson]:
        """Yield texts that state the known facts, and questions about single ones of them."""

    def recalls(self) -> list[Recall]:
        """Return a question about each fact, known or not."""

    def by_own_facts(
        self, asked: Mapping[str, Any], known: Collection[str] | None = None
    ) -> Lessons | None:
        """Return the same lessons where a model's own facts are the known ones.

        They are kept with the games, so that episodes are judged by them, too.

        Args:
          asked: which model was asked, and how.
          known: ids of the recalls whose facts it knows; None: those that are kept.

        Returns None where `known` is None and nothing, or something else, was asked.
        """

    def choices(self, count: int) -> list[Choice]:
        """Return choices, half in each direction.

        Where the next fact is unknown, a search is chosen over a guess; where it is known, its
        statement over a search. They are about facts of training questions alone.

        Raises UsageError when there are not so many.
        """

    def held_out_choices(self, most: int) -> list[Choice]:
        """Return at most so many choices about facts of no training question, half in each
        direction: for measuring.
        """

    def written(self, games: Sequence[Game]) -> list[Lesson]:
        """Return the expert's episode of each of these games that it wins, named by the game's id.

        They may be test questions, for measuring.
        """

    def episodes(self, searching: int, thinking: int, slips: float = 0.0) -> list[Lesson]:
        """Return won episodes of training questions: with a search, and from memory alone.

        `slips`: share of the searches before which there is a needless one, a mistake.

        Raises UsageError when there are not so many.
        """
