"""Actions of the search-QA worlds in the format of one growing text (`cotjax.formats.search`)."""

from __future__ import annotations

from dataclasses import dataclass

from cotjax.envs.search_qa.env import ANSWER, SEARCH, parse_action
from cotjax.errors import EnvError
from cotjax.formats.search import RESULT_GAP, Piece
from cotjax.formats.search import piece_text as text_of


@dataclass(frozen=True)
class SearchPieces:
    """Searches and answers as pieces (a `cotjax.formats.search.Growing`).

    `instruction`: as of `World`.
    """

    instruction: str = ""

    def action_of(self, piece: Piece) -> str:
        """Return the environment's action of a piece.

        An invalid search is an empty query, which the environment refuses and counts as a search;
        any other invalid piece is "".
        """
        if piece.searched:
            return f"{SEARCH}: {piece.query or ''}".strip()
        return "" if piece.answer is None else f"{ANSWER}: {piece.answer}"

    def piece_of(self, thought: str | None, action: str) -> Piece:
        """Return a step as a piece. Raises EnvError for an action that is refused."""
        wanted = parse_action(action)
        if wanted.problem is not None:
            raise EnvError(
                f"the action {action[:80]!r} has no place in a growing text: it is refused"
            )
        if wanted.kind == SEARCH:
            return Piece(thought or "", query=wanted.text, searched=True)
        return Piece(thought or "", answer=wanted.text)


def piece_text(thought: str | None, action: str) -> str:
    """Return a step as the piece that a model writes. Raises EnvError for a refused action."""
    return text_of(SearchPieces().piece_of(thought, action))


def observation_text(observation: str) -> str:
    """Return an environment's answer to a search as it is appended to the text."""
    return f"{observation}{RESULT_GAP}"
