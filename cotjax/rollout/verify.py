"""Replays trajectories in their world: does it answer today what was written down?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from cotjax.data.trajectories import UNKNOWN, Trajectory
from cotjax.envs.base import Game, TextEnv
from cotjax.envs.replay import replay
from cotjax.envs.worlds import World
from cotjax.errors import CotjaxError, UsageError
from cotjax.rollout.workers import outcomes


@dataclass(frozen=True)
class Replayed:
    """The outcome of one replay.

    Attributes:
      trajectory: what was replayed. Where nothing differs it has what the replay tells and the
        file left open: its world, and whether it was won.
      fault: what differs, with the game and the step; None where nothing does.
    """

    trajectory: Trajectory
    fault: str | None


def games_of(
    world: World, root: str | os.PathLike[str], trajectories: Sequence[Trajectory]
) -> dict[tuple[str, str], Game]:
    """Return (split, id) -> game, of the splits that the trajectories name.

    `root`: as for `World.games`, which says what is raised. A split that the world does not have
    gives no games.
    """
    known = {*world.splits, *world.axes}  # made games of an axis are a split of their own
    splits = sorted({trajectory.split for trajectory in trajectories} & known)
    return {(split, game.id): game for split in splits for game in world.games(root, split)}


def verify(
    world: World,
    games: dict[tuple[str, str], Game],
    trajectories: Sequence[Trajectory],
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Replayed]:
    """Yield the outcome of each trajectory's replay, in their order.

    Compared are the task, every observation, and whether the episode was won, where the trajectory
    says so. One of an unknown world is replayed too: the world's answers show whose it is.

    Args:
      workers: processes; 0 and 1 play in this one.
      progress: called with (episodes done, episodes in all) after each.

    Raises UsageError for trajectories of another world.
    """
    for trajectory in trajectories:
        if trajectory.environment not in (world.name, UNKNOWN):
            raise UsageError(
                f"the trajectory {trajectory.id!r} is of {trajectory.environment!r}, not of "
                f"{world.name!r}: name its world with --world"
            )
    jobs = [
        (trajectory, games.get((trajectory.split, trajectory.game))) for trajectory in trajectories
    ]
    longest = max((len(trajectory.steps) for trajectory in trajectories), default=1)
    with outcomes(partial(_Replaying, world, longest), jobs, workers) as replays:
        for done, (trajectory, replayed) in enumerate(zip(trajectories, replays, strict=True), 1):
            fault, won = replayed
            if progress is not None:
                progress(done, len(jobs))
            if fault is None:
                trajectory = replace(trajectory, environment=world.name, success=won)
            yield Replayed(trajectory, fault)


class _Replaying:
    """One process's environment."""

    def __init__(self, world: World, max_steps: int):
        # One step more than the longest episode, so that no limit ends it.
        self._env: TextEnv = world.make_env(max_steps + 1)()

    def do(self, job: tuple[Trajectory, Game | None]) -> tuple[str | None, bool]:
        """Return what differs in the replay of one trajectory, and whether the replay was won."""
        trajectory, game = job
        if game is None:
            return f"{trajectory.game}: there is no such game in split {trajectory.split!r}", False
        try:
            actions, observations = (
                [getattr(step, name) for step in trajectory.steps]
                for name in ("action", "observation")
            )
            last = replay(self._env, game, actions, observations, task=trajectory.task)
        except CotjaxError as error:
            return str(error), False
        if trajectory.success is not None and trajectory.success != last.won:
            said, now = ("won" if won else "not won" for won in (trajectory.success, last.won))
            return f"{game.id}: the trajectory says {said}, the replay is {now}", last.won
        return None, last.won

    def close(self) -> None:
        self._env.close()
