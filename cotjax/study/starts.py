"""What each arm starts from: the base, or a checkpoint of another arm, which is trained first.

    arms.sft.start    ""            the base
    arms.dpo.start    "short"       the last checkpoint of the arm "short"
    arms.grpo.start   "short@30"    its checkpoint 30

Where the config names seeds, an arm's member starts from the member of the same seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from cotjax.errors import UsageError
from cotjax.runtime.claim import checkpoint_steps
from cotjax.runtime.members import arm_and_seed, member_name, members_of, natural


@dataclass(frozen=True)
class Place:
    """A checkpoint of an arm: a member's name, and the step. Its text is `member@step`."""

    member: str
    step: int

    def __str__(self) -> str:
        return f"{self.member}@{self.step}"


def start_of(config: ConfigDict, member: str) -> Place | None:
    """Return the checkpoint that an arm, or a member of one, starts from; None for the base.

    Raises UsageError where its arm names an arm that does not exist, or no step.
    """
    arm, seed = arm_and_seed(member)
    named = _named(config, arm)
    if named is None:
        return None
    other, step = named
    return Place(member_name(other, seed), steps_of(config, other) if step is None else step)


def starts_of(config: ConfigDict) -> set[Place]:
    """Return the checkpoints that members of other arms start from."""
    members = [each for arm in config.arms for each in members_of(arm, config.seeds)]
    return {place for member in members if (place := start_of(config, member)) is not None}


def in_order(config: ConfigDict) -> list[str]:
    """Return all members in an order of training: each after the one that it starts from.

    Those that start from the base come first; otherwise the order is that of names. Raises
    UsageError where arms start from each other in a circle.
    """
    waiting, done = sorted(config.arms, key=natural), list[str]()
    while waiting:
        named = {arm: _named(config, arm) for arm in waiting}
        ready = [arm for arm, start in named.items() if start is None or start[0] in done]
        if not ready:
            raise UsageError(
                f"arms {', '.join(waiting)}: each starts from another of them, so none can be "
                "trained first; let one start from the base"
            )
        done += ready
        waiting = [arm for arm in waiting if arm not in ready]
    return [member for arm in done for member in members_of(arm, config.seeds)]


def steps_of(config: ConfigDict, arm: str) -> int:
    """Return the number of steps that an arm is trained for."""
    return _own(config, arm).get("steps") or config.train.steps


def train_of(config: ConfigDict, member: str) -> ConfigDict:
    """Return `config.train` with an arm's own number of steps and learning rate."""
    arm, _ = arm_and_seed(member)
    settings = config.train.copy_and_resolve_references()
    settings.steps = steps_of(config, arm)
    settings.learning_rate = _own(config, arm).get("learning_rate") or settings.learning_rate
    return settings


def check_starts(config: ConfigDict) -> None:
    """Raise UsageError for an arm whose start, steps or learning rate is not possible."""
    for arm in config.arms:
        own = _own(config, arm)
        for name in ("steps", "learning_rate"):
            if own.get(name, 0) < 0:
                raise UsageError(
                    f"arms.{arm}.{name} is {own[name]}; it must be more than 0, or 0 for "
                    f"train.{name}"
                )
        named = _named(config, arm)
        if named is None:
            continue
        other, step = named
        if config.model.lora_rank:
            raise UsageError(
                f"arms.{arm}.start is {own.start!r} and model.lora_rank {config.model.lora_rank}: "
                "without its adapters the arm would be the base, not its start; export that "
                "checkpoint and give it as model.base, or set model.lora_rank to 0"
            )
        saved = checkpoint_steps(steps_of(config, other), config.train.save_every)[1:]
        if step is not None and step not in saved:
            raise UsageError(
                f"arms.{arm}.start is {own.start!r}, and {other!r} saves "
                f"{', '.join(map(str, saved))} (train.save_every is {config.train.save_every})"
            )
    in_order(config)


def _own(config: ConfigDict, arm: str) -> Any:
    own = config.arms[arm]
    return own if isinstance(own, ConfigDict) else {}


def _named(config: ConfigDict, arm: str) -> tuple[str, int | None] | None:
    """Return the arm and the step that an arm's `start` names; None for the base."""
    text = _own(config, arm).get("start") or ""
    if not text:
        return None
    if text in config.arms:
        return text, None
    other, _, step = text.rpartition("@")
    if other not in config.arms or not step.isdecimal():
        raise UsageError(
            f"arms.{arm}.start is {text!r}; give an arm of {', '.join(config.arms)}, or a "
            "checkpoint of it, as in 'sft@30'"
        )
    return other, int(step)
