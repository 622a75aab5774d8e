"""report.html: a study as one page that opens offline, with text, styles and figures inside.

The template escapes everything that comes from records or from run.json. The same records and
run.json give the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from rich.console import Console

from cotjax.diagnostics.episodes import action_of, compared
from cotjax.diagnostics.metrics import METRICS
from cotjax.diagnostics.share import HALF
from cotjax.report import tables
from cotjax.report.answers import answers
from cotjax.report.arms import twin_of
from cotjax.report.elicitations import side_by_side
from cotjax.report.facts import elicitation_facts, prompt_facts, run_facts
from cotjax.report.figures import alt_text, panel_svg, write_figures
from cotjax.report.labels import domain_label
from cotjax.report.learned import INFORMATION_COLUMNS, information_rows, split_rows
from cotjax.report.panels import CHARTS, COLOURS
from cotjax.report.sections import sections
from cotjax.report.summarize import summarize
from cotjax.report.summary import Arm, Summary
from cotjax.report.terminal import terminal_table
from cotjax.report.verdicts import VerdictRow, lead, verdict_row
from cotjax.report.viewer.make import FOLDER as VIEWER
from cotjax.report.viewer.make import make_viewer
from cotjax.rollout.record import PlayedGame, Response, read_record
from cotjax.runtime.files import write_atomic
from cotjax.runtime.pages import load_template

_THOUGHTS = {
    "named": "Thoughts that name the action",
    "unnamed": "Thoughts that do not name the action",
}


@dataclass(frozen=True)
class Panel:
    """One arm of a chart in one domain. `alt`: the panel in words."""

    label: str
    alt: str
    svg: Markup


@dataclass(frozen=True)
class ChartPanels:
    """One chart of the page: (domain, panels) for each domain."""

    name: str
    title: str
    note: str
    domains: tuple[tuple[str, tuple[Panel, ...]], ...]


@dataclass(frozen=True)
class Card:
    """The verdict on one arm in one domain, with the panel that it was read from.

    Attributes:
      others: the verdicts by other measures.
      trained_on: what sets the arm apart, in words.
    """

    verdict: VerdictRow
    others: tuple[VerdictRow, ...]
    trained_on: str
    panel: Panel


@dataclass(frozen=True)
class CardGroup:
    """The cards that stand side by side. `title`: "" where there is one group."""

    title: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class ShownAction:
    """An action as the page shows it. `note`: why it was not carried out, if so."""

    text: str
    note: str


@dataclass(frozen=True)
class ShownStep:
    """A step of the shown episode.

    Attributes:
      prompt: None where no prompt action was decoded.
      same: None where there are no two actions to compare.
    """

    observation: str
    thought: str
    cot: ShownAction
    prompt: ShownAction | None
    same: bool | None
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


def make_report(run_folder: str | Path, console: Console | None = None) -> Summary:
    """Write summary.json, figures/*.png, report.html and viewer/ of a run; return the summary.

    `console`: prints the terminal's table.

    Raises:
      DataError: records are missing or malformed; the message names the file.
    """
    run_folder = Path(run_folder)
    summary = summarize(run_folder)
    write_figures(summary, run_folder / "figures")
    write_report(run_folder, summary)
    make_viewer([run_folder], run_folder / VIEWER)
    if console is not None:
        console.print(terminal_table(summary))
    return summary


def write_report(run_folder: str | Path, summary: Summary | None = None) -> Path:
    """Write `run_folder`/report.html and return its path.

    `summary`: None: it is made from the records.
    """
    run_folder = Path(run_folder)
    summary = summarize(run_folder) if summary is None else summary
    run, domains = summary.run, summary.domains
    loss_columns, loss_rows = tables.held_out(summary)
    prompt_settings, prompt_text = prompt_facts(run)
    page = load_template(Path(__file__).parent / "page.html.jinja").render(
        summary=summary,
        half=round(100 * HALF),
        title=run.get("title") or run.get("name") or run_folder.name,
        created=run.get("created"),
        planted=is_planted(summary),
        lead=lead(summary),
        cards=[(domain_label(domain), _cards(summary, domain)) for domain in domains],
        family_domains=" and ".join(map(domain_label, summary.primary.domains)),
        answers=answers(summary),
        palette=COLOURS,
        charts=_charts(summary),
        sections=sections(summary),
        labels={name: metric.label for name, metric in METRICS.items()},
        elicitations=[side_by_side(summary, domain) for domain in domains],
        information_columns=INFORMATION_COLUMNS,
        information=information_rows(summary),
        splits=split_rows(summary),
        twin=twin_of(summary.arms),
        numbers=[tables.numbers(summary, domain) for domain in domains],
        comparisons=[tables.comparisons(summary, domain) for domain in domains],
        played=tables.played(summary),
        responses=tables.responses(summary),
        point_columns=[METRICS[name].label for name in tables.POINT_COLUMNS],
        point_rows=tables.point_rows(summary),
        loss_columns=loss_columns,
        loss_rows=loss_rows,
        episode=_shown_episode(run_folder, summary),
        elicitation=elicitation_facts(summary),
        prompt_settings=prompt_settings,
        prompt_text=prompt_text,
        facts=run_facts(summary),
    )
    path = run_folder / "report.html"
    write_atomic(path, page)
    return path


def is_planted(summary: Summary) -> bool:
    """Whether arms were trained on data that differ on purpose: thoughts, or share without them."""
    return len({(arm.thoughts, arm.direct_share) for arm in summary.arms.values()}) > 1


def _cards(summary: Summary, domain: str) -> tuple[CardGroup, ...]:
    """Return the verdicts on a domain, grouped by the thoughts that arms were trained on."""
    groups: dict[str, list[Card]] = {}
    for arm, about in summary.arms.items():
        placed = summary.placed(arm, domain)
        if placed is None:
            continue
        title = ""
        if is_planted(summary):
            alone = about.direct_share == 1.0
            title = (
                "No thoughts: the ceiling of a prompt action"
                if alone
                else _THOUGHTS.get(about.thoughts, f"Thoughts: {about.thoughts or 'as given'}")
            )
        panel = _panel(summary, placed.measure, arm, domain, "verdict")
        others = tuple(
            verdict_row(summary, row)
            for row in summary.placements
            if (row.arm, row.domain) == (arm, domain) and not row.primary
        )
        card = Card(verdict_row(summary, placed), others, _trained_on(about), panel)
        groups.setdefault(title, []).append(card)
    return tuple(CardGroup(title, tuple(cards)) for title, cards in groups.items())


def _trained_on(about: Arm) -> str:
    parts = []
    if about.direct_share is not None:
        parts.append(f"{100 * about.direct_share:.0f} % direct examples")
    if about.fraction:
        what = "action losses" if about.control == "action" else about.control
        parts.append(f"{100 * about.fraction:.0f} % of {what} dropped")
    if len(about.seeds) > 1:
        parts.append(f"{len(about.seeds)} seeds")
    return ", ".join(parts)


def _panel(summary: Summary, chart: str, arm: str, domain: str, where: str) -> Panel:
    place = list(summary.arms).index(arm), summary.domains.index(domain)
    return Panel(
        summary.label(arm),
        alt_text(summary, chart, arm, domain),
        Markup(panel_svg(summary, chart, arm, domain, f"{where}-{chart}-{place[0]}-{place[1]}-")),
    )


def _charts(summary: Summary) -> list[ChartPanels]:
    """Return the panels of every chart, without those that stand beside the verdicts."""
    charts = []
    for name, chart in CHARTS.items():
        domains = []
        for domain in summary.domains:
            arms = [
                arm
                for arm in summary.arms
                if (placed := summary.placed(arm, domain)) is None or placed.measure != name
            ]
            if arms:
                panels = tuple(_panel(summary, name, arm, domain, "curve") for arm in arms)
                domains.append((domain_label(domain), panels))
        if domains:
            charts.append(ChartPanels(name, chart.title, chart.note, tuple(domains)))
    return charts


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
                same=compared(turn.cot, turn.prompt),
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
        revisions=sum(step.same is False for step in steps),
        final_observation=record.final_observation,
    )


def _shown_action(response: Response) -> ShownAction:
    text = action_of(response)
    if text is None:
        problem = response.problem or "no action"
        return ShownAction(response.text.strip(), f"invalid: {problem}")
    return ShownAction(text, "not admissible here" if response.admissible is False else "")
