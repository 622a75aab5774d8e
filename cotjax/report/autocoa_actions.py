"""Sections of AutoCoA's page on prompt actions against CoT actions: D1 to D7 on growing texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cotjax.diagnostics.grafts import ANCHORED, FOLLOWED
from cotjax.diagnostics.statistics import Estimate
from cotjax.report.autocoa import StageSummary
from cotjax.report.autocoa_cells import moved, value
from cotjax.report.labels import percent
from cotjax.report.section import Cell, Section, SectionRow, SectionTable, under_headings

_CONTROL = (
    "At once: the answer right behind the prompt, without reasoning or a search. Same: it is the "
    "answer that the episode ends with. Questions of one hop over known facts have the shortest "
    "prompts, and nothing to search for: the control of D2."
)
_D5 = (
    "The thought behind a one-hop test question is given. Where it claims to know an unknown fact, "
    "an answer with what it claims follows it, and a search keeps to what is known. Where it calls "
    "for a search of a known fact, a search follows it, and an answer keeps to what is known."
)
_STATES = (
    "Every arm acts where the expert acts in its own texts about test questions. CoT action: "
    "behind a thought. Prompt action: at once, by the likelier of the tags that open a search and "
    "end the thought, and what follows it."
)
_JUDGED = (
    "D1: the expert's action. Kind: a search where it searches, an answer where it answers. D2: "
    "both actions are one. D4: the facts judge; a right answer is good, and a search for a missing "
    "fact; won: that action alone is good. Gap: of D1, and of D4."
)
_SHARED = (
    "D6 and D7: shares of attention, and of the action's gradient along the values, while the CoT "
    "action's tokens are predicted. Reasoning: all thoughts, earlier ones too. Prompt: the "
    "question, earlier queries and all results; the latest results are a part of it. Of tokens: "
    "uniform attention. What is missing to 100 are tags and the action's own tokens."
)
_DONE = {True: "searches", False: "answers"}


def actions(summary: StageSummary) -> tuple[Section, ...]:
    """Return the sections; their tables may be empty."""
    return (
        Section(
            "at-once",
            "Answers at once against answers at the end",
            (_at_once(summary),),
            (_CONTROL,),
        ),
        Section(
            "states",
            "In the expert's states (D1, D2, D4, D6, D7)",
            (_judged(summary), _shares(summary)),
            (_STATES,),
        ),
        Section("grafts", "Thoughts against what is known (D5)", (_grafts(summary),), (_D5,)),
    )


def _at_once(summary: StageSummary) -> SectionTable:
    rows: dict[str, list[SectionRow]] = {}
    for control in summary.at_once:
        known = "known" if control.known else "some unknown"
        own = control.figures
        cells = (
            value("exact", own["prompt"]),
            value("exact", own["cot"]),
            moved("exact", own["gap"]),
            value("exact", own["same"]),
        )
        rows.setdefault(control.arm, []).append(SectionRow(f"{control.hops}, {known}", cells))
    columns = ("right at once, %", "right at the end, %", "gap, points", "same, %")
    return SectionTable("", columns, _by_arm(summary, rows), rows_are="questions")


def _judged(summary: StageSummary) -> SectionTable:
    figures = ("d1_cot", "d1_prompt", "kind_cot", "kind_prompt", "d2", "d4_cot", "d4_prompt")
    columns = (
        *("states", "D1, CoT, %", "D1, prompt, %", "D1, gap, points"),
        *("kind, CoT, %", "kind, prompt, %", "D2, same, %"),
        *("D4, CoT won, %", "D4, prompt won, %", "D4, gap, points"),
    )
    rows: dict[str, list[SectionRow]] = {}
    for each in summary.aligned:
        cells: list[str | Cell] = [value("exact", each.figures[name]) for name in figures]
        cells.insert(2, moved("exact", each.figures["d1_gap"]))
        cells.append(moved("exact", each.figures["d4_gap"]))
        own = SectionRow(_DONE[each.searches], (str(each.figures["d2"].n), *cells))
        rows.setdefault(each.arm, []).append(own)
    return SectionTable(
        "Which action, and whether it is good",
        columns,
        _by_arm(summary, rows),
        (_JUDGED,),
        "the expert",
    )


def _shares(summary: StageSummary) -> SectionTable:
    parts = ("prompt", "results", "reasoning")
    kinds = {"attention": "attention (D6)", "gradient": "gradient (D7)", "uniform": "of tokens"}
    rows: dict[str, list[SectionRow]] = {}
    for each in summary.aligned:
        if not each.figures["attention_prompt"].measured:
            continue
        cells = _of(each.figures, [f"{kind}_{part}" for kind in kinds for part in parts])
        own = SectionRow(_DONE[each.searches], (str(each.figures["attention_prompt"].n), *cells))
        rows.setdefault(each.arm, []).append(own)
    heads = tuple(
        f"{title}: {'latest results' if part == 'results' else part}, %"
        for title in kinds.values()
        for part in parts
    )
    return SectionTable(
        "What the CoT action rests on",
        ("states", *heads),
        _by_arm(summary, rows),
        (_SHARED,),
        "the expert",
    )


def _of(figures: Mapping[str, Estimate], names: Sequence[str]) -> list[str]:
    return [percent(figures[name], digits=1) for name in names]


def _grafts(summary: StageSummary) -> SectionTable:
    rows: dict[str, list[SectionRow]] = {}
    for each in summary.grafts:
        said = "known, “so I search”" if each.known else "unknown, “…, I know, is …”"
        cells = (*_of(each.figures, (FOLLOWED, ANCHORED)), str(each.figures[FOLLOWED].n))
        rows.setdefault(each.arm, []).append(SectionRow(said, cells))
    columns = ("follows it, %", "keeps to itself, %", "facts")
    return SectionTable("", columns, _by_arm(summary, rows), rows_are="fact, and grafted thought")


def _by_arm(
    summary: StageSummary, rows: Mapping[str, Sequence[SectionRow]]
) -> tuple[SectionRow, ...]:
    """Return the rows of each arm below its name."""
    return under_headings((summary.arms[arm]["label"], own) for arm, own in rows.items())
