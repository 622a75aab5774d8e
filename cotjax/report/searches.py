"""When the arms searched, what for, and what their answers rest on, in a world with searches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cotjax.diagnostics.searches import Judged, figures, grouped, judged
from cotjax.diagnostics.statistics import Estimate
from cotjax.envs.base import Game
from cotjax.envs.worlds import World, load_world
from cotjax.errors import UsageError
from cotjax.report.labels import domain_label, number, percent
from cotjax.report.section import Section, SectionRow, SectionTable
from cotjax.report.summary import BASE, PointSummary, Summary
from cotjax.rollout.record import KINDS, Record, read_records

# Heading -> figure of `cotjax.diagnostics.searches`; those of _EACH are numbers an episode.
COLUMNS = {
    "right": "exact",
    "searches": "searches",
    "needed": "oracle",
    "precision": "precision",
    "recall": "recall",
    "regret": "regret",
    "found": "found",
    "right if shown": "reading",
    "right if not": "guessing",
}
_EACH = ("searches", "oracle", "regret")
_NOTES = (
    "With 95 % intervals over questions; seeds and samples of a question count together. Searches, "
    "needed ones and regret are numbers an episode, the others percent.",
    "A search is needed where it asks for a fact that the question needs, that is not known, and "
    "that no result has stated. Precision: needed ones among the searches. Recall: among the "
    "missing facts. Regret: needless and missed searches. Found: needed searches whose results "
    "state the fact. The last two: right answers where a result had stated one, and where none "
    "had.",
)


def searches(run_folder: Path, summary: Summary) -> list[Section]:
    """Return a section with a table for each domain: the ends of every arm, both kinds of action.

    [] where the world has no searches, or the run's questions are no longer there.
    """
    played = _judged(run_folder, summary)
    tables = [_table(summary, domain, played) for domain in summary.domains] if played else []
    tables = [each for each in tables if each.rows]
    return [Section("searches", "When they searched", tuple(tables))] if tables else []


def _table(summary: Summary, domain: str, played: list[Judged]) -> SectionTable:
    by_place = grouped(
        (each for each in played if each.record.domain == domain),
        lambda each: (each.record.member, each.record.checkpoint, each.record.driver),
    )
    rows = []
    for point in summary.ends(domain):
        for kind in KINDS:
            places = [(member, step, kind) for member, step in _places(summary, point)]
            own = [each for place in places for each in by_place.get(place, ())]
            if own:
                found = figures(own)
                cells = tuple(_cell(name, found[name]) for name in COLUMNS.values())
                rows.append(SectionRow(f"{summary.label_of(point)} · {kind}", cells))
    return SectionTable(domain_label(domain), tuple(COLUMNS), tuple(rows), _NOTES)


def _places(summary: Summary, point: PointSummary) -> Iterator[tuple[str, int]]:
    """Yield (member, step) of the records of a point of `Summary.ends`."""
    arm, step = summary.arms[point.arm], point.checkpoint
    if step == 0 and not arm.start:
        yield BASE, 0
        return
    if step == 0:
        name, _, at = arm.start.rpartition("@")
        arm, step = summary.arms.get(name, arm), int(at)
    yield from ((member, step) for member in arm.seeds)


def _judged(run_folder: Path, summary: Summary) -> list[Judged]:
    """Return what the records' searches were worth; [] where that cannot be said."""
    config = summary.run.get("config") or {}
    try:
        world = load_world(str(config.get("world") or summary.world))
    except UsageError:  # it was of another installation
        return []
    if type(world).judge_searches is World.judge_searches:
        return []
    records = [each for each in read_records(run_folder / "records") if each.driver in KINDS]
    root = (config.get("games") or {}).get("root") or run_folder / "games"
    games = _games(world, root, records)
    there = [each for each in records if (each.game.split, each.game.id) in games]
    return judged(there, world, games) if len(there) == len(records) else []


def _games(world: World, root: str | Path, records: list[Record]) -> dict[tuple[str, str], Game]:
    """Return (split, id) -> game, of the records' splits; {} where the questions are gone."""
    try:
        splits = sorted({each.game.split for each in records})
        return {(split, game.id): game for split in splits for game in world.games(root, split)}
    except UsageError:
        return {}


def _cell(name: str, estimate: Estimate) -> str:
    return number(estimate, 2) if name in _EACH else percent(estimate)
