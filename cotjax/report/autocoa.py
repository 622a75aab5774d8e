"""The figures of AutoCoA's stages, from their records: what searches.json holds.

    {"figures": [{"arm", "source", "by", "group", "figures": {name: estimate}}],
     "changes": [{"arm", "minus", "figures": {name: estimate}}],
     "sim_to_real": {arm: estimate},
     "at_once": [{"arm", "hops", "known", "figures": {name: estimate}}],
     "grafts": [{"arm", "known", "figures": {name: estimate}}],
     "aligned": [{"arm", "searches", "figures": {name: estimate}}]}

`source` is the folder of the records, `by` "all", "domain", "hops" (facts
that the answer follows from) or "task_type". An estimate is {"value",
"low", "high", "n", "games", "seeds"}, clustered by question and seed. The same records give the
same bytes. Of a run of several seeds the records are in seeds/<seed>/.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cotjax.diagnostics import aligned
from cotjax.diagnostics.aligned import read_aligned
from cotjax.diagnostics.at_once import at_once, compared
from cotjax.diagnostics.grafts import rates, read_grafts
from cotjax.diagnostics.searches import Judged, difference, figures, grouped, judged, sim_to_real
from cotjax.diagnostics.statistics import Estimate
from cotjax.envs.base import Game
from cotjax.envs.worlds import World, load_world
from cotjax.errors import DataError
from cotjax.report.compare import rounded
from cotjax.rollout.record import Record, read_records
from cotjax.runtime.files import read_json

ABOUT, SUMMARY = "stages.json", "searches.json"
GRAFTS, ALIGNED, SEEDS = "grafts", "aligned", "seeds"  # folders
REAL, SIMULATED, SAMPLED = "records", "simulated", "sampled"
# Row of the paper's table -> exact match and the judge's score, in percent: averages over six data
# sets (arXiv 2503.06580).
PAPER = {
    "ReAct": (15.2, 18.5),
    "SFT-1": (22.7, 29.1),
    "SFT-2": (29.5, 35.6),
    "SFT-1+2": (32.0, 38.5),
    "SFT-1+2+3": (31.3, 37.7),
    "+RL-1": (31.7, 37.2),
    "+RL-1+RL-2": (33.4, 38.9),
    "SFT-1+2+RL-2": (33.9, 38.5),
    "RL-2": (23.7, 27.8),
}
# What an arm is compared by with the one that it is `minus`.
COMPARED = ("exact", "f1", "searches", "regret", "recall", "precision")
# How episodes are grouped.
_KEYS: dict[str, Callable[[Judged], str]] = {
    "all": lambda each: "all",
    "domain": lambda each: each.record.domain,
    "hops": lambda each: str(each.counts.facts),
    "task_type": lambda each: each.record.game.task_type,
}
HOPS = ("one hop", "more")


@dataclass(frozen=True)
class Row:
    """Figures of the episodes of an arm in one group."""

    arm: str
    source: str
    by: str
    group: str
    figures: Mapping[str, Estimate]


@dataclass(frozen=True)
class Change:
    """Figures of an arm minus those of another, on the same questions."""

    arm: str
    minus: str
    figures: Mapping[str, Estimate]


@dataclass(frozen=True)
class Control:
    """Answers at once against answers at the end, of questions of so many hops, known or not."""

    arm: str
    hops: str
    known: bool
    figures: Mapping[str, Estimate]


@dataclass(frozen=True)
class Grafted:
    """What an arm does after thoughts that contradict what is known (`cotjax.diagnostics.grafts`).

    known: the facts are known, and the thoughts say to search; else they state a guess.
    """

    arm: str
    known: bool
    figures: Mapping[str, Estimate]


@dataclass(frozen=True)
class InStates:
    """What an arm does in the expert's states (`cotjax.diagnostics.aligned`).

    searches: the expert searches there; else it answers.
    """

    arm: str
    searches: bool
    figures: Mapping[str, Estimate]


@dataclass(frozen=True)
class StageSummary:
    """All figures of a run. `about`: what stages.json says."""

    about: Mapping[str, Any]
    figures: tuple[Row, ...]
    changes: tuple[Change, ...]
    sim_to_real: Mapping[str, Estimate]
    at_once: tuple[Control, ...]
    grafts: tuple[Grafted, ...]
    aligned: tuple[InStates, ...]

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """Return the arms by name, in the order of the report."""
        return {arm["name"]: arm for arm in self.about["arms"]}

    def row(self, arm: str, source: str, by: str = "all", group: str = "all") -> Row | None:
        """Return the figures of a group; None where nothing was played."""
        wanted = (arm, source, by, group)
        return next((r for r in self.figures if (r.arm, r.source, r.by, r.group) == wanted), None)

    def groups(self, by: str) -> list[str]:
        """Return the groups of the played episodes."""
        return list(dict.fromkeys(row.group for row in self.figures if row.by == by))

    def as_json(self) -> str:
        """Return searches.json."""
        values = {
            "figures": [_values(row) for row in self.figures],
            "changes": [_values(change) for change in self.changes],
            "sim_to_real": {arm: asdict(rounded(x)) for arm, x in self.sim_to_real.items()},
            "at_once": [_values(control) for control in self.at_once],
            "grafts": [_values(each) for each in self.grafts],
            "aligned": [_values(each) for each in self.aligned],
        }
        return json.dumps(values, indent=1) + "\n"


def summarize(run: Path) -> StageSummary:
    """Return the figures of a run's records."""
    about = read_json(run / ABOUT, "cotjax autocoa")
    world = load_world(about["world"])
    played: dict[str, dict[tuple[str, int], list[Record]]] = {}
    for source in about["sources"]:
        folder = run / source
        records = [each for each in _records(run, about, source) if each.driver == "cot"]
        for record in records:
            if record.games_hash != about["games_hash"]:
                raise DataError(
                    f"{folder}: {record.game.id} was played among other questions; delete the "
                    "folder and start the same command again"
                )
        own: dict[tuple[str, int], list[Record]] = {}
        for record in records:
            own.setdefault((record.arm, record.checkpoint), []).append(record)
        played[source] = own
    folders = list(_members(run, about).values())
    splits = {each.game.split for own in played.values() for x in own.values() for each in x}
    root = Path(about["games"])
    root = root if root.is_absolute() or about["games"] != "games" else run / root
    games = {(s, game.id): game for s in sorted(splits) for game in world.games(root, s)}
    episodes = {
        (arm["name"], source): judged(own.get((arm["stage"], arm["step"]), ()), world, games)
        for arm in about["arms"]
        for source, own in played.items()
    }
    return StageSummary(
        about,
        tuple(row for key, own in episodes.items() if own for row in _rows(*key, own)),
        tuple(_changes(about["arms"], episodes)),
        {
            arm: sim_to_real(own, episodes[arm, REAL])
            for (arm, source), own in episodes.items()
            if source == SIMULATED and own
        },
        tuple(
            control
            for (arm, source), own in episodes.items()
            if source == REAL
            for control in _controls(arm, own, world, games)
        ),
        tuple(each for arm in about["arms"] for each in _grafted(folders, arm)),
        tuple(each for arm in about["arms"] for each in _in_states(folders, arm)),
    )


