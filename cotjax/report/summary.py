"""A study's numbers, each with its 95 % interval: what summary.json holds and the report shows.

summary.json has the fields of `Summary`, with these additions:

    schema_version   4 (see below)
    metrics          {metric: {"label", "source", "kind"}}, see `cotjax.diagnostics.metrics.Metric`
    intervals        {"level"} of the intervals

An estimate is {"value", "low", "high", "n", "games", "seeds"}. A metric that was not measured at a
point is not among the point's; elsewhere the first three are null then, and both ends of a share
that no interval bounds. In `changes`, `arm_differences` and `trends` its keys are part of the row.
Numbers are rounded to 6 decimals. The same records give the same bytes.

Schema 4: intervals hold over games and, with several seeds, over seeds crossed with them; they are
formulas, without a random draw. An estimate has `seeds`, their number. `by_seed` of a row, formerly
`seeds`, has values alone, for its interval is the row's own. New are `primary` (what the verdicts
are about) and `trends`. A placement that is not the primary one of its arm and domain has the
verdict "no verdict"; the primary ones have `adjusted_p` and `steady_adjusted_p`, in their family,
and `progress` and `progress_known` where a mode is on the floor.

Later files of schema 4 also have `games_hashes`, `checkpoint_hashes` and `rewards`, of an arm
`objective`, `start` and `recipe`, and of a point with D6 or D7 `layers`.

Schema 3 made one arm of those that differ by their seed alone, and had `placements`, `splits`,
`information` and `invalid`. Schema 2 had one baseline for all differences; schema 1
`nothing_happens_*` for `not_accepted_*`, and no `world`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from cotjax.diagnostics import statistics
from cotjax.diagnostics.information import Information
from cotjax.diagnostics.metrics import METRICS
from cotjax.diagnostics.statistics import Estimate
from cotjax.objectives.named import SUPERVISED
from cotjax.report.rows import ArmDifference, Change, GapSplit, PlacedGain, Primary, Trend

SCHEMA_VERSION = 4
BASE = "base"


@dataclass(frozen=True)
class Arm:
    """One arm of the study, with all its seeds.

    Attributes:
      fraction: share of action losses dropped in training, if known.
      control: what is dropped in place of actions, one of cotjax.masking.CONTROLS.
      thoughts: kind of the thoughts it was trained on; "" where the run does not say.
      direct_share: share of examples without a thought; None where the run does not say.
      seeds: member (`cotjax.runtime.members`), or in older runs the name of the arm in records ->
        its seed; None where the run does not say.
      objective: what it minimises, as the config names it.
      start: the checkpoint of another arm that it starts from, as "short@30"; "": the base.
      recipe: fields of its own that decide how it is trained -> value.
      minus: the arm that it is compared with; None for the baseline.
      removed_share: share of the loss that its intervention removes; None where not measured.
      cannot_differ: the intervention removes too little for this arm to differ from `minus`.
    """

    label: str
    fraction: float | None
    control: str = "action"
    thoughts: str = ""
    direct_share: float | None = None
    seeds: dict[str, int | None] = field(default_factory=dict)
    objective: str = SUPERVISED
    start: str = ""
    recipe: dict[str, str | float | list[str]] = field(default_factory=dict)
    minus: str | None = None
    removed_share: float | None = None
    cannot_differ: bool = False


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
      layers: metric -> its estimate in each layer, from the first one on, where D6 or D7 was
        measured.
    """

    arm: str
    checkpoint: int
    domain: str
    episodes: dict[str, Played]
    metrics: dict[str, Estimate]
    gap_p: float | None
    invalid: dict[str, dict[str, int]]
    env_faults: dict[str, int]
    layers: dict[str, tuple[Estimate, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class InvalidResponses:
    """Points of a kind of response where fewer than 95 % were valid, and one such response.

    Attributes:
      metric: the share of valid responses.
      points: (arm, checkpoint, domain, share), the lowest share first.
      example: text of an invalid response of the first point, as it was decoded; "" without one.
      problem: what is wrong with it.
    """

    metric: str
    points: tuple[tuple[str, int, str, float], ...]
    example: str = ""
    problem: str = ""


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
class Reward:
    """What a step of an arm that plays to learn was rewarded with.

    reward: mean over its plays; None where all broke.
    success: share of them that won, sampled; None likewise.
    """

    step: int
    reward: float | None
    success: float | None


@dataclass(frozen=True)
class Summary:
    """A study, as `summarize` found it.

    Attributes:
      run: run.json as it is; {} where there is none.
      world: the world of the records; several, with a warning, where they mix worlds.
      arms: the baseline first; "base" only where no other arm has records.
      baseline: the first arm.
      checkpoints: all that have records, in order; 0, the first point of every arm, is the base,
        or the checkpoint of another arm that it starts from (`Arm.start`).
      last_checkpoint: the last one that every arm has; one that others start from may have fewer.
      domains: those with records.
      elicitation: as found in the records; more than one per driver is also a warning.
      points: the seeds of an arm together: a game's episodes count as one game.
      seed_points: of arms with several seeds, each seed's; `arm` is the member.
      trends: of the gaps over checkpoints, where three or more have them.
      placements: where each arm's gain landed, by every measure that was taken.
      splits: of the gap at the last checkpoint, where an arm was trained on actions alone.
      information: member -> its rows; {} where none was measured.
      invalid: kinds of responses that are too often invalid.
      shown_episode: path below the run folder of the episode that the report shows.
      held_out: member -> its held-out losses in order; {} where none was measured.
      rewards: member -> the rewards of its steps in order, where it plays what it learns from.
      seconds: "environment" and "sampler", summed over the records.
      games_hashes: of the records; more than one is also a warning.
      checkpoint_hashes: "arm/checkpoint" -> those of its records; more than one is also a warning.
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
    seed_points: tuple[PointSummary, ...]
    changes: tuple[Change, ...]
    arm_differences: tuple[ArmDifference, ...]
    trends: tuple[Trend, ...]
    primary: Primary
    placements: tuple[PlacedGain, ...]
    splits: tuple[GapSplit, ...]
    information: dict[str, tuple[Information, ...]]
    invalid: tuple[InvalidResponses, ...]
    held_out: dict[str, tuple[HeldOutLoss, ...]]
    shown_episode: str | None
    seconds: dict[str, float]
    rewards: dict[str, tuple[Reward, ...]] = field(default_factory=dict)
    games_hashes: tuple[str, ...] = ()
    checkpoint_hashes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def point(self, arm: str, checkpoint: int, domain: str) -> PointSummary | None:
        """Return one point; None where there are no records."""
        return self._points.get((arm, checkpoint, domain))

    def last(self, arm: str, domain: str) -> PointSummary | None:
        """Return an arm's point at the last checkpoint."""
        return self.point(arm, self.last_checkpoint, domain)

    @cached_property
    def compared(self) -> dict[str, Arm]:
        """The arms with a point at the last checkpoint: not those that only others start from."""
        return {
            name: arm
            for name, arm in self.arms.items()
            if any(self.last(name, domain) for domain in self.domains)
        }

    def ends(self, domain: str) -> list[PointSummary]:
        """Return the base and other starts, each once, and every arm at the last checkpoint."""
        starts: dict[str, PointSummary] = {}
        for arm, about in self.arms.items():
            if (point := self.point(arm, 0, domain)) is not None:
                starts.setdefault(about.start, point)
        points = [starts[start] for start in sorted(starts)]
        if self.last_checkpoint:
            points += [last for arm in self.arms if (last := self.last(arm, domain)) is not None]
        return points

    def change(self, arm: str, domain: str, metric: str) -> Change | None:
        """Return a metric's change from the base; None where it was not measured."""
        return self._changes.get((arm, domain, metric))

    def arm_difference(self, arm: str, domain: str, metric: str) -> ArmDifference | None:
        """Return a metric's difference from the arm's `minus`; None where there is none."""
        return self._arm_differences.get((arm, domain, metric))

    def placed(self, arm: str, domain: str) -> PlacedGain | None:
        """Return the verdict on an arm in a domain; None where nothing was trained."""
        rows = (row for row in self.placements if row.primary)
        return next((row for row in rows if (row.arm, row.domain) == (arm, domain)), None)

    def trend(self, arm: str, domain: str, metric: str) -> Trend | None:
        """Return a metric's trend; None with fewer than three checkpoints."""
        rows = (row for row in self.trends if row.metric == metric)
        return next((row for row in rows if (row.arm, row.domain) == (arm, domain)), None)

    def seed_values(self, arm: str, checkpoint: int, domain: str, metric: str) -> list[float]:
        """Return a metric's value for each seed of an arm; [] for an arm of one seed."""
        estimates = (
            point.metrics[metric]
            for point in self.seed_points
            if point.arm in self.arms[arm].seeds
            and (point.checkpoint, point.domain) == (checkpoint, domain)
        )
        return [each.value for each in estimates if each.value is not None]

    def label_of(self, point: PointSummary) -> str:
        """Return the name of a point of `ends` for a heading."""
        if point.checkpoint == 0:
            return self.label_of_start(point.arm)
        return f"{self.label(point.arm)}, step {point.checkpoint}"

    def label_of_start(self, arm: str) -> str:
        """Return what an arm starts from: "base", or the label of another arm and the step."""
        start = self.arms[arm].start
        if not start:
            return "base"
        other, _, step = start.rpartition("@")
        return f"{self.label(other) if other in self.arms else other}, step {step}"

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
                "by_seed": None if each.seeds is None else asdict(each.seeds),
            }
            for each in self.changes
        ]
        for row in (*fields["points"], *fields["seed_points"]):
            row["metrics"] = {
                name: each for name, each in row["metrics"].items() if each["value"] is not None
            }
            if not row["layers"]:
                del row["layers"]
        for row in fields["arm_differences"]:
            row["by_seed"] = row.pop("seeds")
            row |= row.pop("estimate") | {"p": row.pop("p")}
        for row in fields["trends"]:
            row |= row.pop("estimate") | {"p": row.pop("p")}
        for row in fields["placements"]:
            row |= row.pop("placement")
        fields["information"] = {
            arm: [row.model_dump(mode="json") for row in rows]
            for arm, rows in self.information.items()
        }
        head = {
            "schema_version": SCHEMA_VERSION,
            "metrics": {name: asdict(metric) for name, metric in METRICS.items()},
            "intervals": {"level": statistics.LEVEL},
        }
        return json.dumps(head | fields, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
