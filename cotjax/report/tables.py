"""The tables of the report page, as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cotjax.diagnostics.metrics import METRICS
from cotjax.diagnostics.statistics import Estimate
from cotjax.formats import PROBLEMS
from cotjax.report.compare import COMPARED
from cotjax.report.elicitations import validity
from cotjax.report.labels import domain_label, p_text, percent, spread
from cotjax.report.rows import ArmDifference, Change, Seeds
from cotjax.report.summary import Played, PointSummary, Summary

POINT_COLUMNS = (
    "d3_cot",
    "d3_prompt",
    "gap",
    "d1_cot",
    "d1_prompt",
    "d2",
    "revision_helpful",
    "revision_harmful",
)
_UNITS = {"rate": ", %", "difference": ", points", "mean": ""}


@dataclass(frozen=True)
class Cell:
    """A number.

    Attributes:
      behind: what it was counted on.
      sure: its interval excludes 0.
      note: what else belongs to it.
    """

    text: str
    behind: str = ""
    sure: bool = False
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One metric."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class DomainTable:
    """A table of metrics in one domain."""

    domain: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class PlayedRow:
    """Episodes and expert states of one point.

    Attributes:
      length: episodes whose prompt outgrew the context.
      env_error: episodes that the environment broke.
      others: episodes that other kinds of action drove, in words.
    """

    arm: str
    checkpoint: int
    domain: str
    cot: Played
    prompt: Played
    states: int
    trajectories: int
    length: int
    env_error: int
    env_faults: int
    others: str


@dataclass(frozen=True)
class PointRow:
    """The metrics of one point."""

    arm: str
    checkpoint: int
    domain: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class ResponseRow:
    """The responses of one kind at one point.

    Attributes:
      cells: shares that were valid, admissible, and not accepted.
      invalid: reasons of invalid responses, with their number.
    """

    arm: str
    checkpoint: int
    domain: str
    mode: str
    cells: tuple[str, ...]
    invalid: str


@dataclass(frozen=True)
class LossRow:
    """Held-out losses at one checkpoint, one cell per arm. `sure`: the lowest of its arm."""

    checkpoint: int
    cells: tuple[Cell, ...]


def numbers(summary: Summary, domain: str) -> DomainTable:
    """Return every metric at the base and at the last checkpoint of each arm."""
    points = summary.ends(domain)
    rows = []
    for name, metric in METRICS.items():
        estimates = [point.metrics[name] for point in points]
        if any(estimate.measured for estimate in estimates):
            cells = (
                Cell(
                    _number(estimate, metric.kind),
                    _behind(estimate, name),
                    note=validity(point, name),
                )
                for estimate, point in zip(estimates, points, strict=True)
            )
            rows.append(Row(metric.label + _UNITS[metric.kind], tuple(cells)))
    return DomainTable(domain_label(domain), tuple(map(summary.label_of, points)), tuple(rows))


def comparisons(summary: Summary, domain: str) -> DomainTable:
    """Return each arm's change from the base and its difference from the baseline, by metric."""
    others = [arm for arm, about in summary.arms.items() if about.minus is not None]
    columns = [f"{about.label}: change from base" for about in summary.arms.values()]
    columns += [
        f"{summary.label(arm)} minus {summary.label(summary.arms[arm].minus or '')}"
        for arm in others
    ]
    rows = []
    for metric in COMPARED:
        differences: list[Change | ArmDifference | None] = [
            summary.change(arm, domain, metric) for arm in summary.arms
        ]
        differences += [summary.arm_difference(arm, domain, metric) for arm in others]
        if any(differences):
            rows.append(Row(METRICS[metric].label, tuple(map(_difference, differences))))
    return DomainTable(domain_label(domain), tuple(columns), tuple(rows))


def played(summary: Summary) -> list[PlayedRow]:
    """Return the episodes and expert states of each point."""
    nothing = Played(0, 0, 0, {})
    rows = []
    for label, point in _labelled_points(summary):
        cot, prompt, reference = (
            point.episodes.get(driver, nothing) for driver in ("cot", "prompt", "reference")
        )
        rows.append(
            PlayedRow(
                arm=label,
                checkpoint=point.checkpoint,
                domain=domain_label(point.domain),
                cot=cot,
                prompt=prompt,
                states=point.metrics["d1_cot"].n,
                trajectories=reference.played,
                length=sum(each.ended.get("length", 0) for each in point.episodes.values()),
                env_error=sum(each.env_error for each in point.episodes.values()),
                env_faults=sum(point.env_faults.values()),
                others=", ".join(
                    f"{driver.replace('_', ' ')}: {each.played} ({each.won})"
                    for driver, each in point.episodes.items()
                    if driver not in ("cot", "prompt", "reference")
                ),
            )
        )
    return rows


