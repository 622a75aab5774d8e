"""Rejected responses that the environment judged: they lead farther from the goal.

The thoughts and actions of other states of an expert's episode are tried in a state: each action is
taken in a fresh environment that replays the episode up to there, and the world's expert finishes.
An action is worse where the expert needs more steps after it than after the episode's own action,
or does not reach the goal at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ml_collections import ConfigDict

from cotjax.data.codec import Codec, Segments
from cotjax.data.pairs import Answer
from cotjax.data.trajectories import Step, Trajectory
from cotjax.envs.base import Game
from cotjax.envs.worlds import load_world
from cotjax.formats import normalize_action
from cotjax.masking import draw
from cotjax.rollout.finish import Ending, Fork, finished

CANDIDATES = 3  # actions that are tried in a state
_State = tuple[str, int]  # id of a trajectory, number of a step


class JudgedStates:
    """Rejected responses of other states, of which the environment said that they are worse."""

    def __init__(self, codec: Codec, worse: Mapping[_State, Step]):
        """`worse`: what `worse_steps` found."""
        self._codec, self._worse = codec, worse

    def __call__(self, trajectory: Trajectory, number: int, prompt: Segments) -> Answer | None:
        """As `cotjax.data.pairs.Answers`."""
        step = self._worse.get((trajectory.id, number))
        if step is None:
            return None
        thought = self._codec.thinks(step.thought or "")
        return Answer(thought, self._codec.acted(step.action), step.action)


def worse_steps(
    config: ConfigDict, seed: int, trajectories: Iterable[Trajectory], games: Sequence[Game]
) -> dict[_State, Step]:
    """Return the step of the same episode whose action is worse in a state, where one is.

    The first that is worse of at most CANDIDATES, in an order drawn by a stable hash. An episode of
    a game that is not among `games` has none, and a state to which the replay does not come.

    Raises:
      UsageError: the world's expert cannot go on from another's state.
      DataError: a game is broken.
    """
    by_id = {game.id: game for game in games}
    tried: list[tuple[_State, Step, list[Step]]] = []
    forks: list[Fork] = []
    for trajectory in trajectories:
        game = by_id.get(trajectory.game)
        for number, step in enumerate(trajectory.steps if game else ()):
            others = _candidates(trajectory, number, seed)
            if game is None or not others:
                continue
            before = trajectory.steps[: number + 1]
            tried.append(((trajectory.id, number), step, others))
            forks.append(
                Fork(
                    game=game,
                    task=trajectory.task,
                    actions=tuple(each.action for each in before[:-1]),
                    observations=tuple(each.observation for each in before),
                    taken=tuple(each.action for each in (step, *others)),
                )
            )
    worse: dict[_State, Step] = {}
    limit, workers = config.probes.revisions.limit, config.workers
    with finished(load_world(config.world), forks, limit, workers) as outcomes:
        for (state, step, others), found in zip(tried, outcomes, strict=True):
            endings = found.endings
            own = endings.get(step.action)
            for other in others:
                if own and is_worse(endings[other.action], own):
                    worse[state] = other
                    break
    return worse


def is_worse(other: Ending, own: Ending) -> bool:
    """Return whether an action's ending is worse than that of a step's own action.

    Where nothing is known of one of them, or the own action does not lead to the goal, it is not.
    """
    if other.unknown or own.unknown or own.steps is None:
        return False
    return other.steps is None or other.steps > own.steps


def _candidates(trajectory: Trajectory, number: int, seed: int) -> list[Step]:
    """Return steps with other actions that are admissible in a state, each action once."""
    here = trajectory.steps[number]
    if not here.trained or here.thought is None:
        return []
    allowed = {normalize_action(command) for command in here.admissible_commands or ()}
    allowed.discard(normalize_action(here.action))
    by_action: dict[str, Step] = {}
    for step in trajectory.steps:
        action = normalize_action(step.action)
        if step.thought is not None and action in allowed:
            by_action.setdefault(action, step)
    key = f"judged/{trajectory.id}/{number}"
    drawn = sorted(by_action, key=lambda action: draw(seed, f"{key}/{action}"))
    return [by_action[action] for action in drawn[:CANDIDATES]]
