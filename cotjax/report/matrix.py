"""The OOD matrix: what the arms were trained on, by what they were played on.

A cell is a rate at the last checkpoint. It is not interpreted where the base, which is the pilot of
every arm, is outside 10 to 90 %, so that there is no room to fall or to rise, or where fewer than
60 games were played.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cotjax.objectives.named import REINFORCED
from cotjax.report.labels import capitalize, domain_label, percent
from cotjax.report.section import Cell, Section, SectionRow, SectionTable
from cotjax.report.summary import BASE, PointSummary, Summary
from cotjax.report.warnings import ENOUGH_GAMES

LEAST, MOST = 0.1, 0.9  # of the pilot
_MOST_COLUMNS = 6
_KINDS = {"cot": "CoT action", "prompt": "prompt action"}
_MEASURES = {
    "d3": "Success of whole episodes (D3), in percent",
    "d1": "Agreement with the expert (D1), in percent",
}


def matrix(summary: Summary) -> Section:
    """Return a table a measure: the base and every arm by domain and kind of action."""
    tables, data = [], {arm: trained_on(summary, arm) for arm in summary.compared}
    alike = len(set(data.values())) == 1
    for measure, title in _MEASURES.items():
        columns = [
            (domain, kind)
            for domain in summary.domains
            for kind in _KINDS
            if any(
                point.metrics[f"{measure}_{kind}"].measured
                for point in summary.points
                if point.domain == domain
            )
        ]
        # Many domains have a table for each kind of action, which is as wide as a screen.
        split = len(columns) > _MOST_COLUMNS
        groups = [[kind] for kind in _KINDS] if split else [list(_KINDS)]
        for kinds in groups:
            of_kinds = [(domain, kind) for domain, kind in columns if kind in kinds]
            heads = tuple(
                f"{capitalize(domain_label(domain))}, {_KINDS[kind]}" for domain, kind in of_kinds
            )
            rows = tuple(
                SectionRow(
                    "base (the pilot)" if arm == BASE else summary.label(arm),
                    tuple(
                        _cell(summary, arm, domain, f"{measure}_{kind}", not alike)
                        for domain, kind in of_kinds
                    ),
                    note="" if arm == BASE or alike else data[arm],
                )
                for arm in _rows(summary)
            )
            named = f"{title}: {_KINDS[kinds[0]]}" if split else title
            if of_kinds:
                tables.append(SectionTable(named, heads, rows, rows_are="trained on"))
    first = next(iter(data.values()))
    said = (f"All arms were trained on {first}.",) if alike and first else ()
    return Section("matrix", "Trained on, by played on", tuple(tables), said, _notes(summary))


def not_interpreted(summary: Summary, arm: str, domain: str, metric: str) -> str:
    """Return why an arm's rate in a domain is not interpreted; "" where it is."""
    base, point = _pilot(summary, arm, domain), _point(summary, arm, domain)
    if point is None or point.metrics[metric].value is None:
        return "not measured"
    games, reasons = point.metrics[metric].games, []
    pilot = base.metrics[metric].value if base else None
    if pilot is None:
        reasons.append(f"the {_pilots(summary, arm)} was not played")
    elif not LEAST <= pilot <= MOST:
        reasons.append(
            f"the {_pilots(summary, arm)} is at {100 * pilot:.0f} %, outside {100 * LEAST:.0f} to "
            f"{100 * MOST:.0f} %"
        )
    if games < ENOUGH_GAMES:
        reasons.append(f"{games} games, fewer than {ENOUGH_GAMES}")
    return "; ".join(reasons)


def trained_on(summary: Summary, arm: str) -> str:
    """Return what an arm was trained on, in words; "" where run.json does not say."""
    run, seeds = summary.run, summary.arms[arm].seeds
    described = next((about for seed in seeds if (about := _of(run, "arms", seed))), {})
    files = described.get("trajectories") or _of(run, "config", "data").get("trajectories")
    types = ", ".join(task_types_of(summary, arm))
    # An arm that plays what it learns from has no file.
    if files and summary.arms[arm].objective not in REINFORCED:
        of_file = f"episodes of {str(files).rpartition('/')[2]}"
        return f"{of_file}: {types}" if described.get("task_types") else of_file
    parts = [types] if types else []
    held_out = [
        domain_label(name).removeprefix("out-of-domain ").strip("()")
        for name, about in _of(run, "games").items()
        if isinstance(about, dict) and about.get("held_out")
    ]
    if held_out:
        parts.append(f"held out: {', '.join(held_out)}")
    return "; ".join(parts)


