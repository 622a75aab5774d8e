"""Advantages: how much better a play went than the others of its group. numpy alone.

A group is all plays of one game in one update. Statistics are over plays ("trajectory"): a mean
over their steps ("step", what verl-agent does unless told otherwise) counts a long, lost episode
more often than a short, won one.

| kind | of a play with reward r | |
|---|---|---|
| `grpo` | (r - mean) / (std + 1e-6) | arXiv 2402.03300; std with ddof 1 |
| `dr_grpo` | r - mean | without std: arXiv 2503.20783 |
| `rloo` | r - mean of the others | arXiv 2402.14740; G / (G - 1) times r - mean |

A group whose rewards are all equal is flat and teaches nothing: all its advantages are 0, and so is
that of a play without others. Both are counted. A play's cost, such as its divergence from the
start, is taken from its reward but tells no groups apart: with `grpo`, whose scale is the group's
own, a flat group's costs would become advantages as large as a win's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cotjax.errors import DataError, UsageError

KINDS = ("grpo", "dr_grpo", "rloo")
UNITS = ("trajectory", "step")  # what a group's statistics count
EPSILON = 1e-6  # added to the standard deviation (verl, tunix)
FLAT = 1e-9  # rewards that differ by no more are equal


@dataclass(frozen=True)
class Played:
    """What an advantage needs to know of one play.

    name: names it in errors; no two plays share one.
    group: its game, or whatever else its group has in common.
    reward: of the whole episode, without penalties for single steps.
    penalties: [steps] taken from each step, at least 0.
    cost: taken from the reward of the whole play (see above).
    """

    name: str
    group: Hashable
    reward: float
    penalties: tuple[float, ...] = ()
    cost: float = 0.0


@dataclass(frozen=True)
class GroupCounts:
    """Groups, those that are flat, and those of one play; a group is in one of the last two."""

    groups: int
    flat: int
    singletons: int


@dataclass(frozen=True)
class Advantages:
    """values: [plays], in their order. counts: of their groups."""

    values: np.ndarray
    counts: GroupCounts


def group_advantages(
    plays: Sequence[Played],
    kind: str = "grpo",
    *,
    size: int | None = None,
    unit: str = "trajectory",
) -> Advantages:
    """Return the advantage of each play within its group. Plays have no penalties.

    Args:
      size: plays of each group; another number of them is an error (None: any).
      unit: what the group's statistics count, one of UNITS.

    Raises:
      UsageError: an unknown kind or unit.
      DataError: a reward is not finite, two plays have the same name, or a group has not `size`
        plays; the message names the play or the group.
    """
    values, counts = np.zeros(len(plays)), _checked(plays, kind, size, unit)
    for members in _groups(play.group for play in plays).values():
        counted = [_counted(plays[member], unit) for member in members]
        for place, member in enumerate(members):
            own = np.array([plays[member].reward - plays[member].cost])
            values[member] = _against(counted, place, own, kind)[0]
    return Advantages(values, counts)


def step_advantages(
    plays: Sequence[Played],
    kind: str = "grpo",
    *,
    size: int | None = None,
    unit: str = "trajectory",
) -> tuple[list[np.ndarray], GroupCounts]:
    """Return the advantages of each play's steps, [steps] each, with their penalties.

    A penalty falls on its own step, not on the whole episode. Mean and deviation are those over
    plays of the reward less the mean of the penalties, or with the unit "step" those over steps of
    what each has; a group is flat where these are equal. Where penalties alone differ, nothing is
    divided by the deviation. Arguments and errors are those of `group_advantages`.
    """
    counts = _checked(plays, kind, size, unit)
    values = [np.zeros(len(play.penalties)) for play in plays]
    for members in _groups(play.group for play in plays).values():
        counted = [_counted(plays[member], unit) for member in members]
        earned = [plays[member].reward - plays[member].cost for member in members]
        # The deviation of penalties alone is tiny: over it, one malformed step of a lost group had
        # an advantage of -34, and an update was about little else.
        divided = kind != "grpo" or max(earned) - min(earned) > FLAT
        for place, member in enumerate(members):
            play = plays[member]
            steps = play.reward - play.cost - np.asarray(play.penalties, float)
            values[member] = _against(counted, place, steps, kind if divided else "dr_grpo")
    return values, counts


# ---- GiGPO


@dataclass(frozen=True)
class Visited:
    """What GiGPO needs to know of one play.

    name, group: as of `Played`.
    rewards: [steps] of each step.
    anchors: [steps] the state before each step; steps of a group with equal ones are compared.
    costs: [steps] taken from the rewards (see the top of this file); empty: none.
    """

    name: str
    group: Hashable
    rewards: tuple[float, ...]
    anchors: tuple[Hashable, ...]
    costs: tuple[float, ...] = ()


@dataclass(frozen=True)
class StepAdvantages:
    """values: [steps] of each play. counts: of the groups of plays.

    anchors: groups of steps in one state. singletons: those of them with one step. steps: all.
    """

    values: list[np.ndarray]
    counts: GroupCounts
    anchors: int
    singletons: int
    steps: int

    @property
    def anchor_size(self) -> float:
        """Steps in an anchor's group, on average."""
        return self.steps / max(self.anchors, 1)


