"""The arms of a summary: the config's, each with all its seeds.

Older runs have the seeds of an arm as arms of their own; those that differ by seed alone are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import takewhile
from typing import Any

from cotjax.diagnostics.information import LEAST_REMOVED, Information
from cotjax.objectives.named import PREFERENCES, REINFORCED, SUPERVISED
from cotjax.report.summary import BASE, Arm
from cotjax.runtime.members import arm_and_seed, natural

# Characters that turn the text after them around: a label stands within sentences.
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
# What two arms have in common that differ by what is dropped alone.
Data = tuple[Any, ...]
# Objectives in the order of a report; one that is not known comes last.
_OBJECTIVES = (SUPERVISED, *PREFERENCES, *REINFORCED)
# Fields of an arm in run.json that decide how it is trained, where it has its own.
_RECIPE = ("steps", "learning_rate", "advantage", "rejected", "task_types")


def find_arms(run: Mapping[str, Any], seen: set[str]) -> dict[str, Arm]:
    """Return the arms that have records; the base alone where there are no others.

    The baseline comes first: of the arms that drop nothing, the one with the least direct data.
    Arms on data come before those that play; one that is shorter, for others start from it, last.

    `seen`: the members (`cotjax.runtime.members`) that have records.
    """
    described = run.get("arms") or {}
    members: dict[str, list[str]] = {}
    for name in sorted(seen - {BASE}, key=lambda name: _seed(described.get(name), name)):
        cell = (described.get(name) or {}).get("cell") or arm_and_seed(name)[0]
        members.setdefault(str(cell), []).append(name)
    arms = {cell: _arm(cell, names, described) for cell, names in members.items()}
    starts = {arm.start.rpartition("@")[0] for arm in arms.values()}
    arms = {
        cell: arms[cell]
        for cell in sorted(arms, key=lambda cell: _order(cell, arms[cell], cell in starts))
    }
    arms = arms or {BASE: Arm(BASE, None, seeds={BASE: None})}
    baseline = next(iter(arms))
    return {cell: replace(arm, minus=_minus(cell, arms, baseline)) for cell, arm in arms.items()}


def start_of(run: Mapping[str, Any], member: str) -> tuple[str, int] | None:
    """Return the (member, checkpoint) that a member starts from; None for the base."""
    start = ((run.get("arms") or {}).get(member) or {}).get("start")
    other, _, step = str(start or "").rpartition("@")
    return (other, int(step)) if other and step.isdecimal() else None


def with_information(
    arms: Mapping[str, Arm], information: Mapping[str, Iterable[Information]]
) -> dict[str, Arm]:
    """Return the arms with the share of the loss that their intervention removes.

    Where that is below LEAST_REMOVED at every checkpoint and for every seed, the arm cannot differ.
    """
    informed = {}
    for name, arm in arms.items():
        shares = [row.removed_share for seed in arm.seeds for row in information.get(seed, ())]
        removed = max(shares, default=None)
        negligible = removed is not None and removed < LEAST_REMOVED
        alike = differs_by_dropping(arms, name)
        informed[name] = replace(arm, removed_share=removed, cannot_differ=alike and negligible)
    return informed


def differs_by_dropping(arms: Mapping[str, Arm], name: str) -> bool:
    """Whether an arm differs from the one that it is compared with by what it drops alone."""
    arm = arms[name]
    return bool(arm.fraction) and arm.minus is not None and _data(arm) == _data(arms[arm.minus])


def twin_of(arms: Mapping[str, Arm]) -> str | None:
    """Return the arm that was trained on actions without any thought; None without one."""
    return next((name for name, arm in arms.items() if _direct(arm) and not arm.fraction), None)


def _direct(arm: Arm) -> bool:
    return arm.direct_share == 1.0


def _arm(cell: str, names: list[str], described: Mapping[str, Any]) -> Arm:
    named = [(name, described.get(name) or {}) for name in names]
    first = named[0][1]
    share = first.get("direct_share")
    return Arm(
        label=_label(
            cell,
            [
                str((described.get(name) or {}).get("label") or arm_and_seed(name)[0])
                for name in names
            ],
        ),
        # An arm whose fraction grows drops something, even if it begins with nothing.
        fraction=_largest(first.get("fraction"), first.get("last_fraction")),
        control=str(first.get("control") or "action"),
        thoughts=str(first.get("thoughts") or ""),
        direct_share=float(share) if isinstance(share, int | float) and share >= 0 else None,
        seeds={name: about.get("seed", arm_and_seed(name)[1]) for name, about in named},
        objective=str(first.get("objective") or SUPERVISED),
        start=_start(described, names[0]),
        recipe={name: first[name] for name in _RECIPE if first.get(name)},
    )


def _start(described: Mapping[str, Any], name: str) -> str:
    """Return the start of a cell: an arm's name, without a seed, and the checkpoint."""
    start = start_of({"arms": described}, name)
    return "" if start is None else f"{arm_and_seed(start[0])[0]}@{start[1]}"


def _largest(fraction: float | None, last: float | None) -> float | None:
    return fraction if not last else max(fraction or 0.0, last)


def _label(cell: str, labels: list[str]) -> str:
    """Return what the labels of the seeds have in common, without a dangling word for the seed."""
    labels = [_BIDI.sub("", label) for label in labels]
    if len(set(labels)) == 1:
        return labels[0]
    letters = zip(*labels, strict=False)
    common = "".join(each[0] for each in takewhile(lambda each: len(set(each)) == 1, letters))
    common = re.sub(r"[\s,;:(·–-]*(?:seed)?[\s,;:(·–-]*$", "", common)
    return common or cell


def _seed(about: Mapping[str, Any] | None, name: str) -> tuple[int, Any]:
    seed = (about or {}).get("seed", arm_and_seed(name)[1])
    return (seed if isinstance(seed, int) else 0, natural(name))


def _order(cell: str, arm: Arm, is_start: bool) -> tuple[Any, ...]:
    known = arm.objective in _OBJECTIVES
    return (
        is_start and "steps" in arm.recipe,
        _OBJECTIVES.index(arm.objective) if known else len(_OBJECTIVES),
        _direct(arm),
        arm.thoughts,
        arm.direct_share or 0.0,
        arm.fraction or 0.0,
        arm.control,
        natural(cell),
    )


def _minus(cell: str, arms: Mapping[str, Arm], baseline: str) -> str | None:
    """Return the arm that differs by what is dropped alone; the baseline where there is none."""
    if cell == baseline:
        return None
    if arms[cell].fraction:
        for name, other in arms.items():
            if not other.fraction and _data(other) == _data(arms[cell]):
                return name
    return baseline


def _data(arm: Arm) -> Data:
    return arm.thoughts, arm.direct_share, arm.objective, arm.start, arm.recipe