def held_out(summary: Summary, most: int = 12) -> tuple[tuple[str, ...], list[LossRow]]:
    """Return the arms with held-out losses, and the losses at up to `most` checkpoints.

    The checkpoints are evenly spread, the first and the last included.
    """
    arm_of = {seed: arm for arm, about in summary.arms.items() for seed in about.seeds}
    by_arm = {
        arm: {each.checkpoint: each for each in losses} for arm, losses in summary.held_out.items()
    }
    steps = sorted({step for losses in by_arm.values() for step in losses})
    lowest = {arm: min(each.loss for each in losses) for arm, losses in summary.held_out.items()}
    rows = []
    for step in spread(steps, most):
        cells = []
        for arm, losses in by_arm.items():
            loss = losses.get(step)
            if loss is None:
                cells.append(Cell("–"))
                continue
            roles = (
                f"{role.lower().replace('_', ' ')} {value:.3f}"
                for role, value in loss.loss_by_role.items()
            )
            cells.append(Cell(f"{loss.loss:.4f}", ", ".join(roles), loss.loss == lowest[arm]))
        rows.append(LossRow(step, tuple(cells)))
    several = {arm for arm, about in summary.arms.items() if len(about.seeds) > 1}
    return tuple(
        summary.label(arm_of[seed]) + (f" ({seed})" if arm_of[seed] in several else "")
        for seed in by_arm
    ), rows


def point_rows(summary: Summary) -> list[PointRow]:
    """Return the metrics of POINT_COLUMNS at each point."""
    return [
        PointRow(
            label,
            point.checkpoint,
            domain_label(point.domain),
            tuple(_number(point.metrics[name], METRICS[name].kind) for name in POINT_COLUMNS),
        )
        for label, point in _labelled_points(summary)
    ]


def responses(summary: Summary) -> list[ResponseRow]:
    """Return how valid and acceptable the responses of each point and kind were."""
    rows = []
    for label, point in _labelled_points(summary):
        for driver, mode in (("cot", "CoT"), ("prompt", "prompt"), ("instructed", "instructed")):
            if driver not in point.episodes:
                continue
            names = (f"{name}_{driver}" for name in ("valid", "admissible", "not_accepted"))
            reasons = point.invalid[driver].items()
            rows.append(
                ResponseRow(
                    arm=label,
                    checkpoint=point.checkpoint,
                    domain=domain_label(point.domain),
                    mode=mode,
                    cells=tuple(percent(point.metrics[name], digits=1) for name in names),
                    invalid=", ".join(
                        f"{PROBLEMS.get(reason, reason)}: {n}" for reason, n in reasons
                    ),
                )
            )
    return rows


def _labelled_points(summary: Summary) -> Iterator[tuple[str, PointSummary]]:
    """Yield every point with its arm's name; a base that arms share comes once."""
    shared: list[PointSummary] = []
    for point in summary.points:
        nameless = replace(point, arm="")
        if point.checkpoint == 0 and nameless in shared:
            continue
        shared.append(nameless)
        yield ("base" if point.checkpoint == 0 else summary.label(point.arm)), point


def _number(estimate: Estimate, kind: str) -> str:
    if kind == "mean" and estimate.measured:
        return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"
    return percent(estimate, signed=kind == "difference", digits=1)


def _behind(estimate: Estimate, name: str) -> str:
    unit = "episodes" if name.startswith(("d3", "gap", "steps")) else "states"
    return f"{estimate.n} {unit}, {estimate.games} games" if estimate.measured else ""


def _difference(row: Change | ArmDifference | None) -> Cell:
    if row is None or not row.estimate.measured:
        return Cell("–")
    behind = f"{row.estimate.games} games" + ("" if row.p is None else f", {p_text(row.p)}")
    mean = METRICS[row.metric].kind == "mean"
    note = "" if row.seeds is None else _seeds(row.seeds, 1 if mean else 100)
    text = _signed_mean(row.estimate) if mean else percent(row.estimate, signed=True, digits=1)
    return Cell(text, behind, row.excludes_zero, note)


def _signed_mean(estimate: Estimate) -> str:
    value, low, high = (
        f"{(x or 0.0) + 0.0:+.2f}" for x in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]".replace("-", "−")


def _seeds(seeds: Seeds, scale: float) -> str:
    """Return each seed's value."""
    values = [f"{scale * value + 0.0:+.1f}".replace("-", "−") for value in seeds.values.values()]
    return f"{len(values)} seeds: {', '.join(values)}"
