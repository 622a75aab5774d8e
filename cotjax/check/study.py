"""A run as the check sees it: its arms, and what was counted of each, by seed."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cotjax.check import intervals
from cotjax.check.episodes import Place, Records, Tally, read_records
from cotjax.check.fields import Fields, read, read_lines
from cotjax.check.intervals import Cells, Number, Seed, Sum, Term
from cotjax.check.metrics import DIFFERENCES, METRICS
from cotjax.check.probes import add_probes
from cotjax.errors import DataError

BASE = "base"
DOMAINS = ("in_domain", "ood")
OBJECTIVES = ("sft", "dpo", "frodo", "grpo", "gigpo")
RECIPE = ("steps", "learning_rate", "advantage", "rejected", "task_types")
LEAST_REMOVED = 0.01
# An arm's seeds at one checkpoint in one domain; None: what belongs to every seed.
Pool = Mapping[Seed, Tally]
# (weight, where, metric)
Signed = Sequence[tuple[float, Pool, str]]


@dataclass(frozen=True)
class Arm:
    """Arms of run.json that differ by their seed alone, as the summary's `Arm`, without a label."""

    fraction: float | None
    control: str
    thoughts: str
    direct_share: float | None
    seeds: dict[str, int | None]
    objective: str = "sft"
    start: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    minus: str | None = None

    @property
    def data(self) -> tuple[Any, ...]:
        """What arms have in common that differ by what is dropped alone."""
        return self.thoughts, self.direct_share, self.objective, self.start, self.recipe


@dataclass(frozen=True)
class Study:
    """Everything that a run's files hold.

    Attributes:
      arms: the baseline first.
      seed_curves: name of an arm in records -> (checkpoint, domain) -> what was counted.
      curves: arm -> (checkpoint, domain) -> the same by seed.
      last: the last checkpoint that every arm has, but for those that others start from.
      starts: name of an arm in records -> the (name, checkpoint) that it starts from.
      probes: number of files of probes.
    """

    folder: Path
    run: dict[str, Any]
    records: Records
    arms: dict[str, Arm]
    seed_curves: dict[str, dict[tuple[int, str], Tally]]
    curves: dict[str, dict[tuple[int, str], Pool]]
    domains: list[str]
    last: int
    information: dict[str, list[dict[str, Any]]]
    probes: int
    starts: dict[str, tuple[str, int]]

    @property
    def cells(self) -> list[tuple[str, str]]:
        """Every arm in every domain; none where only the base was played."""
        return [(arm, domain) for arm in self.arms for domain in self.domains if self.last]

    def pool(self, arm: str, checkpoint: int, domain: str) -> Pool | None:
        """Return what was counted of an arm at a place; None where it has no records."""
        return self.curves[arm].get((checkpoint, domain))


def read_study(folder: Path) -> Study:
    """Read a run. Raises DataError where a file is missing or malformed."""
    run = folder / "run.json"
    about = read(run, "restore it from the run").content if run.exists() else {}
    records = read_records(folder / "records")
    tallies = records.tallies
    probes = add_probes(folder, tallies)
    arms = _arms(about, {arm for arm, _, _ in tallies})
    names = [name for arm in arms.values() for name in arm.seeds]
    starts = {name: _start(about, name) for name in names}
    seed_curves = {name: _first(tallies, starts[name]) | _own(tallies, name) for name in names}
    curves = {name: _by_seed(arm, seed_curves) for name, arm in arms.items()}
    started = {arm.start.rpartition("@")[0] for arm in arms.values()}
    shared = set.intersection(
        *({place[0] for place in curve} for name, curve in curves.items() if name not in started)
    )
    if not shared:
        raise DataError(
            f"{folder / 'records'}: the arms {', '.join(arms)} have no checkpoint in common"
        )
    domains = sorted({domain for _, _, domain in tallies}, key=_domain_order)
    seen = {arm for arm, _, _ in tallies}
    information = {
        name: rows for name in sorted(seen, key=natural) if (rows := _information(folder, name))
    }
    return Study(
        folder=folder,
        run=about,
        records=records,
        arms=arms,
        seed_curves=seed_curves,
        curves=curves,
        domains=domains,
        last=max(shared),
        information=information,
        probes=probes,
        starts=starts,
    )


