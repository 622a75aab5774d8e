"""A study's numbers, each with its 95 % interval: what summary.json holds and the report shows.

summary.json has the fields of `Summary`, with these additions:

    schema_version   2 (1 had `nothing_happens_*` for `not_accepted_*`, and no `world`)
    metrics          {metric: {"label", "source", "kind"}}, see `cotjax.diagnostics.metrics.Metric`
    intervals        {"level", "resamples", "seed"} of the intervals

An estimate is {"value", "low", "high", "n", "games"}; the first three are null where nothing was
measured. In `changes` and `arm_differences` its keys are part of the row. Numbers are rounded to 6
decimals.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from cotjax.diagnostics import statistics
from cotjax.diagnostics.metrics import METRICS
from cotjax.diagnostics.statistics import Estimate

SCHEMA_VERSION = 2
BASE = "base"


@dataclass(frozen=True)
class Arm:
    """One arm of the study. `fraction`: share of action losses dropped in training, if known."""

    label: str
    fraction: float | None


@dataclass(frozen=True)
class Played:
    """The episodes of one driver at one point.

    Attributes:
      played: number of episodes, without those that the environment broke.
      env_error: number of episodes that the environment broke; no estimate counts them.
      ended: how they ended -> number of episodes.
    """

    played: int
    won: int
    env_error: int
    ended: dict[str, int]


@dataclass(frozen=True)
class PointSummary:
    """One arm at one checkpoint in one domain.

    Attributes:
      episodes: driver -> its episodes.
      metrics: metric -> estimate.
      gap_p: exact p-value of the gap (a sign test over games; McNemar's with one episode per game).
      invalid: driver -> reason (`cotjax.formats.PROBLEMS`) -> number of invalid responses.
      env_faults: driver -> faults of the environments, retried with success or not.
    """

    arm: str
    checkpoint: int
    domain: str
    episodes: dict[str, Played]
    metrics: dict[str, Estimate]
    gap_p: float | None
    invalid: dict[str, dict[str, int]]
    env_faults: dict[str, int]


@dataclass(frozen=True)
class Change:
    """A metric at the last checkpoint minus the base, on the same games.

    Attributes:
      first, last: the two checkpoints ("from" and "to" in the file).
      p: exact p-value over games; None for metrics over states.
    """

    arm: str
    domain: str
    metric: str
    first: int
    last: int
    estimate: Estimate
    p: float | None


@dataclass(frozen=True)
class ArmDifference:
    """A metric of an arm minus that of the baseline, at the last checkpoint, on the same games."""

    domain: str
    metric: str
    arm: str
    minus: str
    checkpoint: int
    estimate: Estimate
    p: float | None


@dataclass(frozen=True)
class ElicitationUse:
    """An elicitation and how many records of a driver were made with it."""

    driver: str
    elicitation: dict[str, Any]
    records: int


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean loss per supervised token of the held-out training examples, in nats.

    Attributes:
      checkpoint: update behind which it was measured; 0 is the base.
      loss_by_role: role -> the same of its tokens alone.
    """

    checkpoint: int
    loss: float
    loss_by_role: dict[str, float]


@dataclass(frozen=True)
class Summary:
    """Everything that a report says in numbers.

    Attributes:
      run: run.json; {} where there is none.
      world: the world that was played; several are joined by commas.
      arms: by name, in the order of run.json; "base" only where no other arm has records.
      baseline: the arm that the others are compared with, the one with the smallest fraction.
      checkpoints: all that have records, in order; 0 is the base, the first point of every arm.
      last_checkpoint: the last one that every arm has.
      domains: those with records.
      elicitation: as found in the records; more than one per driver is also a warning.
      shown_episode: path below the run folder of the episode that the report shows.
      held_out: arm -> its held-out losses in order; {} where none was measured.
      seconds: "environment" and "sampler", summed over the records.
      warnings: sentences on what makes the study weaker than it looks.
    """

    run: dict[str, Any]
    world: str
    arms: dict[str, Arm]
    baseline: str
    checkpoints: tuple[int, ...]
    last_checkpoint: int
    domains: tuple[str, ...]
    elicitation: tuple[ElicitationUse, ...]
    points: tuple[PointSummary, ...]
    changes: tuple[Change, ...]
    arm_differences: tuple[ArmDifference, ...]
    held_out: dict[str, tuple[HeldOutLoss, ...]]
    shown_episode: str | None
    seconds: dict[str, float]
    warnings: tuple[str, ...] = ()

    def point(self, arm: str, checkpoint: int, domain: str) -> PointSummary | None:
        """Return one point; None where there are no records."""
        return self._points.get((arm, checkpoint, domain))

    def last(self, arm: str, domain: str) -> PointSummary | None:
        """Return an arm's point at the last checkpoint."""
        return self.point(arm, self.last_checkpoint, domain)

    def change(self, arm: str, domain: str, metric: str) -> Change | None:
        """Return a metric's change from the base; None where it was not measured."""
        return self._changes.get((arm, domain, metric))

    def arm_difference(self, arm: str, domain: str, metric: str) -> ArmDifference | None:
        """Return a metric's difference from the baseline; None where there is none."""
        return self._arm_differences.get((arm, domain, metric))

    def label(self, arm: str) -> str:
        """Return an arm's label."""
        return self.arms[arm].label

    @cached_property
    def _points(self) -> dict[tuple[str, int, str], PointSummary]:
        return {(each.arm, each.checkpoint, each.domain): each for each in self.points}

    @cached_property
    def _changes(self) -> dict[tuple[str, str, str], Change]:
        return {(each.arm, each.domain, each.metric): each for each in self.changes}

    @cached_property
    def _arm_differences(self) -> dict[tuple[str, str, str], ArmDifference]:
        return {(each.arm, each.domain, each.metric): each for each in self.arm_differences}

    def with_warnings(self, *warnings: str) -> Summary:
        """Return the summary with these warnings added."""
        return replace(self, warnings=(*self.warnings, *warnings))

    def to_json(self) -> str:
        """Return the text of summary.json."""
        fields = asdict(self)
        fields["changes"] = [
            {
                "arm": each.arm,
                "domain": each.domain,
                "metric": each.metric,
                "from": each.first,
                "to": each.last,
                **asdict(each.estimate),
                "p": each.p,
            }
            for each in self.changes
        ]
        for row in fields["arm_differences"]:
            row |= row.pop("estimate") | {"p": row.pop("p")}
        head = {
            "schema_version": SCHEMA_VERSION,
            "metrics": {name: asdict(metric) for name, metric in METRICS.items()},
            "intervals": {
                "level": statistics.LEVEL,
                "resamples": statistics.RESAMPLES,
                "seed": statistics.SEED,
            },
        }
        return json.dumps(head | fields, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