def _members(run: Path, about: Mapping[str, Any]) -> dict[int | None, Path]:
    """Return the folders of the run's seeds; its own, of None, where it has none."""
    return {seed: run / SEEDS / str(seed) for seed in about.get("seeds", ())} or {None: run}


def _records(run: Path, about: Mapping[str, Any], source: str) -> Iterator[Record]:
    """Yield the records of a source, each with its seed."""
    for seed, folder in _members(run, about).items():
        for record in read_records(folder / source):
            yield record.model_copy(update={"training_seed": seed})


def _grafted(folders: Iterable[Path], arm: Mapping[str, Any]) -> list[Grafted]:
    files = (folder / GRAFTS / f"{arm['stage']}-{arm['step']}.jsonl" for folder in folders)
    grafts = [each for file in files for each in read_grafts(file)[1]]
    sides = {known: [each for each in grafts if each.known == known] for known in (False, True)}
    return [Grafted(arm["name"], known, rates(own)) for known, own in sides.items() if own]


def _in_states(folders: Iterable[Path], arm: Mapping[str, Any]) -> list[InStates]:
    files = (folder / ALIGNED / f"{arm['stage']}-{arm['step']}.jsonl" for folder in folders)
    states = [each for file in files for each in read_aligned(file)[1]]
    sides = {kind: [each for each in states if each.searches == kind] for kind in (True, False)}
    return [InStates(arm["name"], kind, aligned.rates(own)) for kind, own in sides.items() if own]


def _rows(arm: str, source: str, episodes: Sequence[Judged]) -> list[Row]:
    return [
        Row(arm, source, by, group, figures(own))
        for by, key in _KEYS.items()
        for group, own in sorted(grouped(episodes, key).items())
    ]


def _changes(
    arms: Sequence[Mapping[str, Any]], episodes: Mapping[tuple[str, str], Sequence[Judged]]
) -> list[Change]:
    return [
        Change(
            arm["name"],
            arm["minus"],
            {
                figure: difference(
                    episodes[arm["name"], REAL], episodes[arm["minus"], REAL], figure
                )
                for figure in COMPARED
            },
        )
        for arm in arms
        if arm["minus"]
    ]


def _controls(
    arm: str,
    episodes: Sequence[Judged],
    world: World,
    games: Mapping[tuple[str, str], Game],
) -> list[Control]:
    both = at_once(episodes, world, games)
    found = []
    for hops in HOPS:
        for known in (True, False):
            own = [
                each
                for each in both
                if (each.cot.counts.facts == 1) == (hops == HOPS[0]) and each.known == known
            ]
            if own:
                found.append(Control(arm, hops, known, compared(own)))
    return found


def _values(row: Row | Change | Control | Grafted | InStates) -> dict[str, Any]:
    values = {name: value for name, value in vars(row).items() if name != "figures"}
    return values | {"figures": {name: asdict(rounded(x)) for name, x in row.figures.items()}}
