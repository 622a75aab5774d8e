"""Replays an episode, and checks every observation against the first ones.

`cotjax.envs.pool` replays games after a fault by the same rule, in several slots at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from cotjax.envs.base import Game, Observation, TextEnv
from cotjax.errors import EnvError, UsageError

_SHOWN = 120  # characters of a text that a message shows, from the first that differs


def replay(
    env: TextEnv,
    game: Game,
    actions: Sequence[str],
    observations: Sequence[str],
    task: str | None = None,
) -> Observation:
    """Play `actions` and return the last observation, after which nothing has differed.

    Args:
      observations: the texts seen before: the first one, and the answer to each action. The last
        may be missing, as in a trajectory, which ends with an action.
      task: the task seen before; None: it is not compared.

    Raises:
      UsageError: there are other than as many observations as actions, or one more.
      EnvError: the task or an observation differs (the message names the game and the step, and
        shows both texts from the first character that differs), the game is over too early, or the
        environment fails.
    """
    if len(observations) not in (len(actions), len(actions) + 1):
        raise UsageError(
            f"{game.id}: {len(actions)} actions have {len(observations)} observations; give the "
            "first one, and the answer to each action"
        )
    now, seen = env.reset(game)
    _check(game, 0, now if task is None else task, now)
    _check(game, 0, observations[0] if observations else seen.text, seen.text)
    for step, action in enumerate(actions, start=1):
        if seen.done:
            raise EnvError(
                f"{game.id}, step {step}: the replay differs: the episode was over after "
                f"{step - 1} of {len(actions)} actions"
            )
        seen = env.step(action)
        if step < len(observations):
            _check(game, step, observations[step], seen.text)
    return seen


def _check(game: Game, step: int, first: str, now: str) -> None:
    if now == first:
        return
    pairs = enumerate(zip(first, now, strict=False))
    start = next((at for at, (one, other) in pairs if one != other), min(len(first), len(now)))
    where = f"step {step}" if step else "reset"
    raise EnvError(
        f"{game.id}, {where}: the replay differs at character {start}: first "
        f"{first[start : start + _SHOWN]!r}, now {now[start : start + _SHOWN]!r}"
    )
