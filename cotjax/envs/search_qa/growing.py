"""Actions of the search-QA worlds in the format of one growing text (`cotjax.formats.search`)."""

from __future__ import annotations

from cotjax.envs.search_qa.env import ANSWER, SEARCH, parse_action
from cotjax.errors import EnvError
from cotjax.formats.search import RESULT_GAP, Piece, answer_text, search_text


def action_of(piece: Piece) -> str:
    """Return the environment's action of a piece; "", which it refuses, of an invalid one."""
    if piece.query is not None:
        return f"{SEARCH}: {piece.query}"
    return "" if piece.answer is None else f"{ANSWER}: {piece.answer}"


def piece_text(thought: str | None, action: str) -> str:
    """Return a step as the piece that a model writes. Raises EnvError for a refused action."""
    wanted = parse_action(action)
    if wanted.problem is not None:
        raise EnvError(f"the action {action[:80]!r} has no place in a growing text: it is refused")
    end = search_text(wanted.text) if wanted.kind == SEARCH else answer_text(wanted.text)
    return f"{thought} {end}" if thought else end


def observation_text(observation: str) -> str:
    """Return an environment's answer to a search as it is appended to the text."""
    return f"{observation}{RESULT_GAP}"
