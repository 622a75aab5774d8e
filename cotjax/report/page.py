"""report.html: a study as one page that opens offline, on a phone too. Text, styles and figures are all inside the file.

Everything that comes from records or from run.json is escaped by the template. The same records and run.json give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console

from cotjax.diagnostics.episodes import action_of, same_action
from cotjax.formats import PROBLEMS
from cotjax.report.answers import answers, lead
from cotjax.report.figures import CHARTS, COLOURS, alt_text, arm_colours, panel_svg, write_figures
from cotjax.report.summary import (
    COMPARED,
    domain_label,
    find_point,
    p_text,
    percent,
    summarize,
    terminal_table,
)
from cotjax.rollout.record import Response, read_record
from cotjax.runtime.files import write_whole

# The arms' colours on a dark page, in the order of figures.COLOURS.
_DARK_COLOURS = ("#5ab4f0", "#ff9351", "#3fcf9f", "#e7a3c8", "#e0b040", "#9ad4f5")
_DRIVER_LABELS = {
    "cot": "CoT-driven episodes",
    "prompt": "prompt-driven episodes",
    "reference": "trajectories of expert states",
}
_POINT_COLUMNS = (
    "d3_cot",
    "d3_prompt",
    "gap",
    "d1_cot",
    "d1_prompt",
    "d2",
    "revision_helpful",
    "revision_harmful",
)


def make_report(run_folder: str | Path, console: Console | None = None) -> dict:
    """Summarise a run's records, write summary.json, figures/*.png and report.html into its folder, print the table, return the summary.

    Raises DataError, naming the file, when records are missing or broken.
    """
    run_folder = Path(run_folder)
    summary = summarize(run_folder)
    write_figures(summary, run_folder / "figures")
    write_report(run_folder, summary)
    if console is not None:
        console.print(terminal_table(summary))
    return summary


def write_report(run_folder: str | Path, summary: dict | None = None) -> Path:
    """Write `run_folder`/report.html (from `summary`, or from the records when it is not given) and return its path."""
    run_folder = Path(run_folder)
    summary = summarize(run_folder) if summary is None else summary
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    run, colours = summary["run"], arm_colours(summary)
    page = environment.get_template("page.html.jinja").render(
        summary=summary,
        title=run.get("title") or run.get("name") or run_folder.name,
        created=run.get("created"),
        lead=lead(summary),
        answers=answers(summary),
        palette=list(zip(COLOURS, _DARK_COLOURS, strict=True)),
        arms=[
            {"name": arm, "colour": COLOURS.index(colours[arm]), **about}
            for arm, about in summary["arms"].items()
        ],
        charts=_charts(summary),
        numbers=[_numbers(summary, domain) for domain in summary["domains"]],
        comparisons=[_comparisons(summary, domain) for domain in summary["domains"]],
        played=_played(summary),
        responses=_responses(summary),
        point_columns=[summary["metrics"][name]["label"] for name in _POINT_COLUMNS],
        point_rows=_point_rows(summary),
        episode=_episode(run_folder, summary),
        elicitation=_elicitation(summary),
        facts=_facts(run, summary),
        domain_label=domain_label,
    )
    path = run_folder / "report.html"
    write_whole(path, page)
    return path


def _charts(summary: dict) -> list[dict]:
    return [
        {
            "title": chart.title,
            "note": chart.note,
            "panels": [
                {
                    "domain": domain_label(domain),
                    "alt": alt_text(summary, name, domain),
                    "svg": Markup(panel_svg(summary, name, domain, f"{name}-{i}-")),
                }
                for i, domain in enumerate(summary["domains"])
            ],
        }
        for name, chart in CHARTS.items()
    ]


def _numbers(summary: dict, domain: str) -> dict:
    """Every metric at the base and at the last checkpoint of each arm."""
    columns = [("base", next(iter(summary["arms"])), 0)]
    if summary["last_checkpoint"]:
        columns += [
            (
                f"{about['label']}, step {summary['last_checkpoint']}",
                arm,
                summary["last_checkpoint"],
            )
            for arm, about in summary["arms"].items()
        ]
    found = [
        (label, find_point(summary, arm, checkpoint, domain)) for label, arm, checkpoint in columns
    ]
    found = [(label, point["metrics"]) for label, point in found if point]
    rows = [
        {
            "label": about["label"]
            + (
                ", %"
                if about["kind"] == "rate"
                else ", points"
                if about["kind"] == "difference"
                else ""
            ),
            "cells": [
                {
                    "text": _cell(metrics[name], about["kind"]),
                    "behind": _behind(metrics[name], about["source"], name),
                }
                for _, metrics in found
            ],
        }
        for name, about in summary["metrics"].items()
        if any(metrics[name]["value"] is not None for _, metrics in found)
    ]
    return {"domain": domain_label(domain), "columns": [label for label, _ in found], "rows": rows}


def _cell(estimate: dict, kind: str) -> str:
    if kind == "mean" and estimate["value"] is not None:
        return f"{estimate['value']:.1f} [{estimate['low']:.1f}, {estimate['high']:.1f}]"
    return percent(estimate, signed=kind == "difference", digits=1)


def _behind(estimate: dict, source: str, name: str) -> str:
    unit = "episodes" if name.startswith(("d3", "gap", "steps")) else "states"
    return "" if estimate["value"] is None else f"{estimate['n']} {unit}, {estimate['games']} games"


def _comparisons(summary: dict, domain: str) -> dict:
    """What changed from the base in each arm, and what the arms differ by at the last checkpoint; all on the same games."""
    baseline = summary["arms"][summary["baseline"]]["label"]
    columns = [
        (f"{about['label']}: change from base", arm, "changes")
        for arm, about in summary["arms"].items()
    ]
    columns += [
        (f"{about['label']} minus {baseline}", arm, "arm_differences")
        for arm, about in summary["arms"].items()
        if arm != summary["baseline"]
    ]
    rows = []
    for metric in COMPARED:
        cells = [
            next(
                (
                    row
                    for row in summary[kind]
                    if row["arm"] == arm and row["domain"] == domain and row["metric"] == metric
                ),
                None,
            )
            for _, arm, kind in columns
        ]
        if any(cells):
            rows.append(
                {
                    "label": summary["metrics"][metric]["label"],
                    "cells": [_difference_cell(cell) for cell in cells],
                }
            )
    return {
        "domain": domain_label(domain),
        "columns": [label for label, _, _ in columns],
        "rows": rows,
    }


def _difference_cell(row: dict | None) -> dict:
    if row is None or row["value"] is None:
        return {"text": "–", "behind": "", "sure": False}
    behind = f"{row['games']} games" + ("" if row["p"] is None else f", {p_text(row['p'])}")
    return {
        "text": percent(row, signed=True, digits=1),
        "behind": behind,
        "sure": row["low"] > 0 or row["high"] < 0,
    }


def _labelled_points(summary: dict) -> Iterator[tuple[str, dict]]:
    """Every point with its arm's short name; a base that all arms share stands there once."""
    shared = []
    for point in summary["points"]:
        contents = {key: value for key, value in point.items() if key != "arm"}
        if point["checkpoint"] == 0 and contents in shared:
            continue
        shared.append(contents)
        yield ("base" if point["checkpoint"] == 0 else point["arm"]), point


