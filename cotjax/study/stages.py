"""The stages of AutoCoA that a config names, with the values of each resolved and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cotjax.config import AUTOCOA_ARM_FIELDS, STAGE_FIELDS
from cotjax.errors import UsageError
from cotjax.masking import NORMALIZERS, Dropping, MaskError
from cotjax.objectives.objective import Spec
from cotjax.objectives.trigger import Trigger
from cotjax.report.autocoa import PAPER
from cotjax.rollout.elicitation import SIMULATED
from cotjax.runtime.claim import checkpoint_steps, saved_steps

FACTS, CHOICES, EPISODES, PLAY = "facts", "choices", "episodes", "play"
LESSONS = (FACTS, CHOICES, EPISODES, PLAY)
_OF_TRAIN = ("steps", "batch", "row_length", "learning_rate")
SIMULATED_END = "simulated"  # in an arm's `at`: the last step whose results the policy wrote
# Field of a stage -> the one lesson that it belongs to.
_OF_LESSON = {
    "choices": CHOICES,
    "episodes": EPISODES,
    "replay": EPISODES,
    "simulated_steps": PLAY,
}


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    label: for the output.
    lesson: one of LESSONS.
    start: the stage that it starts from; None for the base.
    choices: its file of choices; "" for the world's.
    episodes: so many episodes with a search alone; 0: all of the config's.
    replay: share of the tokens that are texts about known facts.
    rl: of one that learns from what it plays, the config's `rl` section with its own steps.
    train: the config's `train` section with the stage's own values.
    dropping: which roles are trained on.
    objective: what is minimised; None for the supervised loss.
    """

    name: str
    label: str
    lesson: str
    start: str | None
    choices: str
    episodes: int
    replay: float
    rl: ConfigDict | None
    train: ConfigDict
    dropping: Dropping
    objective: Spec | None

    def folder(self, run: Path) -> Path:
        """Return the folder of its checkpoints and metrics in a run."""
        return run / "stages" / self.name

    def complete(self, run: Path) -> bool:
        """Return whether its last checkpoint is there."""
        return self.train.steps in saved_steps(self.folder(run) / "checkpoints")


@dataclass(frozen=True)
class StageArm:
    """An arm of the ablation: the checkpoint of a stage that is played, and what it is called.

    minus: the arm that it is compared with; None for none.
    paper: its row of the paper's table; "" for none.
    """

    name: str
    label: str
    stage: str
    step: int
    minus: str | None
    paper: str


def arms_of_stages(config: ConfigDict, plans: Mapping[str, StagePlan]) -> dict[str, StageArm]:
    """Return the arms of a config by name: those without a row of the paper, then in its order.

    Raises UsageError, naming the field, for a value that is not possible.
    """
    arms = {name: _arm(config, name, plans) for name in config.autocoa.arms}
    for arm in arms.values():
        if arm.minus is not None and arm.minus not in arms:
            raise UsageError(
                f"autocoa.arms.{arm.name}.minus is {arm.minus!r}; there are {', '.join(arms)}"
            )
    rows = ["", *PAPER]
    return dict(sorted(arms.items(), key=lambda each: rows.index(each[1].paper)))


def _arm(config: ConfigDict, name: str, plans: Mapping[str, StagePlan]) -> StageArm:
    given, field = config.autocoa.arms[name], f"autocoa.arms.{name}"
    unknown = sorted({*given} - {*AUTOCOA_ARM_FIELDS}) if isinstance(given, ConfigDict) else [""]
    if unknown:
        known = ", ".join(AUTOCOA_ARM_FIELDS)
        raise UsageError(f"{field}: unknown field {unknown[0]!r}; there are {known}")
    own = AUTOCOA_ARM_FIELDS | dict(given)
    stage, _, step = own["at"].partition("@")
    if stage not in plans:
        raise UsageError(f"{field}.at is {own['at']!r}; there are the stages {', '.join(plans)}")
    train = plans[stage].train
    saved, rl = checkpoint_steps(train.steps, train.save_every), plans[stage].rl
    if step == SIMULATED_END and rl is not None and rl.simulated_steps:
        step = str(rl.simulated_steps)
    if step and (not step.isdecimal() or int(step) not in saved):
        raise UsageError(
            f"{field}.at is {own['at']!r}; the stage saves at {', '.join(map(str, saved))}"
        )
    if own["paper"] not in ("", *PAPER):
        raise UsageError(f"{field}.paper is {own['paper']!r}; there are {', '.join(PAPER)}")
    at = int(step) if step else train.steps
    if train.keep_last and at != train.steps:
        raise UsageError(
            f"{field}.at is {own['at']!r}, and train.keep_last is {train.keep_last}: that would "
            "delete the checkpoint; set it to 0"
        )
    return StageArm(name, own["label"] or name, stage, at, own["minus"] or None, own["paper"])


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


