"""Rows that list their steps, as environments and replays record them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cotjax.data.importing.messages import FLAGS, read_flags
from cotjax.data.importing.steps import Episode, imported_step
from cotjax.data.importing.tasks import split_task
from cotjax.data.importing.unmapped import Unmapped
from cotjax.data.trajectories import Step

STEPS_FIELDS = ("steps", "n_steps", "invalid_actions")
STEP_FIELDS = frozenset(
    ("observation", "admissible_commands", "thought", "action", "valid", *FLAGS)
)


def as_recorded(row: dict[str, Any]) -> Episode:
    """Return the episode of a row with `steps`.

    An action that the environment refused (`valid` false) is not trained on. Raises Unmapped.
    """
    recorded = row.get("steps")
    if not isinstance(recorded, list) or not recorded:
        raise Unmapped("steps must be a list of steps")
    steps = [_step(step, f"step {number}") for number, step in enumerate(recorded)]
    _check_count(row, "n_steps", len(steps))
    _check_count(row, "invalid_actions", sum(step.get("valid") is False for step in recorded))
    task, observation = split_task(steps[0].observation, tools=False)
    first = replace(steps[0], observation=observation.strip("\n").rstrip())
    return Episode(task, [first, *steps[1:]])


def _step(step: Any, where: str) -> Step:
    if not isinstance(step, dict):
        raise Unmapped("a step must be an object", where)
    observation, action = step.get("observation"), step.get("action")
    if not isinstance(observation, str) or not isinstance(action, str):
        raise Unmapped("a step needs 'observation' and 'action'", where)
    thought = step.get("thought") or ""
    if not isinstance(thought, str):
        raise Unmapped("its thought is not a string", where)
    commands = step.get("admissible_commands") or []
    if not isinstance(commands, list) or not all(isinstance(each, str) for each in commands):
        raise Unmapped("its admissible_commands are not a list of strings", where)
    if step.get("valid") not in (None, False, True):
        raise Unmapped("its 'valid' must be true or false", where)
    trained = read_flags(step, where) and step.get("valid") is not False
    return imported_step(observation, thought.strip() or None, action, commands, trained)


def _check_count(row: dict[str, Any], name: str, counted: int) -> None:
    """Raise Unmapped where the row states another count, as that of a cut row does."""
    if row.get(name) not in (None, counted):
        raise Unmapped(f"its {name!r} does not match its steps")
