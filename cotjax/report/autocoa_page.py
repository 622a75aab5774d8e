"""report.html of AutoCoA's stages: one page that opens offline, and the same tables as text."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cotjax.diagnostics.statistics import NOTHING, Estimate
from cotjax.report.autocoa import (
    PAPER,
    REAL,
    SAMPLED,
    SIMULATED,
    SUMMARY,
    Row,
    StageSummary,
    summarize,
)
from cotjax.report.autocoa_actions import actions
from cotjax.report.autocoa_cells import moved, value
from cotjax.report.autocoa_figure import facets, write_figure
from cotjax.report.labels import capitalize, domain_label
from cotjax.report.panels import COLOURS
from cotjax.report.section import Cell, Section, SectionRow, SectionTable
from cotjax.runtime.files import write_atomic
from cotjax.runtime.pages import load_template

_HEADS = {
    "exact": "exact match, %",
    "f1": "F1, %",
    "searches": "searches an episode",
    "oracle": "the oracle's",
    "precision": "trigger precision, %",
    "recall": "trigger recall, %",
    "trigger_f1": "trigger F1, %",
    "regret": "regret an episode",
    "repeated": "repeated searches, %",
    "found": "found what was missing, %",
    "reached": "hops up to the first lacking one, %",
    "gold_seen": "was shown the answer, %",
    "reading": "right where shown, %",
    "guessing": "right where not shown, %",
    "answered": "answered, %",
    "limit": "at the limit, %",
    "invalid": "invalid, %",
    "cut": "cut, %",
    "right_known": "known facts stated rightly, %",
    "right_unknown": "unknown facts stated rightly, %",
    "invented": "facts of nothing that exists, %",
}
_WHOLE = ("exact", "f1", "searches", "oracle", "precision", "recall", "trigger_f1", "regret")
_BEHIND = (
    *("found", "repeated", "reached", "gold_seen", "reading", "guessing"),
    *("answered", "limit", "invalid", "cut"),
)
_MADE_UP = ("right_known", "right_unknown", "invented", "exact", "invalid", "cut")
_WIDTH = 160  # of the text
_INTERVALS = "With 95 % intervals, clustered by question: samples of a question count as one."


def make_report(run: str | Path) -> str:
    """Write searches.json, report.html and figures/ of a run; return the report's tables as text.

    Raises DataError where records or stages.json are missing or malformed.
    """
    run = Path(run)
    summary = summarize(run)
    write_atomic(run / SUMMARY, summary.as_json())
    write_page(run / "report.html", summary)
    write_figure(summary, run / "figures")
    return text_of(summary)


def write_page(path: Path, summary: StageSummary) -> None:
    """Write the page of a summary."""
    page = load_template(Path(__file__).parent / "autocoa.html.jinja").render(
        title=title_of(summary),
        facets=facets(summary),
        sections=sections(summary),
        palette=COLOURS,
    )
    write_atomic(path, page)


def text_of(summary: StageSummary) -> str:
    """Return the tables of a summary as text."""
    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, force_terminal=False)
    for section in sections(summary):
        console.rule(section.title, align="left")
        for sentence in section.sentences:
            console.print(Text(sentence))
        for table in section.tables:
            console.print(_terminal(table))
            for note in table.notes:
                console.print(Text(note))
    return out.getvalue()


def title_of(summary: StageSummary) -> str:
    """Return what the run is called."""
    return str(summary.about["title"])


def sections(summary: StageSummary) -> list[Section]:
    """Return the sections of the report that have a table."""
    made = (
        Section("ablation", "What each stage did", tuple(_ablation(summary)), (_INTERVALS,)),
        Section("paper", "Beside the paper", (_paper(summary),), (_DIFFERS,)),
        Section("changes", "Arm minus arm, on the same questions", (_changes(summary),), (_SURE,)),
        Section("hops", "By hops and by split", tuple(_by_group(summary))),
        Section("reading", "Reading against guessing", (_behind(summary),), (_READING,)),
        Section("world-model", "World model, and the gap to a real search", (_made_up(summary),),
                (_FIDELITY,)),
        *actions(summary),
        Section("stages", "Stages", (_stages(summary),)),
    )  # fmt: skip
    return [
        Section(each.id, each.title, own, each.sentences)
        for each in made
        if (own := tuple(table for table in each.tables if table.rows))
    ]


_DIFFERS = (
    "The paper's are averages over six data sets, of one run each, without intervals, of a model "
    "of 7 billion parameters. Here a model of the config's size answers questions about one world, "
    "so only directions can be compared. Steps: from the row of the paper's table that the arm is "
    "compared with."
)
_SURE = "In points, and in searches. Bold: the interval excludes 0; nothing is corrected."
_READING = (
    "Shown: a right answer occurs in the question's results. What is right without it is known, or "
    "guessed."
)
_FIDELITY = (
    "The policy writes the results of its searches itself, and they are held against the world's "
    "facts; unknown ones cannot be predicted. Gap: exact match with such results minus that with "
    "real ones, on the same questions."
)


def _ablation(summary: StageSummary) -> Iterator[SectionTable]:
    for source, title in ((REAL, "Greedy"), (SAMPLED, _sampled(summary))):
        rows = [(arm, summary.row(arm, source)) for arm in summary.arms]
        yield _table(summary, title, _WHOLE, rows)


def _sampled(summary: StageSummary) -> str:
    return f"Mean of {summary.about['samples']} samples, temperature 0.7, top-p 0.8"


def _paper(summary: StageSummary) -> SectionTable:
    rows = []
    for name, arm in summary.arms.items():
        if not arm["paper"]:
            continue
        row, change = summary.row(name, REAL), _change_of(summary, name)
        exact, judge = PAPER[arm["paper"]]
        before = summary.arms[arm["minus"]]["paper"] if arm["minus"] else ""
        theirs = f"{exact - PAPER[before or 'ReAct'][0]:+.1f}".replace("-", "−")
        ours = Cell("–") if change is None else moved("exact", change["exact"])
        cells = (
            value("exact", row.figures["exact"] if row else NOTHING),
            ours,
            f"{exact:.1f}",
            f"{theirs} from {before or 'ReAct'}",
            f"{judge:.1f}",
        )
        rows.append(SectionRow(arm["label"], cells))
    left = [row for row in PAPER if row not in {a["paper"] for a in summary.arms.values()}]
    columns = ("exact match, %", "step", "paper: exact match", "paper: step", "paper: judge")
    notes = (f"Rows of the paper without an arm here: {', '.join(left)}.",) if left else ()
    return SectionTable("", columns, tuple(rows), notes, rows_are="arm", words=(3,))


def _changes(summary: StageSummary) -> SectionTable:
    rows = [
        SectionRow(
            f"{summary.arms[c.arm]['label']} − {summary.arms[c.minus]['label']}",
            tuple(moved(name, each) for name, each in c.figures.items()),
        )
        for c in summary.changes
        if any(each.measured for each in c.figures.values())
    ]
    names = next((tuple(c.figures) for c in summary.changes), ())
    columns = tuple(_HEADS[name].removesuffix(", %") for name in names)
    return SectionTable("", columns, tuple(rows), rows_are="arms")


def _by_group(summary: StageSummary) -> Iterator[SectionTable]:
    titles = {"hops": "hops", "domain": "split", "task_type": "kind of question"}
    for by, title in titles.items():
        groups = summary.groups(by)
        for figure in ("exact", "f1", "searches"):
            rows = []
            for name, arm in summary.arms.items():
                own = [summary.row(name, REAL, by, group) for group in groups]
                if any(own):
                    cells = (value(figure, r.figures[figure] if r else NOTHING) for r in own)
                    rows.append(SectionRow(arm["label"], tuple(cells)))
            heads = tuple(_group(by, group) for group in groups)
            yield SectionTable(f"{capitalize(_HEADS[figure])}, by {title}", heads, tuple(rows),
                               rows_are="arm")  # fmt: skip


def _group(by: str, group: str) -> str:
    if by == "domain":
        return domain_label(group)
    return f"{group} {'fact' if group == '1' else 'facts'}" if by == "hops" else group


def _behind(summary: StageSummary) -> SectionTable:
    rows = [(arm, summary.row(arm, REAL)) for arm in summary.arms]
    return _table(summary, "", _BEHIND, rows)


def _made_up(summary: StageSummary) -> SectionTable:
    rows = []
    for name, arm in summary.arms.items():
        own, real = summary.row(name, SIMULATED), summary.row(name, REAL)
        if own is None or real is None:
            continue
        gap = summary.sim_to_real[name]
        cells: list[str | Cell] = [value(figure, own.figures[figure]) for figure in _MADE_UP]
        at = _MADE_UP.index("exact") + 1
        cells[at:at] = [value("exact", real.figures["exact"]), moved("exact", gap)]
        rows.append(SectionRow(arm["label"], tuple(cells)))
    heads = [_HEADS[figure] for figure in _MADE_UP]
    at = _MADE_UP.index("exact")
    heads[at : at + 1] = [
        "exact match with such results, %",
        "with real ones, %",
        "gap, points",
    ]
    return SectionTable("", tuple(heads), tuple(rows), rows_are="arm")


def _stages(summary: StageSummary) -> SectionTable:
    rows = []
    for stage in summary.about["stages"]:
        steps, simulated = stage["steps"], stage["simulated_steps"]
        book = stage["closed_book"]
        said = f"{steps}" if not simulated else f"{simulated} simulated, {steps - simulated} real"
        knows = (
            f"{100 * book['known']:.1f} % of known facts, {100 * book['unknown']:.1f} % of others"
            if book
            else "–"
        )
        cells = (stage["lesson"], said, stage["start"] or "–", stage["checkpoint"][:12], knows)
        rows.append(SectionRow(f"{stage['name']}: {stage['label']}", cells))
    columns = ("learns from", "steps", "starts from", "checkpoint", "closed book")
    return SectionTable("", columns, tuple(rows), rows_are="stage", words=(0, 1, 2, 3, 4))


# ---- cells


def _table(
    summary: StageSummary,
    title: str,
    names: Sequence[str],
    rows: Sequence[tuple[str, Row | None]],
) -> SectionTable:
    """Return figures, a row an arm that was played."""
    played = [(arm, row) for arm, row in rows if row is not None]
    sizes = [
        f"{row.figures['exact'].n} episodes, {row.figures['exact'].games} questions"
        for _, row in played
    ]
    alike = len({*sizes}) == 1
    made = [
        SectionRow(
            summary.arms[arm]["label"],
            tuple(value(name, row.figures[name]) for name in names),
            note="" if alike else size,
        )
        for (arm, row), size in zip(played, sizes, strict=True)
    ]
    heads = tuple(_HEADS[name] for name in names)
    notes = (f"Of each arm: {sizes[0]}.",) if alike else ()
    return SectionTable(title, heads, tuple(made), notes, rows_are="arm")


def _change_of(summary: StageSummary, arm: str) -> Mapping[str, Estimate] | None:
    return next((c.figures for c in summary.changes if c.arm == arm), None)


def _terminal(each: SectionTable) -> Table:
    """Return a table for the terminal; an interval stands below its value."""
    table = Table(title=each.title or None, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(each.rows_are, overflow="fold")
    for place, column in enumerate(each.columns):
        table.add_column(column, justify="left" if place in each.words else "right")
    for row in each.rows:
        cells = (cell if isinstance(cell, str) else cell.text for cell in row.cells)
        table.add_row(Text(row.label), *(Text(cell.replace(" [", "\n[")) for cell in cells))
    return table