def _rl(
    config: ConfigDict, name: str, own: Mapping[str, Any], train: ConfigDict
) -> ConfigDict | None:
    """Return the `rl` section of a stage that plays; a checkpoint is saved where results change."""
    if own["lesson"] != PLAY:
        return None
    rl, simulated = config.rl.copy_and_resolve_references(), own["simulated_steps"]
    if simulated > train.steps:
        raise UsageError(
            f"autocoa.stages.{name}.simulated_steps is {simulated}; it has {train.steps} steps"
        )
    rl.simulated_steps = simulated
    if 0 < simulated < train.steps:
        every = train.save_every
        train.save_every = simulated if every >= simulated else math.gcd(every, simulated)
    return rl


def _plan(config: ConfigDict, name: str, own: Mapping[str, Any]) -> StagePlan:
    lesson = own["lesson"]
    if lesson not in LESSONS:
        raise UsageError(
            f"autocoa.stages.{name}.lesson is {lesson!r}; there are {', '.join(LESSONS)}"
        )
    for field, fitting in _OF_LESSON.items():
        if own[field] and lesson != fitting:
            raise UsageError(
                f"autocoa.stages.{name}.{field} is {own[field]}, but its lesson is {lesson!r}; "
                "remove it"
            )
    if own["replay"] >= 1:
        raise UsageError(
            f"autocoa.stages.{name}.replay is {own['replay']}; it is a share below 1 of the tokens"
        )
    train = config.train.copy_and_resolve_references()
    for field in _OF_TRAIN:
        if own[field]:
            train[field] = own[field]
    train.save_every = min(train.save_every, train.steps)
    # train.warmup suits the longer stages; one of RL may have fewer updates in all.
    train.warmup = min(train.warmup, train.steps // 4)
    rl = _rl(config, name, own, train)
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
        own["episodes"],
        own["replay"],
        rl,
        train,
        dropping,
        objective,
    )


@dataclass(frozen=True)
class StageProgram:
    """What a plan compiles for stages that run one program, or for the playing of the arms.

    program: "train", "rl" or "sampler".
    """

    title: str
    config: ConfigDict
    program: str
    objective: Spec | None = None


def programs_of(config: ConfigDict) -> list[StageProgram]:
    """Return the programs of a config's stages, each once, and that of playing its arms."""
    made: dict[str, StageProgram] = {}
    for plan in plans_of(config).values():
        own = config_of(config, plan)
        program = "train" if plan.rl is None else "rl"
        simulated = plan.rl is not None and plan.rl.simulated_steps > 0
        shape = own.train.batch, own.train.row_length, own.train.accumulate
        key = f"{program} {shape} {plan.objective} {simulated}"
        if key in made:
            made[key] = replace(made[key], title=f"{made[key].title}, {plan.name}")
        else:
            made[key] = StageProgram(f"stage {plan.name}", own, program, plan.objective)
    playing = config.copy_and_resolve_references()
    if config.autocoa.simulated:
        playing.evaluate.search = SIMULATED
    return [*made.values(), StageProgram("playing the arms", playing, "sampler")]


def config_of(config: ConfigDict, plan: StagePlan) -> ConfigDict:
    """Return the config with the `train` and the `rl` section of a stage."""
    own = config.copy_and_resolve_references()
    own.train = plan.train
    if plan.rl is not None:
        own.rl = plan.rl
    return own
