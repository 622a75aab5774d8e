"""The tables of the report page, as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from cotjax.diagnostics.metrics import METRICS
from cotjax.diagnostics.probes import PROBE_METRICS
from cotjax.diagnostics.statistics import Estimate
from cotjax.formats import PROBLEMS
from cotjax.objectives.named import REINFORCED
from cotjax.report.compare import COMPARED
from cotjax.report.elicitations import validity
from cotjax.report.labels import NOT_DEFINED, domain_label, p_text, percent, spread
from cotjax.report.rows import ArmDifference, Change, Seeds
from cotjax.report.section import Cell, SectionRow, SectionTable, under_headings
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


def numbers(summary: Summary, domain: str) -> list[SectionTable]:
    """Return every metric at the base and at the last checkpoint of each arm.

    A table for what comes from records, and one for each probe.
    """
    points = summary.ends(domain)
    heads = tuple(map(summary.label_of, points))
    tables = []
    for name, metrics in _by_source(METRICS).items():
        rows = []
        for metric in metrics:
            estimates = [point.metrics[metric] for point in points]
            if any(estimate.measured for estimate in estimates):
                kind = METRICS[metric].kind
                cells = (
                    Cell(
                        _number(estimate, kind),
                        _behind(estimate, metric),
                        note=validity(point, metric),
                    )
                    for estimate, point in zip(estimates, points, strict=True)
                )
                rows.append(SectionRow(METRICS[metric].label + _UNITS[kind], tuple(cells)))
        title = f"{domain_label(domain)}{name}: base and last checkpoint"
        tables.append(SectionTable(title, heads, tuple(rows), rows_are="diagnostic"))
    return tables


def comparisons(summary: Summary, domain: str) -> list[SectionTable]:
    """Return each arm's change from the base and its difference from the baseline, by metric.

    The tables are those of `numbers`.
    """
    others = [arm for arm, about in summary.compared.items() if about.minus is not None]
    columns = [
        f"{about.label}: change from {summary.label_of_start(arm)}"
        for arm, about in summary.compared.items()
    ]
    columns += [
        f"{summary.label(arm)} minus {summary.label(summary.arms[arm].minus or '')}"
        for arm in others
    ]
    tables = []
    for name, metrics in _by_source(COMPARED).items():
        rows = []
        for metric in metrics:
            differences: list[Change | ArmDifference | None] = [
                summary.change(arm, domain, metric) for arm in summary.compared
            ]
            differences += [summary.arm_difference(arm, domain, metric) for arm in others]
            if any(differences):
                cells = tuple(map(_difference, differences))
                rows.append(SectionRow(METRICS[metric].label, cells))
        title = f"{domain_label(domain)}{name}: differences, in percentage points"
        tables.append(SectionTable(title, tuple(columns), tuple(rows), rows_are="diagnostic"))
    return tables


def _by_source(metrics: Iterable[str]) -> dict[str, list[str]]:
    """Return metrics by what they come from: "" for records, and each probe in words."""
    found: dict[str, list[str]] = {"": []}
    for name in metrics:
        source = f", probe {METRICS[name].source}" if name in PROBE_METRICS else ""
        found.setdefault(source, []).append(name)
    return found


def played(summary: Summary) -> SectionTable:
    """Return the episodes and expert states of each point."""
    nothing, rows = Played(0, 0, 0, {}), []
    for label, point in _labelled_points(summary):
        cot, prompt, reference = (
            point.episodes.get(driver, nothing) for driver in ("cot", "prompt", "reference")
        )
        others = ", ".join(
            f"{driver.replace('_', ' ')}: {each.played} ({each.won})"
            for driver, each in point.episodes.items()
            if driver not in ("cot", "prompt", "reference")
        )
        cells = (
            str(point.checkpoint),
            domain_label(point.domain),
            f"{cot.played} ({cot.won})",
            f"{prompt.played} ({prompt.won})",
            others or "–",
            f"{point.metrics['d1_cot'].n} ({reference.played})",
            str(sum(each.ended.get("length", 0) for each in point.episodes.values())),
            str(sum(each.env_error for each in point.episodes.values())),
            str(sum(point.env_faults.values())),
        )
        rows.append(SectionRow(label, cells))
    columns = (
        "checkpoint",
        "domain",
        "CoT-driven episodes (won)",
        "prompt-driven episodes (won)",
        "other episodes (won)",
        "expert states (trajectories)",
        "prompt too long",
        "broken by the environment, excluded",
        "environment faults, retried or not",
    )
    title = "Episodes behind each point"
    return SectionTable(title, columns, tuple(rows), rows_are="arm", words=(1, 4))


def held_out(summary: Summary, most: int = 12) -> SectionTable:
    """Return the held-out losses of the arms that have any, at up to `most` checkpoints.

    The checkpoints are evenly spread, the first and the last included. The lowest loss of an arm is
    marked `sure`.
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
        rows.append(SectionRow(str(step), tuple(cells)))
    several = {arm for arm, about in summary.arms.items() if len(about.seeds) > 1}
    columns = tuple(
        summary.label(arm_of[seed]) + (f" ({seed})" if arm_of[seed] in several else "")
        for seed in by_arm
    )
    playing = [about.label for about in summary.arms.values() if about.objective in REINFORCED]
    note = f"{NOT_DEFINED.capitalize()} for {', '.join(playing)}: what is trained on is played."
    return SectionTable("", columns, tuple(rows), (note,) if playing else (), rows_are="step")


