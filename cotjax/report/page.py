"""report.html: a study as one page that opens offline, with text, styles and figures inside.

The template escapes everything that comes from records or from run.json. The same records and
run.json give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from rich.console import Console

from cotjax.diagnostics.metrics import METRICS
from cotjax.diagnostics.share import HALF
from cotjax.objectives.named import PREFERENCES, REINFORCED
from cotjax.report import tables
from cotjax.report.answers import answers
from cotjax.report.elicitations import side_by_side
from cotjax.report.episode import shown_episode
from cotjax.report.facts import elicitation_facts, prompt_facts, protocol_facts, run_facts
from cotjax.report.figures import alt_text, panel_svg, reward_svg, write_figures
from cotjax.report.front import Panel, front_of
from cotjax.report.glossary import GLOSSARY
from cotjax.report.labels import domain_label
from cotjax.report.learned import learned
from cotjax.report.panels import BARS, CHARTS, COLOURS, PRIMARY, Chart
from cotjax.report.reward_panels import NOTE, TITLE, playing, reward_words
from cotjax.report.rewards import rewards
from cotjax.report.rows import PlacedGain
from cotjax.report.searches import searches
from cotjax.report.section import Section
from cotjax.report.sections import sections
from cotjax.report.summarize import summarize
from cotjax.report.summary import Summary
from cotjax.report.terminal import section_tables, terminal_table
from cotjax.report.verdicts import colour_of, share_text, verdict_of
from cotjax.report.viewer.make import FOLDER as VIEWER
from cotjax.report.viewer.make import make_viewer
from cotjax.runtime.files import write_atomic
from cotjax.runtime.pages import load_template

_THOUGHTS = {
    "named": "thoughts that name the action",
    "unnamed": "thoughts that do not name the action",
}
PLACED = "The curves behind the verdicts"
PLANTED = "Planted truth: the curves behind the verdicts"
_ELICITATIONS = {"elicitations": "Elicitations side by side"}
_NUMBERS = {"curves": "Curves over checkpoints", "numbers": "Numbers"}
_AT_THE_END = {
    "episode": "One episode, step by step",
    "how": "How it was measured",
    "glossary": "Glossary",
    "facts": "The run",
}


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
      share: of the gain, in the prompt action; a dash where it means nothing.
      colour: kind of curve that the verdict is coloured like; "" for ink.
      trained_on: what sets the arm apart, in words.
    """

    label: str
    verdict: str
    share: str
    colour: str
    trained_on: str
    panel: Panel


def make_report(run_folder: str | Path, console: Console | None = None) -> Summary:
    """Write summary.json, figures/, report.html and viewer/ of a run; return the summary.

    `console`: prints the terminal's tables.

    Raises:
      DataError: records are missing or malformed; the message names the file.
    """
    run_folder = Path(run_folder)
    summary = summarize(run_folder)
    searched = searches(run_folder, summary)
    write_figures(summary, run_folder / "figures")
    write_report(run_folder, summary, searched)
    make_viewer([run_folder], run_folder / VIEWER)
    if console is not None:
        console.print(terminal_table(summary))
        console.print(section_tables(searched), end="")
    return summary


def write_report(
    folder: str | Path, summary: Summary | None = None, searched: Sequence[Section] | None = None
) -> Path:
    """Write `folder`/report.html of a run and return its path.

    `summary`, `searched` (of `searches`): None: made from the records.
    """
    run_folder = Path(folder)
    summary = summarize(run_folder) if summary is None else summary
    searched = searches(run_folder, summary) if searched is None else searched
    domains, title = summary.domains, title_of(summary, run_folder)
    prompt_settings, prompt_text = prompt_facts(summary.run)
    front, losses, planted = front_of(summary, title), tables.held_out(summary), is_planted(summary)
    cards = [(domain_label(domain), _cards(summary, domain)) for domain in domains]
    asked, probed = answers(summary), [*learned(summary), *rewards(summary), *sections(summary)]
    probed += searched
    placed = PLANTED if planted else PLACED
    contents = {
        "answer": "The answer",
        **_ids(front.verdicts),
        **({"placed": placed} if any(of_domain for _, of_domain in cards) else {}),
        **_ids(front.matrix, *asked),
        **_ELICITATIONS,
        **_ids(*probed),
        **_NUMBERS,
        **({"losses": "Loss on held-out training examples"} if losses.rows else {}),
        **_AT_THE_END,
    }
    page = load_template(Path(__file__).parent / "page.html.jinja").render(
        summary=summary,
        title=title,
        contents=contents,
        planted=planted,
        front=front,
        cards=cards,
        answers=asked,
        sections=probed,
        losses=losses,
        bars=BARS,
        steps=_steps(summary),
        **{"half": round(100 * HALF), "family": _family(summary)},
        palette=COLOURS,
        charts=_charts(summary),
        labels={name: metric.label for name, metric in METRICS.items()},
        elicitations=[side_by_side(summary, domain) for domain in domains],
        numbers=[tables.numbers(summary, domain) for domain in domains],
        comparisons=[tables.comparisons(summary, domain) for domain in domains],
        behind=[tables.played(summary), tables.responses(summary)],
        points=tables.every_point(summary),
        episode=shown_episode(run_folder, summary),
        elicitation=elicitation_facts(summary),
        prompt_settings=prompt_settings,
        prompt_text=prompt_text,
        protocol=protocol_facts(summary),
        facts=run_facts(summary),
        glossary=GLOSSARY,
        viewer=f"{VIEWER}/index.html",
    )
    write_atomic(path := run_folder / "report.html", page)
    return path


