"""Oddities of an episode: what the schema allows but its author may not have meant."""

from __future__ import annotations

from cotjax.data.trajectories import Trajectory
from cotjax.formats import TAGS

NOT_ADMISSIBLE = "actions not among their admissible commands"
SEVERAL_LINES = "actions of several lines (cotjax's own environments read them as one)"
OTHER_CASE = "steps with a response tag in another case, as <Action>, which is plain text"
CONTRADICTION = (
    "episodes whose reward contradicts their success (lost with 1 or more, won with 0 or less)"
)
NOTHING_TRAINED = "episodes without a step to train on"


def oddities(trajectory: Trajectory) -> list[str]:
    """Return the oddities of an episode, one entry per occurrence. They are not errors."""
    odd = []
    for step in trajectory.steps:
        if step.admissible_commands and step.action not in step.admissible_commands:
            odd.append(NOT_ADMISSIBLE)
        if "\n" in step.action:
            odd.append(SEVERAL_LINES)
        texts = (step.observation, step.thought or "", step.action)
        if any("<" in text and any(tag in text.lower() for tag in TAGS) for text in texts):
            odd.append(OTHER_CASE)  # in lower case the schema rejects them
    success, reward = trajectory.success, trajectory.reward
    if reward is not None and (
        (success is False and reward >= 1) or (success is True and reward <= 0)
    ):
        odd.append(CONTRADICTION)
    if not any(step.trained for step in trajectory.steps):
        odd.append(NOTHING_TRAINED)
    return odd
