"""The stages of AutoCoA that a config names, with the values of each resolved and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cotjax.config import STAGE_FIELDS
from cotjax.errors import UsageError
from cotjax.masking import NORMALIZERS, Dropping, MaskError
from cotjax.objectives.objective import Spec
from cotjax.objectives.trigger import Trigger
from cotjax.runtime.claim import saved_steps

FACTS, CHOICES, EPISODES = "facts", "choices", "episodes"
LESSONS = (FACTS, CHOICES, EPISODES)
_OF_TRAIN = ("steps", "batch", "learning_rate")


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    label: for the output.
    lesson: one of LESSONS.
    start: the stage that it starts from; None for the base.
    choices: its file of choices; "" for the world's.
    train: the config's `train` section with the stage's own values.
    dropping: which roles are trained on.
    objective: what is minimised; None for the supervised loss.
    """

    name: str
    label: str
    lesson: str
    start: str | None
    choices: str
    train: ConfigDict
    dropping: Dropping
    objective: Spec | None

    def folder(self, run: Path) -> Path:
        """Return the folder of its checkpoints and metrics in a run."""
        return run / "stages" / self.name

    def complete(self, run: Path) -> bool:
        """Return whether its last checkpoint is there."""
        return self.train.steps in saved_steps(self.folder(run) / "checkpoints")


def plans_of(config: ConfigDict) -> dict[str, StagePlan]:
    """Return the stages of a config by name, in their order.

    Raises UsageError, naming the field, for a value that is not possible.
    """
    plans: dict[str, StagePlan] = {}
    named = _in_order(config.autocoa.stages)
    for name, own in named.items():
        plans[name] = _plan(config, name, own)
    if not plans:
        raise UsageError("autocoa.stages is empty; name at least one, as configs/autocoa_demo.py")
    return plans


def _in_order(stages: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the stages with all fields, each behind the one that it starts from."""
    rest = {name: _fields_of(name, own) for name, own in stages.items()}
    for name, own in rest.items():
        if own["start"] and own["start"] not in rest:
            raise UsageError(
                f"autocoa.stages.{name}.start is {own['start']!r}; there are {', '.join(rest)}"
            )
    ordered: dict[str, dict[str, Any]] = {}
    while rest:
        ready = [name for name, own in rest.items() if not own["start"] or own["start"] in ordered]
        if not ready:
            raise UsageError(
                f"autocoa.stages: {', '.join(rest)} start from each other; one has to start from "
                "model.base ('')"
            )
        # Names decide the order of those that could come next, as a config has none of its own.
        ordered[min(ready)] = rest.pop(min(ready))
    return ordered


def _fields_of(name: str, own: Any) -> dict[str, Any]:
    if "/" in name or name.startswith("."):
        raise UsageError(f"autocoa.stages: {name!r} is no name of a folder")
    if not isinstance(own, Mapping | ConfigDict):
        raise UsageError(
            f"autocoa.stages.{name} is {own!r}; give its fields: {', '.join(STAGE_FIELDS)}"
        )
    values = STAGE_FIELDS | dict(own)
    for field, value in values.items():
        if field not in STAGE_FIELDS:
            raise UsageError(
                f"autocoa.stages.{name}: unknown field {field!r}; there are "
                f"{', '.join(STAGE_FIELDS)}"
            )
        usual = STAGE_FIELDS[field]
        kinds = (int, float) if isinstance(usual, float) else type(usual)
        if not isinstance(value, kinds) or (not isinstance(usual, str | tuple) and value < 0):
            raise UsageError(
                f"autocoa.stages.{name}.{field} is {value!r}; it must be of type "
                f"{type(usual).__name__}, and a number at least 0"
            )
    return values


def _plan(config: ConfigDict, name: str, own: Mapping[str, Any]) -> StagePlan:
    lesson = own["lesson"]
    if lesson not in LESSONS:
        raise UsageError(
            f"autocoa.stages.{name}.lesson is {lesson!r}; there are {', '.join(LESSONS)}"
        )
    if own["choices"] and lesson != CHOICES:
        raise UsageError(
            f"autocoa.stages.{name}.choices is {own['choices']}, but its lesson is {lesson!r}; "
            "remove it"
        )
    train = config.train.copy_and_resolve_references()
    for field in _OF_TRAIN:
        if own[field]:
            train[field] = own[field]
    train.save_every = min(train.save_every, train.steps)
    masking = dict(config.masking)
    normalizer = masking.pop("normalizer")
    if normalizer not in NORMALIZERS:
        raise UsageError(
            f"masking.normalizer: unknown {normalizer!r}; there are {', '.join(NORMALIZERS)}"
        )
    if own["supervised"]:
        masking["supervised"] = own["supervised"]
    try:
        dropping = Dropping.of(seed=config.seed, **masking)
    except MaskError as error:
        raise UsageError(f"autocoa.stages.{name}: masking: {error}") from None
    objective = Trigger(config.preference.trigger.alpha) if lesson == CHOICES else None
    return StagePlan(
        name,
        own["label"] or name,
        lesson,
        own["start"] or None,
        own["choices"],
        train,
        dropping,
        objective,
    )