def _ids(*of_page: Section) -> dict[str, str]:
    """Return the ids and titles of sections that have tables."""
    return {section.id: section.title for section in of_page if section.tables}


def title_of(summary: Summary, run_folder: Path) -> str:
    """Return what a run is called."""
    return str(summary.run.get("title") or summary.run.get("name") or run_folder.resolve().name)


def _steps(summary: Summary) -> str:
    """Return the checkpoints, of many the ends and their number."""
    steps = [str(step) for step in summary.checkpoints]
    if len(steps) <= BARS:
        return ", ".join(steps)
    return f"{', '.join(steps[:2])}, …, {steps[-1]} ({len(steps)})"


def is_planted(summary: Summary) -> bool:
    """Whether arms were trained on data that differ on purpose: thoughts, or share without them."""
    on_data = [arm for arm in summary.arms.values() if arm.objective not in REINFORCED]
    return len({(arm.thoughts, arm.direct_share) for arm in on_data}) > 1


def _family(summary: Summary) -> str:
    """Return which arms and domains have verdicts, in words."""
    arms = ", ".join(f"“{summary.label(arm)}”" for arm in summary.primary.arms) or "each arm"
    domains = ", ".join(map(domain_label, summary.primary.domains))
    return f"{arms}, {domains} alone" if domains else f"{arms}, in each domain"


def _cards(summary: Summary, domain: str) -> tuple[Card, ...]:
    """Return the verdicts on a domain."""
    return tuple(
        Card(
            summary.label(arm),
            verdict_of(summary, placed),
            share_text(placed),
            colour_of(summary, placed),
            _trained_on(summary, arm),
            _panel(summary, _behind(placed), arm, domain, "verdict"),
        )
        for arm in summary.arms
        if (placed := summary.placed(arm, domain)) is not None
    )


def _trained_on(summary: Summary, arm: str) -> str:
    parts, about, planted = [], summary.arms[arm], is_planted(summary)
    if about.objective in REINFORCED:
        parts.append("episodes that it plays")
        planted = False
    elif about.objective in PREFERENCES:
        parts.append("pairs of responses")
    if about.start:
        parts.append(f"from {summary.label_of_start(arm)}")
    if planted and about.direct_share == 1.0:
        parts.append("no thoughts: the ceiling of a prompt action")
    elif planted:
        parts.append(_THOUGHTS.get(about.thoughts, f"thoughts: {about.thoughts or 'as given'}"))
    if about.direct_share is not None and about.direct_share != 1.0:
        parts.append(f"{100 * about.direct_share:.0f} % direct examples")
    if about.fraction:
        what = "action losses" if about.control == "action" else about.control
        parts.append(f"{100 * about.fraction:.0f} % of {what} dropped")
    if len(about.seeds) > 1:
        parts.append(f"{len(about.seeds)} seeds")
    return ", ".join(parts)


def _behind(placed: PlacedGain) -> Chart:
    """Return the chart of what a verdict is about."""
    return PRIMARY[placed.measure, placed.constrained]


def _panel(summary: Summary, chart: Chart, arm: str, domain: str, prefix: str) -> Panel:
    """Return a panel. `prefix`: of its ids, which differ between charts."""
    place = list(summary.arms).index(arm), summary.domains.index(domain)
    return Panel(
        summary.label(arm),
        alt_text(summary, chart, arm, domain),
        Markup(panel_svg(summary, chart, arm, domain, f"{prefix}-{place[0]}-{place[1]}-")),
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
                if (placed := summary.placed(arm, domain)) is None or _behind(placed) is not chart
            ]
            if arms:
                panels = tuple(_panel(summary, chart, arm, domain, f"curve-{name}") for arm in arms)
                domains.append((domain_label(domain), panels))
        if domains:
            charts.append(ChartPanels(name, chart.title, chart.note, tuple(domains)))
    if arms := playing(summary):
        panels = tuple(
            Panel(
                summary.label(arm),
                reward_words(summary, arm),
                Markup(reward_svg(summary, arm, f"reward-{number}-")),
            )
            for number, arm in enumerate(arms)
        )
        charts.append(ChartPanels("reward", TITLE, NOTE, (("training games", panels),)))
    return charts