def every_point(summary: Summary) -> SectionTable:
    """Return the metrics of POINT_COLUMNS at each point, by domain."""
    columns = ("checkpoint", *(f"{METRICS[name].label}, %" for name in POINT_COLUMNS))
    by_domain: dict[str, list[SectionRow]] = {domain: [] for domain in summary.domains}
    for label, point in _labelled_points(summary):
        cells = (
            percent(point.metrics[name], signed=METRICS[name].kind == "difference")
            for name in POINT_COLUMNS
        )
        row = SectionRow(label, (str(point.checkpoint), *cells))
        by_domain[point.domain].append(row)
    rows = under_headings((domain_label(domain), each) for domain, each in by_domain.items())
    return SectionTable("Every point of the curves", columns, rows, rows_are="arm")


def responses(summary: Summary) -> SectionTable:
    """Return how valid and acceptable the responses of each point and kind were."""
    rows = []
    for label, point in _labelled_points(summary):
        for driver, mode in (("cot", "CoT"), ("prompt", "prompt"), ("instructed", "instructed")):
            if driver not in point.episodes:
                continue
            names = (f"{name}_{driver}" for name in ("valid", "admissible", "not_accepted"))
            reasons = point.invalid[driver].items()
            cells = (
                str(point.checkpoint),
                domain_label(point.domain),
                mode,
                *(percent(point.metrics[name], digits=1) for name in names),
                ", ".join(f"{PROBLEMS.get(reason, reason)}: {n}" for reason, n in reasons) or "–",
            )
            rows.append(SectionRow(label, cells))
    columns = (
        "checkpoint",
        "domain",
        "mode",
        "valid",
        "admissible",
        "not accepted",
        "invalid, by reason",
    )
    note = (
        "Valid: a well-formed response with one action. Admissible: valid, and among the commands "
        "that the environment offered. Not accepted: sent, and refused by the environment. Of the "
        "responses that drove an episode, in percent."
    )
    title = "Responses behind each point"
    return SectionTable(title, columns, tuple(rows), (note,), rows_are="arm", words=(1, 2, 6))


def _labelled_points(summary: Summary) -> Iterator[tuple[str, PointSummary]]:
    """Yield every point with its arm's name; a base that arms share comes once."""
    shared: list[PointSummary] = []
    for point in summary.points:
        nameless = replace(point, arm="")
        if point.checkpoint == 0 and nameless in shared:
            continue
        shared.append(nameless)
        start = summary.label_of_start(point.arm)
        yield (start if point.checkpoint == 0 else summary.label(point.arm)), point


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
