"""The rows of a summary that compare: changes, differences, trends, placed gains, splits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cotjax.diagnostics.share import MARGIN, Placement
from cotjax.diagnostics.statistics import Estimate


@dataclass(frozen=True)
class Primary:
    """What the study's verdicts are about, one for each arm and domain.

    Attributes:
      measure: "d3" (whole episodes) or "d1" (expert states); "" where each domain has its own.
      constrained: whether both actions are chosen among the admissible ones; else decoded freely.
      margin: a change of the gap by less than this, to either side, is none.
      fixed: whether the config fixed it beforehand.
      arms, domains: those that have verdicts; () where all have.
      tests: number of tests that share one level: two for each arm and domain measured.
    """

    measure: str
    constrained: bool = False
    margin: float = MARGIN
    fixed: bool = False
    arms: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    tests: int = 0

    def covers(self, arm: str, domain: str) -> bool:
        """Whether an arm has a verdict in a domain."""
        return (not self.arms or arm in self.arms) and (not self.domains or domain in self.domains)


@dataclass(frozen=True)
class Seeds:
    """The same number for each seed of an arm.

    Attributes:
      values: member (`cotjax.runtime.members`) -> value.
    """

    values: dict[str, float]


class _Compared:
    estimate: Estimate

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes 0. It stands alone: it is no verdict."""
        return self.estimate.sign != 0


@dataclass(frozen=True)
class Change(_Compared):
    """A metric at the last checkpoint minus the base, on the same games.

    Attributes:
      first, last: the two checkpoints ("from" and "to" in the file).
      p: exact p-value over games, with several seeds that of the interval; None for metrics over
        states.
      seeds: the change of each seed; None with one seed.
    """

    arm: str
    domain: str
    metric: str
    first: int
    last: int
    estimate: Estimate
    p: float | None
    seeds: Seeds | None = None


@dataclass(frozen=True)
class ArmDifference(_Compared):
    """A metric of an arm minus that of another, at the last checkpoint, on the same games.

    `seeds`: the difference of each seed that both arms have; None with one.
    """

    domain: str
    metric: str
    arm: str
    minus: str
    checkpoint: int
    estimate: Estimate
    p: float | None
    seeds: Seeds | None = None


@dataclass(frozen=True)
class Trend(_Compared):
    """The slope of a metric over the checkpoints of an arm, by least squares, on the same games.

    Attributes:
      checkpoints: those with the metric, three or more.
      estimate: change of the metric in 100 updates.
      p: of the interval.
    """

    arm: str
    domain: str
    metric: str
    checkpoints: tuple[int, ...]
    estimate: Estimate
    p: float


@dataclass(frozen=True)
class PlacedGain:
    """Where an arm's gain landed, by one measure.

    Attributes:
      measure: "d3" (whole episodes) or "d1" (expert states).
      constrained: whether both actions are chosen among the admissible ones; else decoded freely.
      primary: whether this is the study's verdict on the arm and domain; the others are described
        by their intervals alone.
      seed_shares: member -> share of each seed; {} with one seed.
      progress: where a mode is on the floor, the change of the metrics that say how far episodes
        got: the shortening of the expert's plan, and the environment's score.
      progress_known: where a mode is on the floor, whether the first of these is "measured", "not
        measured" or "not defined" (the world has no expert); else "".
    """

    arm: str
    domain: str
    measure: str
    constrained: bool
    primary: bool
    placement: Placement
    seed_shares: dict[str, float] = field(default_factory=dict)
    progress: dict[str, Estimate] = field(default_factory=dict)
    progress_known: Literal["", "measured", "not measured", "not defined"] = ""


@dataclass(frozen=True)
class GapSplit:
    """The gap of an arm, divided by the prompt action of a twin that was trained to give it.

    gap = reasoning + hidden, on the games that all have.

    Attributes:
      measure: "d3" or "d1".
      twin: the arm that was trained on actions without thoughts.
      reasoning: CoT action of the arm minus prompt action of the twin: what reasoning adds.
      hidden: prompt action of the twin minus that of the arm: what its prompt form hides.
      constrained: constrained prompt action of the arm minus its free one: what choosing among the
        admissible actions brings back of `hidden`; not measured where there are none.
    """

    arm: str
    domain: str
    measure: str
    checkpoint: int
    twin: str
    gap: Estimate
    reasoning: Estimate
    hidden: Estimate
    constrained: Estimate
