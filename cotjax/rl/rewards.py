"""From an episode to its reward and to the penalties of its steps."""

from __future__ import annotations

from typing import Any

from cotjax.rl.advantages import Played
from cotjax.rl.records import name_of
from cotjax.rollout.record import Episode, Response, Turn

WIN, EXACT, F1, AUTOCOA = "win", "em", "f1", "autocoa"
REWARDS = (WIN, EXACT, F1, AUTOCOA)


def as_played(episode: Episode, position: int, settings: Any) -> Played:
    """Return what advantages need to know of an episode.

    The reward "win" is win_reward for a won game plus score_reward times the score at the end, "em"
    1 for a won one; the others are the score at the end, which of "autocoa" is the world's
    `published_reward`. Penalties are of single steps, and not in it: format_penalty of a malformed
    response, or refused_penalty where the environment refused a well-formed one's action.

    `position`: names the group. `settings`: `config.rl`.
    """
    if settings.reward == WIN:
        reward = settings.win_reward * episode.success
        reward += settings.score_reward * (episode.score or 0.0)
    else:
        reward = float(episode.success if settings.reward == EXACT else episode.score or 0.0)
    return Played(
        name=name_of(episode),
        group=position,
        reward=reward,
        penalties=tuple(_penalty(turn, settings) for turn in episode.steps),
    )


def _penalty(turn: Turn, settings: Any) -> float:
    if is_invalid(turn, settings.need_thought):
        return float(settings.format_penalty)
    return float(settings.refused_penalty) if turn.accepted is False else 0.0


def is_invalid(turn: Turn, need_thought: bool) -> bool:
    """Return whether a turn's CoT response is malformed, or lacks the thought that it needs.

    Without thoughts a CoT action would be a prompt action, and nothing could be compared.
    """
    response = response_of(turn)
    return not response.valid or (need_thought and not has_thought(response))


def has_thought(response: Response) -> bool:
    """Return whether a response reasons."""
    return bool((response.thought or "").strip())


def response_of(turn: Turn) -> Response:
    """Return the CoT response that was played."""
    assert turn.cot is not None, "a policy is trained on its CoT responses"
    return turn.cot
