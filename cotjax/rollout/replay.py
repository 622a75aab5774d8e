"""Environments that replay expert trajectories, for the diagnostics on expert states."""

from __future__ import annotations

from collections.abc import Mapping

from cotjax.data.trajectories import Trajectory
from cotjax.envs.base import Game, Observation


class ReplayEnvironments:
    """Slots that answer with the expert's observations, whatever action is sent.

    `trajectories`: game id -> trajectory. The episode is done after its last step.
    """

    def __init__(self, trajectories: Mapping[str, Trajectory]):
        self._trajectories = trajectories
        self._at: dict[int, tuple[Trajectory, int]] = {}  # slot -> trajectory and its next step

    def reset(self, games: dict[int, Game]) -> dict[int, tuple[str, Observation]]:
        answers = {}
        for slot, game in games.items():
            trajectory = self._trajectories[game.id]
            self._at[slot] = (trajectory, 0)
            answers[slot] = (trajectory.task, self._observation(slot))
        return answers

    def step(self, actions: dict[int, str]) -> dict[int, Observation]:
        for slot in actions:
            trajectory, step = self._at[slot]
            self._at[slot] = (trajectory, step + 1)
        return {slot: self._observation(slot) for slot in actions}

    def faults(self, slot: int) -> tuple[str, ...]:
        """Return no faults: nothing is played that could fail."""
        return ()

    def _observation(self, slot: int) -> Observation:
        trajectory, step = self._at[slot]
        if step == len(trajectory.steps):
            return Observation("", (), won=bool(trajectory.success), done=True)
        seen = trajectory.steps[step]
        # A trajectory that lists no commands is of a world that cannot list them.
        return Observation(
            seen.observation, seen.admissible_commands or None, won=False, done=False
        )
