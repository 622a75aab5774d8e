"""report.html: a study as one page that opens offline, with text, styles and figures inside.

The template escapes everything that comes from records or from run.json. The same records and
run.json give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console

from cotjax.diagnostics.episodes import action_of, same_action
from cotjax.diagnostics.metrics import METRICS
from cotjax.diagnostics.statistics import RESAMPLES
from cotjax.report import tables
from cotjax.report.answers import answers, lead
from cotjax.report.figures import CHARTS, COLOURS, alt_text, arm_colours, panel_svg, write_figures
from cotjax.report.labels import domain_label
from cotjax.report.summarize import summarize
from cotjax.report.summary import Summary
from cotjax.report.terminal import terminal_table
from cotjax.rollout.record import PlayedGame, Response, read_record
from cotjax.runtime.files import write_atomic
from cotjax.runtime.pages import load_template
from cotjax.runtime.settings import flatten

# The arms' colours on a dark page, in the order of figures.COLOURS.
_DARK_COLOURS = ("#5ab4f0", "#ff9351", "#3fcf9f", "#e7a3c8", "#e0b040", "#9ad4f5")
_DRIVER_LABELS = {
    "cot": "CoT-driven episodes",
    "prompt": "prompt-driven episodes",
    "reference": "trajectories of expert states",
}


@dataclass(frozen=True)
class Panel:
    """One domain of a chart. `alt`: the panel in words."""

    domain: str
    alt: str
    svg: Markup


@dataclass(frozen=True)
class ChartPanels:
    """One chart of the page."""

    title: str
    note: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class ShownAction:
    """An action as the page shows it. `note`: why it was not carried out, if so."""

    text: str
    note: str


@dataclass(frozen=True)
class ShownStep:
    """A step of the shown episode. `prompt`: None where no prompt action was decoded."""

    observation: str
    thought: str
    cot: ShownAction
    prompt: ShownAction | None
    same: bool
    accepted: bool | None


@dataclass(frozen=True)
class ShownEpisode:
    """The episode that the page shows. `revisions`: number of steps whose actions differ."""

    task: str
    success: bool
    checkpoint: int
    game: PlayedGame
    arm: str
    domain: str
    steps: tuple[ShownStep, ...]
    revisions: int
    final_observation: str | None


@dataclass(frozen=True)
class Facts:
    """A section of settings: (name, value) rows. `folded`: shown on demand."""

    title: str
    rows: tuple[tuple[str, str], ...]
    folded: bool = False


def make_report(run_folder: str | Path, console: Console | None = None) -> Summary:
    """Write summary.json, figures/*.png and report.html of a run; return the summary.

    `console`: prints the terminal's table.

    Raises:
      DataError: records are missing or malformed; the message names the file.
    """
    run_folder = Path(run_folder)
    summary = summarize(run_folder)
    write_figures(summary, run_folder / "figures")
    write_report(run_folder, summary)
    if console is not None:
        console.print(terminal_table(summary))
    return summary


def write_report(run_folder: str | Path, summary: Summary | None = None) -> Path:
    """Write `run_folder`/report.html and return its path.

    `summary`: None: it is made from the records.
    """
    run_folder = Path(run_folder)
    summary = summarize(run_folder) if summary is None else summary
    run, colours = summary.run, arm_colours(summary)
    loss_columns, loss_rows = tables.held_out(summary)
    page = load_template(Path(__file__).parent / "page.html.jinja").render(
        summary=summary,
        resamples=RESAMPLES,
        title=run.get("title") or run.get("name") or run_folder.name,
        created=run.get("created"),
        lead=lead(summary),
        answers=answers(summary),
        palette=list(zip(COLOURS, _DARK_COLOURS, strict=True)),
        arms=[
            (arm, about.label, COLOURS.index(colours[arm])) for arm, about in summary.arms.items()
        ],
        charts=_charts(summary),
        numbers=[tables.numbers(summary, domain) for domain in summary.domains],
        comparisons=[tables.comparisons(summary, domain) for domain in summary.domains],
        played=tables.played(summary),
        responses=tables.responses(summary),
        point_columns=[METRICS[name].label for name in tables.POINT_COLUMNS],
        point_rows=tables.point_rows(summary),
        loss_columns=loss_columns,
        loss_rows=loss_rows,
        episode=_shown_episode(run_folder, summary),
        elicitation=_elicitation(summary),
        facts=_facts(summary),
    )
    path = run_folder / "report.html"
    write_atomic(path, page)
    return path


def _charts(summary: Summary) -> list[ChartPanels]:
    charts = []
    for name, chart in CHARTS.items():
        panels = (
            Panel(
                domain_label(domain),
                alt_text(summary, name, domain),
                Markup(panel_svg(summary, name, domain, f"{name}-{i}-")),
            )
            for i, domain in enumerate(summary.domains)
        )
        charts.append(ChartPanels(chart.title, chart.note, tuple(panels)))
    return charts


def _elicitation(summary: Summary) -> list[Facts]:
    """Return one table for each different elicitation, titled by the records made with it."""
    merged: list[tuple[dict[str, Any], list[str]]] = []
    for use in summary.elicitation:
        records = f"{use.records} {_DRIVER_LABELS[use.driver]}"
        for elicitation, titles in merged:
            if elicitation == use.elicitation:
                titles.append(records)
                break
        else:
            merged.append((use.elicitation, [records]))
    return [Facts(", ".join(titles), _rows(elicitation)) for elicitation, titles in merged]


def _shown_episode(run_folder: Path, summary: Summary) -> ShownEpisode | None:
    """Return the shown episode, each step with both actions; None where there is none."""
    if summary.shown_episode is None:
        return None
    record = read_record(run_folder / summary.shown_episode)
    steps = []
    for turn in record.steps:
        assert turn.cot is not None, "the episode is CoT-driven"
        steps.append(
            ShownStep(
                observation=turn.observation,
                thought=(turn.cot.thought or "").strip(),
                cot=_shown_action(turn.cot),
                prompt=None if turn.prompt is None else _shown_action(turn.prompt),
                same=turn.prompt is not None and same_action(turn.cot, turn.prompt),
                accepted=turn.accepted,
            )
        )
    arm = summary.arms.get(record.arm)
    return ShownEpisode(
        task=record.task,
        success=record.success,
        checkpoint=record.checkpoint,
        game=record.game,
        arm=arm.label if arm else "base model",
        domain=domain_label(record.domain),
        steps=tuple(steps),
        revisions=sum(not step.same for step in steps if step.prompt),
        final_observation=record.final_observation,
    )


def _shown_action(response: Response) -> ShownAction:
    text = action_of(response)
    if text is None:
        problem = response.problem or "no action"
        return ShownAction(response.text.strip(), f"invalid: {problem}")
    return ShownAction(text, "not admissible here" if response.admissible is False else "")


def _facts(summary: Summary) -> list[Facts]:
    """Return run.json in sections, the config last and folded, with the records' seconds."""
    titles = {"data": "Training data", "train": "Training", "seconds": "Seconds per stage"}
    shown_above = ("title", "arms", "checkpoints")
    rest = {
        key: value
        for key, value in summary.run.items()
        if key not in shown_above and value not in (None, {}, [])
    }
    single = [(key, _plain(value)) for key, value in rest.items() if not isinstance(value, dict)]
    single.append(("world", summary.world))
    single += [
        (f"seconds in records, {kind}", f"{seconds:.1f}")
        for kind, seconds in summary.seconds.items()
    ]
    sections = [
        Facts(titles.get(key, key.capitalize()), _rows(value), folded=key == "config")
        for key, value in sorted(rest.items(), key=lambda item: item[0] == "config")
        if isinstance(value, dict)
    ]
    return [Facts("Run", tuple(single)), *sections]


def _rows(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return nested settings as (dotted name, text) rows."""
    return tuple((name, _plain(value)) for name, value in flatten(settings).items())


def _plain(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value) if value not in ("", {}) else "(empty)"