def arm_and_seed(member: str) -> tuple[str, int | None]:
    """Return the arm of a name in records, and the seed that the name says, if any."""
    arm, slash, seed = member.rpartition("/seed-")
    return (arm, int(seed)) if slash and seed.isdecimal() else (member, None)


def _domain_order(domain: str) -> tuple[int, str]:
    return (DOMAINS.index(domain) if domain in DOMAINS else len(DOMAINS), domain)


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key by which numbers in names are sorted by size."""
    return [
        (int(part) if re.fullmatch("[0-9]+", part) else -1, part)
        for part in re.split("([0-9]+)", name)
    ]


def _start(run: Mapping[str, Any], name: str) -> tuple[str, int]:
    """Return the name in records and the checkpoint that an arm starts from."""
    text = str(((run.get("arms") or {}).get(name) or {}).get("start") or "")
    other, sign, step = text.rpartition("@")
    return (other, int(step)) if sign and step.isdecimal() else (BASE, 0)


def _first(tallies: Mapping[Place, Tally], start: tuple[str, int]) -> dict[tuple[int, str], Tally]:
    """Return what an arm's checkpoint 0 is, by domain."""
    return {(0, place[2]): tally for place, tally in tallies.items() if place[:2] == start}


def _own(tallies: Mapping[Place, Tally], name: str) -> dict[tuple[int, str], Tally]:
    return {place[1:]: tally for place, tally in tallies.items() if place[0] == name}


def _by_seed(
    arm: Arm,
    seed_curves: Mapping[str, Mapping[tuple[int, str], Tally]],
) -> dict[tuple[int, str], Pool]:
    """Return what each seed of an arm has. What all have of the base counts once."""
    seeds = list(arm.seeds.values())
    curve: dict[tuple[int, str], dict[Seed, Tally]] = {}
    for name, seed in arm.seeds.items():
        own: Seed = name if seed is None or seeds.count(seed) > 1 else seed
        for place, tally in seed_curves[name].items():
            others = [seed_curves[other].get(place) for other in arm.seeds]
            everyones = place[0] == 0 and all(other is tally for other in others)
            curve.setdefault(place, {})[None if everyones else own] = tally
    return dict(curve)


def _arms(run: Mapping[str, Any], seen: Collection[str]) -> dict[str, Arm]:
    """Return the arms that have records, by the cells of run.json."""
    described = run.get("arms") or {}
    about = {name: described.get(name) or {} for name in seen if name != BASE}

    def seed_order(name: str) -> tuple[int, Any]:
        seed = about[name].get("seed", arm_and_seed(name)[1])
        return (seed if isinstance(seed, int) else 0), natural(name)

    members: dict[str, list[str]] = {}
    for name in sorted(about, key=seed_order):
        members.setdefault(str(about[name].get("cell") or arm_and_seed(name)[0]), []).append(name)
    arms = {cell: _arm([(name, about[name]) for name in names]) for cell, names in members.items()}
    if not arms:
        return {BASE: Arm(None, "action", "", None, {BASE: None})}
    started = {arm.start.rpartition("@")[0] for arm in arms.values()}

    def order(cell: str) -> tuple:
        arm = arms[cell]
        share, fraction = arm.direct_share or 0.0, arm.fraction or 0.0
        short = cell in started and "steps" in arm.recipe
        place = OBJECTIVES.index(arm.objective) if arm.objective in OBJECTIVES else len(OBJECTIVES)
        first = short, place, share == 1.0, arm.thoughts
        return *first, share, fraction, arm.control, natural(cell)

    ordered = sorted(arms, key=order)
    found = {}
    for cell in ordered:
        arm, minus = arms[cell], None if cell == ordered[0] else ordered[0]
        if minus and arm.fraction:
            # An arm that drops something is compared with the one that drops nothing of its data.
            alike = [o for o in ordered if not arms[o].fraction and arms[o].data == arm.data]
            minus = alike[0] if alike else minus
        found[cell] = replace(arm, minus=minus)
    return found