def task_types_of(summary: Summary, arm: str) -> tuple[str, ...]:
    """Return the task types that an arm is trained on: its own, or those of the config."""
    own = summary.arms[arm].recipe.get("task_types")
    types = own or _of(summary.run, "config", "task_types").get("in_domain") or ()
    return tuple(map(str, types)) if isinstance(types, list | tuple) else ()


def _seen(summary: Summary, arm: str, domain: str) -> str:
    """Return whether a domain's task types are those of an arm's training; "" if not known."""
    played = _of(summary.run, "games", domain).get("task_types") or ()
    trained = task_types_of(summary, arm)
    if not played or not trained:
        return ""
    seen = sum(each in trained for each in played)
    if seen in (0, len(played)):
        return "task types of its training" if seen else "new task types"
    return f"{seen} of {len(played)} task types of its training"


def _rows(summary: Summary) -> Iterator[str]:
    if any(_base(summary, domain) for domain in summary.domains):
        yield BASE
    yield from (arm for arm in summary.compared if arm != BASE and summary.last_checkpoint)


def _cell(summary: Summary, arm: str, domain: str, metric: str, types: bool) -> Cell:
    """Return a cell. `types`: it says whether its task types are those of the arm's training."""
    point = _point(summary, arm, domain)
    estimate = point.metrics[metric] if point else None
    if estimate is None or not estimate.measured:
        return Cell("–", mark="not measured")
    unit = "episodes" if metric.startswith("d3") else "states"
    behind = f"{estimate.games} games, {estimate.n} {unit}"
    reason = not_interpreted(summary, arm, domain, metric)
    change = None if reason or arm == BASE else summary.change(arm, domain, metric)
    note = f"Δ {percent(change.estimate, signed=True)}" if change else ""
    if types and arm != BASE and (seen := _seen(summary, arm, domain)):
        behind += f"; {seen}"
    return Cell(percent(estimate), behind, note=note, mark=reason)


def _base(summary: Summary, domain: str) -> PointSummary | None:
    own = (arm for arm, about in summary.arms.items() if not about.start)
    points = (summary.point(arm, 0, domain) for arm in own)
    return next((point for point in points if point is not None), None)


def _pilot(summary: Summary, arm: str, domain: str) -> PointSummary | None:
    """Return what an arm starts from."""
    started = arm != BASE and summary.arms[arm].start
    return summary.point(arm, 0, domain) if started else _base(summary, domain)


def _pilots(summary: Summary, arm: str) -> str:
    return "start" if arm != BASE and summary.arms[arm].start else "base"


def _point(summary: Summary, arm: str, domain: str) -> PointSummary | None:
    return _base(summary, domain) if arm == BASE else summary.last(arm, domain)


def _of(run: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return a mapping within run.json; {} where there is none."""
    for name in names:
        inner = run.get(name)
        run = inner if isinstance(inner, Mapping) else {}
    return run


def _notes(summary: Summary) -> tuple[str, ...]:
    notes = [
        "With 95 % intervals. Δ: change from the base, in points, on the same games. "
        f"“Not interpreted”: the base, which is the pilot, is outside {100 * LEAST:.0f} to "
        f"{100 * MOST:.0f} % there, or fewer than {ENOUGH_GAMES} games were played. Out of domain "
        "such a cell has no verdict anywhere on this page."
    ]
    for domain in summary.domains:
        about = _of(summary.run, "games", domain)
        types, parts = about.get("task_types") or (), []
        if about.get("split"):
            parts.append(f"split {about['split']}")
        if about.get("held_out"):
            parts.append(f"held out: {about['held_out']}")
        if types:
            parts.append(", ".join(map(str, types)))
        if parts:
            notes.append(f"{capitalize(domain_label(domain))}: {'; '.join(parts)}.")
    return tuple(notes)