def _played(summary: dict) -> list[dict]:
    """Episodes and expert states behind each point of the curves."""
    nothing = {"played": 0, "won": 0, "env_error": 0, "ended": {}}
    rows = []
    for label, point in _labelled_points(summary):
        by_driver = {
            driver: point["episodes"].get(driver, nothing)
            for driver in ("cot", "prompt", "reference")
        }
        rows.append(
            {
                "arm": label,
                "checkpoint": point["checkpoint"],
                "domain": domain_label(point["domain"]),
                "cot": by_driver["cot"],
                "prompt": by_driver["prompt"],
                "states": point["metrics"]["d1_cot"]["n"],
                "trajectories": by_driver["reference"]["played"],
                "env_error": sum(ended["env_error"] for ended in by_driver.values()),
                "env_faults": sum(point["env_faults"].values()),
                "length": sum(
                    by_driver[driver]["ended"].get("length", 0) for driver in ("cot", "prompt")
                ),
            }
        )
    return rows


def _point_rows(summary: dict) -> list[dict]:
    return [
        {
            "arm": label,
            "checkpoint": point["checkpoint"],
            "domain": domain_label(point["domain"]),
            "cells": [
                _cell(point["metrics"][name], summary["metrics"][name]["kind"])
                for name in _POINT_COLUMNS
            ],
        }
        for label, point in _labelled_points(summary)
    ]


