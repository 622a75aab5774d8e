"""Replays expert trajectories as if they were environments: for the offline diagnostics on held-out expert states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cotjax.envs.base import Game, Observation


class ReplayEnvironments:
    """Slots that answer with what the expert saw, whatever is sent: the states are the expert's.

    `trajectories`: game id -> a trajectory (`cotjax.data.trajectories.Trajectory`). The episode is done after its last step.
    """

    def __init__(self, trajectories: Mapping[str, Any]):
        self._trajectories = trajectories
        self._at: dict[int, tuple[Any, int]] = {}

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
        """None: nothing is played that could fail."""
        return ()

    def _observation(self, slot: int) -> Observation:
        trajectory, step = self._at[slot]
        if step == len(trajectory.steps):
            return Observation("", (), won=trajectory.success, done=True)
        seen = trajectory.steps[step]
        return Observation(seen.observation, seen.admissible_commands, won=False, done=False)