def _arm(members: Sequence[tuple[str, Mapping[str, Any]]]) -> Arm:
    first, start = members[0][1], _start({"arms": dict(members[:1])}, members[0][0])
    fraction, last = first.get("fraction"), first.get("last_fraction")
    share = first.get("direct_share")
    return Arm(
        fraction=max(fraction or 0.0, last) if last else fraction,
        control=str(first.get("control") or "action"),
        thoughts=str(first.get("thoughts") or ""),
        direct_share=float(share) if isinstance(share, int | float) and share >= 0 else None,
        seeds={name: each.get("seed", arm_and_seed(name)[1]) for name, each in members},
        objective=str(first.get("objective") or "sft"),
        start="" if start == (BASE, 0) else f"{arm_and_seed(start[0])[0]}@{start[1]}",
        recipe={name: first[name] for name in RECIPE if first.get(name)},
    )


def _information(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return an arm's rows on the action's information; of one checkpoint the last counts."""
    path = folder / "arms" / name / "information.jsonl"
    rows = read_lines(path, "delete the line") if path.exists() else ()
    by_checkpoint = {row.get("checkpoint", int): _information_row(row) for row in rows}
    return [by_checkpoint[checkpoint] for checkpoint in sorted(by_checkpoint)]


def _information_row(row: Fields) -> dict[str, Any]:
    nats = {}
    for name in ("action_given_thought", "action_given_prompt"):
        given = row.object(name, null=True)
        ends = ("token", "action")
        nats[name] = None if given is None else {end: given.get(end, float) for end in ends}
    shares = {
        name: row.get(name, dict) for name in ("loss_share", "gradient_share", "gradient_norm")
    }
    whole = {name: row.get(name, int) for name in ("checkpoint", "examples", "tokens")}
    removed = {"arm": row.get("arm", str), "removed_share": row.get("removed_share", float)}
    return nats | shares | whole | removed


# ---- numbers of a place


def cells_of(where: Pool, metric: str) -> dict[Seed, Cells]:
    """Return a metric's cells by seed."""
    return {seed: tally.cells.get(metric, {}) for seed, tally in where.items()}


def terms_of(signed: Signed) -> list[Term]:
    """Return the ratios of a sum of metrics; a difference has two."""
    terms: list[Term] = []
    for weight, where, metric in signed:
        one, *others = DIFFERENCES.get(metric, (metric,))
        terms.append((weight, cells_of(where, one)))
        terms += [(-weight, cells_of(where, other)) for other in others]
    return terms


def limits(places: Sequence[Pool], metric: str) -> tuple[float, float]:
    """Return the least and the most that a metric can be."""
    kind, least, most = METRICS[metric]
    if kind != "mean":
        return 0.0, 1.0
    if most is None:
        tallies = [tally for where in places for tally in where.values()]
        steps = metric.startswith("steps")
        most = max(tally.most_steps if steps else tally.most_tokens for tally in tallies)
    return least, most


def number_of(where: Pool, metric: str) -> Number:
    """Return a metric at a place, with its interval."""
    kind, _, _ = METRICS[metric]
    if kind == "difference":
        return contrast([(1, where, metric)])
    cells = cells_of(where, metric)
    return intervals.rate(cells) if kind == "rate" else intervals.mean(
        cells, *limits([where], metric)
    )  # fmt: skip


def combine(signed: Signed) -> Sum | None:
    """Return a weighted sum of metrics; None where no game has all."""
    least, most = limits([where for _, where, _ in signed], signed[0][2])
    return intervals.combine(terms_of(signed), most - least)


def contrast(signed: Signed) -> Number:
    """Return a weighted sum of metrics with its interval."""
    found = combine(signed)
    return dict(intervals.NOTHING) if found is None else found.number()


def elicitations(records: Records) -> list[dict[str, Any]]:
    """Return every elicitation of every driver, with its number of records."""
    texts = [(driver, json.dumps(each, sort_keys=True)) for driver, each in records.uses]
    return [
        {"driver": use[0], "elicitation": json.loads(use[1]), "records": texts.count(use)}
        for use in sorted(set(texts))
    ]