def _responses(summary: dict) -> list[dict]:
    """Of each point and mode: the shares of valid responses, of admissible actions and of actions that were not accepted, and what was invalid."""
    return [
        {
            "arm": label,
            "checkpoint": point["checkpoint"],
            "domain": domain_label(point["domain"]),
            "mode": mode,
            "cells": [
                percent(point["metrics"][f"{name}_{driver}"], digits=1)
                for name in ("valid", "admissible", "not_accepted")
            ],
            "invalid": ", ".join(
                f"{PROBLEMS.get(reason, reason)}: {n}"
                for reason, n in point["invalid"][driver].items()
            ),
        }
        for label, point in _labelled_points(summary)
        for driver, mode in (("cot", "CoT"), ("prompt", "prompt"))
        if driver in point["episodes"]
    ]


def _elicitation(summary: dict) -> list[dict]:
    """One table for each elicitation that differs, with the records made by it."""
    merged: list[dict] = []
    for row in summary["elicitation"]:
        found = next(
            (other for other in merged if other["elicitation"] == row["elicitation"]), None
        )
        if found is None:
            found = {
                "elicitation": row["elicitation"],
                "rows": list(_flat(row["elicitation"])),
                "records": [],
            }
            merged.append(found)
        found["records"].append(f"{row['records']} {_DRIVER_LABELS[row['driver']]}")
    return merged


def _episode(run_folder: Path, summary: dict) -> dict | None:
    """The shown episode, each step with both actions."""
    if summary["shown_episode"] is None:
        return None
    record = read_record(run_folder / summary["shown_episode"])
    steps = []
    for turn in record.steps:
        assert turn.cot is not None, "the episode is CoT-driven"
        steps.append(
            {
                "observation": turn.observation,
                "thought": (turn.cot.thought or "").strip(),
                "cot": _shown_action(turn.cot),
                "prompt": None if turn.prompt is None else _shown_action(turn.prompt),
                "same": turn.prompt is not None and same_action(turn.cot, turn.prompt),
                "accepted": turn.accepted,
            }
        )
    about = summary["arms"].get(record.arm, {"label": "base model"})
    return {
        "task": record.task,
        "success": record.success,
        "checkpoint": record.checkpoint,
        "game": record.game.id,
        "arm": about["label"],
        "domain": domain_label(record.domain),
        "steps": steps,
        "revisions": sum(not step["same"] for step in steps if step["prompt"]),
        "final_observation": record.final_observation,
    }


def _shown_action(response: Response) -> dict:
    text = action_of(response)
    if text is None:
        return {
            "text": response.text.strip(),
            "note": f"invalid: {response.problem or 'no action'}",
        }
    return {"text": text, "note": "not admissible here" if response.admissible is False else ""}


def _facts(run: dict, summary: dict) -> list[dict]:
    """run.json in sections, flattened, the config last and folded; what the records say about time is added."""
    titles = {"data": "Training data", "train": "Training", "seconds": "Seconds a stage"}
    shown_above = ("title", "arms", "checkpoints")
    rest = {
        key: value
        for key, value in run.items()
        if key not in shown_above and value not in (None, {}, [])
    }
    single = [(key, _plain(value)) for key, value in rest.items() if not isinstance(value, dict)]
    played = [
        (f"seconds in records, {kind}", f"{seconds:.1f}")
        for kind, seconds in summary["seconds"].items()
    ]
    sections = [
        {
            "title": titles.get(key, key.capitalize()),
            "rows": list(_flat(value)),
            "long": key == "config",
        }
        for key, value in sorted(rest.items(), key=lambda item: item[0] == "config")
        if isinstance(value, dict)
    ]
    return [{"title": "Run", "rows": single + played, "long": False}, *sections]


def _flat(value: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested dicts as (dotted key, text) rows."""
    if not isinstance(value, dict):
        yield prefix or "value", _plain(value)
        return
    for key, inner in value.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, name)
        else:
            yield name, _plain(inner)


def _plain(value) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    return "(empty)" if value == "" or value == {} else str(value)
