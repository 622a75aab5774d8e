"""What judges say: revisions by the environment, D1', progress of episodes, preference (D4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cotjax.diagnostics.metrics import METRICS
from cotjax.diagnostics.preference import JUDGES, PAIRS
from cotjax.diagnostics.progress import progress_metric
from cotjax.diagnostics.revisions import MOST_STEPS, PLACES
from cotjax.diagnostics.statistics import Estimate
from cotjax.report.labels import domain_label, number, percent
from cotjax.report.section import Section, SectionRow, SectionTable, under_headings
from cotjax.report.summary import PointSummary, Summary
from cotjax.rollout.record import KINDS

TITLE = "Which of the two actions is better"
REVISIONS = "Revisions judged by the environment"
PLAN = "D1 and D1', expert states"
PROGRESS = "Shortening of the expert's plan"
PREFERENCE = "D4: preference of judges, expert states"
AGREEMENT = "D4: agreement of judges"
_REVISION_COLUMNS = (
    ("differ", "revision"),
    ("CoT action better", "judged_helpful"),
    ("worse", "judged_harmful"),
    ("as good", "judged_neutral"),
    ("not judged", "judged_unknown"),
    ("steps saved a state", "saved_steps"),
    ("not comparable", "revision_not_comparable"),
    ("replays that differ", "replay_diverged"),
)
_PLAN_COLUMNS = (
    ("D1, CoT", "d1_cot"),
    ("D1', CoT", "d1_plan_cot"),
    ("D1, prompt", "d1_prompt"),
    ("D1', prompt", "d1_plan_prompt"),
)
_PREFERENCE_COLUMNS = (
    ("CoT action preferred", "d4_cot_wins"),
    ("prompt action preferred", "d4_prompt_wins"),
    ("tie", "d4_tie"),
    ("gap", "d4_gap"),
    ("same position named twice", "d4_position_bias"),
    ("no answer", "d4_no_answer"),
)
_NOTES = {
    REVISIONS: (
        "In percent with 95 % intervals. In each state both actions are taken in a replayed game, "
        "and the world's expert finishes: the better action is the one after which it needs fewer "
        "steps, or after which alone it reaches the goal. Shares are of all states with two "
        f"actions. Steps saved count up to {MOST_STEPS} a state; equal actions save 0.",
        "A state whose replay differs from its record counts in its own column alone.",
    ),
    PLAN: (
        "D1: the action is the expert's. D1': or the expert's way to the goal is no longer after "
        "it than after its own action.",
    ),
    PROGRESS: (
        "In percent of the expert's own episode, a mean over episodes. The world's expert finishes "
        "from where an episode ended: 100 is a won one, 0 one as far from the goal as it was, −100 "
        "one that is twice as far, or out of reach.",
    ),
    PREFERENCE: (
        "In percent of states with two actions; equal actions are a tie, and nobody is asked. Each "
        "judge is asked in both orders, and two answers that differ are a tie. The last two "
        "columns are of the states whose actions differ. The gap is in points.",
    ),
    AGREEMENT: ("In percent of the states whose actions differ and that both judges answered.",),
}


def judged(summary: Summary) -> Section:
    """Return what was judged at the base and at the last checkpoint of each arm."""
    tables = (
        _table(summary, REVISIONS, _REVISION_COLUMNS, PLACES.values()),
        _table(summary, PLAN, _PLAN_COLUMNS, [("", "")], "d1_plan_cot"),
        _table(summary, PROGRESS, _progress_columns(summary), [("", "")]),
        _table(
            summary, PREFERENCE, _PREFERENCE_COLUMNS, [(f"_{j}", f"judge: {j}") for j in JUDGES]
        ),
        _table(
            summary,
            AGREEMENT,
            (("agree", "d4_agreement"),),
            [(f"_{one}_{other}", f"{one}, {other}") for one, other in PAIRS],
        ),
    )
    return Section("judged", TITLE, tuple(table for table in tables if table.rows))


def _progress_columns(summary: Summary) -> list[tuple[str, str]]:
    """Return a column for each driver whose episodes were judged."""
    names = [progress_metric(driver) for driver in KINDS]
    seen = {name for point in summary.points for name in names if _of(point, name) is not None}
    return [(METRICS[name].label.partition(", ")[2], name) for name in names if name in seen] or [
        ("", names[0])
    ]


def _table(
    summary: Summary,
    title: str,
    columns: Sequence[tuple[str, str]],
    kinds: Iterable[tuple[str, str]],
    needed: str = "",
) -> SectionTable:
    """Return a table with a row for each point and kind in which something was judged.

    Args:
      columns: (heading, metric without its end).
      kinds: (end of the metrics' names, what the row is about).
      needed: the metric that says whether there is a row; "": the second of a row's, or the only
        one.
    """
    kinds, names = list(kinds), [name for _, name in columns]
    needed = needed or names[min(1, len(names) - 1)]
    groups = []
    for domain in summary.domains:
        rows = [
            SectionRow(
                summary.label_of(point),
                tuple(_cell(point, name, end) for name in names),
                note=about,
            )
            for point in summary.ends(domain)
            for end, about in kinds
            if _of(point, f"{needed}{end}") is not None
        ]
        groups.append((domain_label(domain), rows))
    heads = tuple(head for head, _ in columns)
    rows_of = under_headings(groups)
    return SectionTable(title, heads, rows_of, notes=_NOTES[title], rows_are="arm")


def _of(point: PointSummary, metric: str) -> Estimate | None:
    """Return an estimate; None where nothing was measured."""
    estimate = point.metrics.get(metric)
    return None if estimate is None or estimate.value is None else estimate


def _cell(point: PointSummary, name: str, end: str) -> str:
    estimate = _of(point, f"{name}{end}")
    if estimate is None:
        return "–"
    if name == "saved_steps":
        return number(estimate, 2, signed=True)
    return percent(estimate, signed=name == "d4_gap" or name.startswith("progress_"))
