"""What an action leads to: the way to the goal that the world's expert finds after it.

A fresh environment replays an episode up to a state, takes the action there, and the expert goes on
from what was seen on the way. Every observation of the replay is compared with the first one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from cotjax.envs.base import Agent, Game, Observation, Successor, TextEnv
from cotjax.envs.replay import replay
from cotjax.envs.worlds import AgentSettings, World
from cotjax.errors import EnvError, UsageError
from cotjax.rollout.workers import outcomes


@dataclass(frozen=True)
class Fork:
    """A state of a played episode, and actions to take in it, each on its own.

    Attributes:
      actions: what was executed up to the state.
      observations: what was seen: the first one, and the answer to each action.
      taken: the actions to try; no two are equal.
    """

    game: Game
    task: str
    actions: tuple[str, ...]
    observations: tuple[str, ...]
    taken: tuple[str, ...]


@dataclass(frozen=True)
class Ending:
    """How an episode ends after an action.

    Attributes:
      steps: the expert's steps to the goal after the action, 0 where the action itself reaches it;
        None where the goal is not reached: the episode is lost, or the limit is.
      unknown: why nothing is known about it; None where something is.
    """

    steps: int | None
    unknown: str | None = None


@dataclass(frozen=True)
class Forked:
    """The outcome of a `Fork`.

    Attributes:
      endings: action -> how the episode ends after it; empty where the replay differs.
      differs: what differs in the replay, with the game and the step; None where nothing does.
    """

    endings: Mapping[str, Ending] = field(default_factory=dict)
    differs: str | None = None


@contextmanager
def finished(
    world: World, forks: Sequence[Fork], limit: int, workers: int
) -> Iterator[Iterator[Forked]]:
    """Yield the outcomes of forks, in their order.

    Args:
      limit: the most steps that the expert may take after an action.
      workers: processes; 0 and 1 play in this one.

    Raises:
      UsageError: the world's expert cannot go on from where another agent has come to.
      DataError: a game is broken.
    """
    longest = max((len(fork.actions) for fork in forks), default=0)
    with outcomes(partial(_Finisher, world, limit, longest), forks, workers) as found:
        yield found


class _Watched:
    """An environment that remembers the observations of its game."""

    def __init__(self, env: TextEnv):
        self._env = env
        self.seen: list[Observation] = []

    def reset(self, game: Game) -> tuple[str, Observation]:
        task, observation = self._env.reset(game)
        self.seen = [observation]
        return task, observation

    def step(self, action: str) -> Observation:
        self.seen.append(self._env.step(action))
        return self.seen[-1]

    def close(self) -> None:
        self._env.close()


class _Finisher:
    """One process's environment."""

    def __init__(self, world: World, limit: int, longest: int):
        self._world, self._limit = world, limit
        # One step more than any episode can have, so that the environment's own limit ends none.
        self._env = _Watched(world.make_env(longest + limit + 2)())
        self._expert: tuple[Game, Agent] | None = None

    def do(self, fork: Fork) -> Forked:
        endings = {}
        for action in fork.taken:
            try:
                last = replay(self._env, fork.game, fork.actions, fork.observations, task=fork.task)
            except EnvError as error:
                return Forked(differs=str(error))
            if last.done:
                return Forked(differs=f"{fork.game.id}: the replay is over before the state")
            endings[action] = self._ending(fork, action)
        return Forked(endings)

    def close(self) -> None:
        self._env.close()

    def _ending(self, fork: Fork, action: str) -> Ending:
        """Take an action in the state that was replayed, and let the expert finish."""
        first, *answers = self._env.seen
        try:
            expert = self._expert_of(fork.game)
            expert.start(fork.task, first)
            for executed, answer in zip(fork.actions, answers, strict=True):
                expert.follow(executed, answer)
            observation = self._env.step(action)
            expert.follow(action, observation)
            steps = 0
            while not observation.done and steps < self._limit:
                observation = self._env.step(expert.act(observation).action)
                steps += 1
        except EnvError as error:
            return Ending(None, str(error))
        return Ending(steps if observation.won else None)

    def _expert_of(self, game: Game) -> Successor:
        """Return the game's expert, kept for its next fork: to make one may take seconds."""
        if self._expert is None or self._expert[0] != game:
            self._expert = game, self._world.agent("expert", 0, AgentSettings(game=game))
        expert = self._expert[1]
        if not isinstance(expert, Successor):
            raise UsageError(
                f"the expert of world {self._world.name!r} cannot go on from where another agent "
                "has come to: it has no method `follow` (cotjax.envs.base.Successor)"
            )
        return expert