def gigpo(
    plays: Sequence[Visited],
    kind: str = "grpo",
    *,
    omega: float = 1.0,
    gamma: float = 0.95,
    size: int | None = None,
    unit: str = "trajectory",
) -> StepAdvantages:
    """Return GiGPO's advantages (arXiv 2505.10978): of the play, plus omega times of the step.

    The play's are as in `group_advantages`, of the sum of its rewards. A step's compare its
    discounted return with those of all steps of the group in the same state, of other plays and
    of other times: a play that comes back to a state meets its own earlier step. A state that was
    visited once, or always with the same return, gives 0. `unit` is of the plays' statistics; a
    step's are over the steps in its state.

    Raises:
      UsageError, DataError: as `group_advantages`; or rewards, anchors and costs differ in number.
    """
    for play in plays:
        _check_visited(play)
    of_plays = group_advantages([_whole(play) for play in plays], kind, size=size, unit=unit)
    returns = [_discounted(play.rewards, gamma) for play in plays]
    costs = [_discounted(play.costs or (0.0,) * len(play.rewards), gamma) for play in plays]
    values = [np.full(len(own), of_plays.values[number]) for number, own in enumerate(returns)]
    places = [(number, step) for number, own in enumerate(returns) for step in range(len(own))]
    anchors = _groups((plays[number].group, plays[number].anchors[step]) for number, step in places)
    for members in anchors.values():
        here = [places[member] for member in members]
        counted = []
        for number, step in here:
            gross, cost = returns[number][step], costs[number][step]
            counted.append(_Counted((gross,), (gross - cost,)))
        for place, (number, step) in enumerate(here):
            own = np.array(counted[place].net)
            values[number][step] += omega * _against(counted, place, own, kind)[0]
    alone = sum(len(members) == 1 for members in anchors.values())
    return StepAdvantages(values, of_plays.counts, len(anchors), alone, len(places))


def _whole(play: Visited) -> Played:
    """Return a play with its rewards and costs added up."""
    unpunished = (0.0,) * len(play.rewards)  # what is taken from a step is in its reward
    reward, cost = math.fsum(play.rewards), math.fsum(play.costs)
    return Played(play.name, play.group, reward, unpunished, cost)


def _check_visited(play: Visited) -> None:
    if len(play.rewards) != len(play.anchors):
        raise DataError(
            f"{play.name}: {len(play.rewards)} rewards, but {len(play.anchors)} anchors"
        )
    if play.costs and len(play.costs) != len(play.rewards):
        raise DataError(f"{play.name}: {len(play.rewards)} rewards, but {len(play.costs)} costs")
    _check_finite(play.name, (*play.rewards, *play.costs))


def _discounted(rewards: Sequence[float], gamma: float) -> list[float]:
    """Return the sum of each step's reward and the later ones, discounted."""
    total, returns = 0.0, []
    for reward in reversed(rewards):
        total = reward + gamma * total
        returns.append(total)
    return returns[::-1]


# ---- within a group


class _Counted(NamedTuple):
    """What the statistics of a group count of one play: before its cost is taken, and after."""

    gross: tuple[float, ...]
    net: tuple[float, ...]


def _counted(play: Played, unit: str) -> _Counted:
    if unit == "trajectory":
        mean = math.fsum(play.penalties) / max(len(play.penalties), 1)
        gross: tuple[float, ...] = (play.reward - mean,)
    else:
        gross = tuple(play.reward - penalty for penalty in play.penalties)
    return _Counted(gross, tuple(value - play.cost for value in gross))


def _against(group: Sequence[_Counted], place: int, own: np.ndarray, kind: str) -> np.ndarray:
    """Return the advantages of `own` values of the play at `place` against its group."""
    net = [value for each in group for value in each.net]
    others = [value for number, each in enumerate(group) if number != place for value in each.net]
    if not others or _is_flat(net) or (kind == "grpo" and _flat(group)):
        return np.zeros(len(own))
    if kind == "rloo":
        return own - math.fsum(others) / len(others)
    # Exact sums: the order of the plays changes no bit.
    mean = math.fsum(net) / len(net)
    if kind == "dr_grpo":
        return own - mean
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in net) / (len(net) - 1))
    return (own - mean) / (deviation + EPSILON)


def _flat(group: Sequence[_Counted]) -> bool:
    """Return whether all that a group counts is equal before costs."""
    return _is_flat([value for each in group for value in each.gross])


def _is_flat(rewards: Sequence[float]) -> bool:
    return not rewards or max(rewards) - min(rewards) <= FLAT


# ---- checks


def _checked(plays: Sequence[Played], kind: str, size: int | None, unit: str) -> GroupCounts:
    """Return the counts of the groups. Raises as `group_advantages`."""
    for what, value, allowed in (("kind of advantage", kind, KINDS), ("unit", unit, UNITS)):
        if value not in allowed:
            raise UsageError(f"unknown {what} {value!r}; there are {', '.join(allowed)}")
    names = set()
    for play in plays:
        _check_finite(play.name, [play.reward, play.cost])
        if play.name in names:
            raise DataError(f"{play.name}: the play occurs twice; a duplicate shifts its group")
        names.add(play.name)
    groups = _groups(play.group for play in plays)
    flat = singletons = 0
    for group, members in groups.items():
        if size is not None and len(members) != size:
            raise DataError(
                f"the group {group!r} has {len(members)} plays ({plays[members[0]].name}, …), "
                f"it must have {size}"
            )
        singletons += len(members) == 1
        flat += len(members) > 1 and _flat([_counted(plays[member], unit) for member in members])
    return GroupCounts(len(groups), flat, singletons)


def _groups(keys: Iterable[Hashable]) -> dict[Hashable, list[int]]:
    """Return key -> the places at which it stands."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return places


def _check_finite(name: str, rewards: Iterable[float]) -> None:
    for reward in rewards:
        if not math.isfinite(reward):
            raise DataError(f"{name}: the reward is {reward}; it must be a finite number")
