"""What a run's summary.json should hold, computed from the run's files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cotjax.check.fields import Fields, read_lines
from cotjax.check.intervals import games_p
from cotjax.check.layers import numbers_by_layer
from cotjax.check.metrics import COMPARED, MEASURES, METRICS, TESTED
from cotjax.check.study import (
    BASE,
    LEAST_REMOVED,
    Pool,
    Signed,
    Study,
    combine,
    contrast,
    elicitations,
    number_of,
    terms_of,
)
from cotjax.check.verdicts import LEVEL, placements
from cotjax.errors import DataError

SCHEMA = 4
VALID_ENOUGH = 0.95
_VALIDITY = [f"valid_{kind}{end}" for end in ("", "_states") for kind in ("cot", "prompt",
             "instructed")]  # fmt: skip
Row = dict[str, Any]


def expected(study: Study) -> Row:
    """Return the fields of summary.json, with all their digits and without texts for readers."""
    placed, primary = placements(study)
    points = [row for arm in study.arms for row in _points(arm, study.curves[arm])]
    several = [arm for arm in study.arms.values() if len(arm.seeds) > 1]
    seeds = [name for arm in several for name in arm.seeds]
    alone: Mapping[str, Mapping[tuple[int, str], Pool]] = {
        name: {place: {None: tally} for place, tally in study.seed_curves[name].items()}
        for name in seeds
    }
    return {
        "schema_version": SCHEMA,
        "metrics": {
            name: {"kind": kind, "low": least, "upper": most}
            for name, (kind, least, most) in METRICS.items()
        },
        "intervals": {"level": LEVEL},
        "run": study.run,
        "world": ", ".join(sorted(study.records.worlds)),
        "arms": _arms(study),
        "baseline": next(iter(study.arms)),
        "checkpoints": sorted({place[0] for curve in study.curves.values() for place in curve}),
        "last_checkpoint": study.last,
        "domains": study.domains,
        "elicitation": elicitations(study.records),
        "points": points,
        "seed_points": [row for name in seeds for row in _points(name, alone[name])],
        "changes": list(_changes(study)),
        "arm_differences": list(_differences(study)),
        "trends": list(_trends(study)),
        "primary": primary,
        "placements": placed,
        "splits": list(_splits(study)),
        "information": study.information,
        "invalid": _invalid(study, points),
        "held_out": _held_out(study),
        "rewards": _rewards(study),
        "games_hashes": sorted(study.records.games),
        "checkpoint_hashes": {
            f"{arm}/{checkpoint}": sorted(hashes)
            for (arm, checkpoint), hashes in study.records.checkpoints.items()
        },
        "seconds": dict(zip(("environment", "sampler"), study.records.seconds, strict=True)),
    }


def _arms(study: Study) -> Row:
    rows: Row = {}
    for name, arm in study.arms.items():
        given = [row for seed in arm.seeds for row in study.information.get(seed, ())]
        removed = max((row["removed_share"] for row in given), default=None)
        alike = arm.minus is not None and study.arms[arm.minus].data == arm.data
        rows[name] = {
            "fraction": arm.fraction,
            "control": arm.control,
            "thoughts": arm.thoughts,
            "direct_share": arm.direct_share,
            "seeds": arm.seeds,
            "objective": arm.objective,
            "start": arm.start,
            "recipe": arm.recipe,
            "minus": arm.minus,
            "removed_share": removed,
            "cannot_differ": bool(arm.fraction)
            and alike
            and removed is not None
            and removed < LEAST_REMOVED,
        }
    return rows


def _points(arm: str, curve: Mapping[tuple[int, str], Pool]) -> Iterator[Row]:
    for (checkpoint, domain), where in curve.items():
        ended: dict[str, Counter[str]] = {}
        faults: Counter[str] = Counter()
        invalid: dict[str, Counter[str]] = {"cot": Counter(), "prompt": Counter()}
        for tally in where.values():
            faults.update(tally.faults)
            for found, into in ((tally.ended, ended), (tally.invalid, invalid)):
                for name, counts in found.items():
                    into.setdefault(name, Counter()).update(counts)
        episodes = {
            driver: {
                "played": counts.total() - counts["env_error"],
                "won": counts["won"],
                "env_error": counts["env_error"],
                "ended": {name: number for name, number in counts.items() if number},
            }
            for driver, counts in ended.items()
        }
        layers = numbers_by_layer(where)
        known: Row = {"layers": layers} if layers else {}
        yield known | {
            "arm": arm,
            "checkpoint": checkpoint,
            "domain": domain,
            "episodes": episodes,
            "metrics": {name: number_of(where, name) for name in METRICS},
            "gap_p": games_p(terms_of([(1, where, "gap")])),
            "invalid": {kind: dict(reasons) for kind, reasons in invalid.items()},
            "env_faults": {driver: faults[driver] for driver in ended},
        }


def _changes(study: Study) -> Iterator[Row]:
    for arm, domain in study.cells:
        first, last = (study.pool(arm, checkpoint, domain) for checkpoint in (0, study.last))
        if first is None or last is None:
            continue
        for metric in COMPARED:
            signed = [(1, last, metric), (-1, first, metric)]
            number = contrast(signed)
            if number["value"] is None:
                continue
            ends = (study.last, domain), (0, domain)
            of_seeds = {
                name: [study.seed_curves[name].get(end) for end in ends]
                for name in study.arms[arm].seeds
            }
            about: Row = {"arm": arm, "domain": domain, "metric": metric}
            about |= {"from": 0, "to": study.last}
            yield about | number | _tested(signed, metric) | _by_seed(of_seeds, metric)


def _differences(study: Study) -> Iterator[Row]:
    for arm, domain in study.cells:
        minus = study.arms[arm].minus
        if minus is None:
            continue
        own, other = (study.pool(name, study.last, domain) for name in (arm, minus))
        if own is None or other is None:
            continue
        of_seed = {seed: name for name, seed in study.arms[minus].seeds.items() if seed is not None}
        seeds = study.arms[arm].seeds
        pairs = {name: (name, of_seed[seed]) for name, seed in seeds.items() if seed in of_seed}
        for metric in COMPARED:
            signed = [(1, own, metric), (-1, other, metric)]
            number = contrast(signed)
            if number["value"] is None:
                continue
            of_seeds = {
                name: [study.seed_curves[each].get((study.last, domain)) for each in both]
                for name, both in pairs.items()
            }
            about: Row = {"arm": arm, "domain": domain, "metric": metric, "minus": minus}
            about |= {"checkpoint": study.last}
            yield about | number | _tested(signed, metric) | _by_seed(of_seeds, metric)


def _tested(signed: Signed, metric: str) -> Row:
    return {"p": games_p(terms_of(signed)) if metric in TESTED else None}


def _by_seed(of_seeds: Mapping[str, Sequence[Any]], metric: str) -> Row:
    """Return each seed's difference of two tallies; None with fewer than two."""
    values = {}
    for name, (one, other) in of_seeds.items():
        if one is not None and other is not None:
            signed: Signed = [(1, {None: one}, metric), (-1, {None: other}, metric)]
            value = contrast(signed)["value"]
            if value is not None:
                values[name] = value
    return {"by_seed": {"values": values} if len(values) > 1 else None}


def _trends(study: Study) -> Iterator[Row]:
    for arm, domain in study.cells:
        for _, _, gap in MEASURES.values():
            points = {
                checkpoint: where
                for (checkpoint, place), where in sorted(study.curves[arm].items())
                if place == domain
                and checkpoint <= study.last
                and number_of(where, gap)["value"] is not None
            }
            if len(points) < 3:
                continue
            # The weights of a least-squares slope in 100 updates.
            x = np.array(list(points)) / 100
            design = np.stack([np.ones(len(x)), x], axis=1)
            slope = np.linalg.pinv(design)[1]
            weights = zip(slope, points.values(), strict=True)
            found = combine([(float(weight), where, gap) for weight, where in weights])
            if found is not None:
                about: Row = {"arm": arm, "domain": domain, "metric": gap}
                about |= {"checkpoints": list(points)}
                yield about | found.number() | {"p": found.p}


def _splits(study: Study) -> Iterator[Row]:
    directs = [name for name, a in study.arms.items() if a.direct_share == 1.0 and not a.fraction]
    for arm, domain in study.cells if directs else ():
        twin = directs[0]
        own, direct = (study.pool(name, study.last, domain) for name in (arm, twin))
        if arm == twin or own is None or direct is None:
            continue
        for measure in ("d3", "d1"):
            cot, prompt, _ = MEASURES[measure, False]
            shared = [(0, own, cot), (0, own, prompt), (0, direct, prompt)]
            gap, reasoning, hidden, chosen = (
                contrast([*shared, (1, *plus), (-1, *minus)])
                for plus, minus in (
                    ((own, cot), (own, prompt)),
                    ((own, cot), (direct, prompt)),
                    ((direct, prompt), (own, prompt)),
                    ((own, f"{prompt}_constrained"), (own, prompt)),
                )
            )
            if gap["value"] is None or reasoning["value"] is None:
                continue
            # The file's parts add up to the last of its decimals.
            hidden["value"] = round(gap["value"], 6) - round(reasoning["value"], 6)
            about: Row = {"arm": arm, "domain": domain, "measure": measure, "twin": twin}
            about |= {"checkpoint": study.last, "gap": gap, "reasoning": reasoning}
            yield about | {"hidden": hidden, "constrained": chosen}


def _invalid(study: Study, points: Sequence[Row]) -> list[Row]:
    """Return the kinds of responses of which too few were valid, at the base or in the end."""
    found = []
    at = {(row["arm"], row["checkpoint"], row["domain"]): row for row in points}
    for metric in _VALIDITY:
        low = []
        for domain in study.domains:
            starts: dict[str, Row] = {}
            for name, arm in study.arms.items():
                if (name, 0, domain) in at:
                    starts.setdefault(arm.start or f"{BASE}@0", at[name, 0, domain])
            ends = {
                f"{name}@{study.last}": at[name, study.last, domain]
                for name in study.arms
                if study.last and (name, study.last, domain) in at
            }
            for place, row in (*starts.items(), *ends.items()):
                value = row["metrics"][metric]["value"]
                if value is not None and round(value, 6) < VALID_ENOUGH:
                    played, _, step = place.rpartition("@")
                    low.append([played, int(step), domain, value])
        if low:
            low.sort(key=lambda each: (round(each[3], 6), each[:3]))
            found.append({"metric": metric, "points": low})
    return found


def _held_out(study: Study) -> Row:
    """Return the held-out losses in the arms' logs."""
    losses: Row = {}
    for name in _members(study):
        for line in _logged(study, name):
            held = line.object("held_out", null=True)
            if held is not None:
                loss, by_role = held.get("loss", float), held.get("loss_by_role", dict)
                row = {"checkpoint": line.get("step", int), "loss": loss, "loss_by_role": by_role}
                losses.setdefault(name, []).append(row)
    return losses


def _rewards(study: Study) -> Row:
    """Return the rewards in the logs of arms that play what they learn from."""
    found: Row = {}
    for name in _members(study):
        for line in _logged(study, name):
            if "reward" in line.content:
                reward, success = line.content["reward"] or {}, line.content.get("success")
                row = {"step": line.get("step", int), "reward": reward.get("mean")}
                found.setdefault(name, []).append(row | {"success": success})
    return found


def _members(study: Study) -> list[str]:
    return [name for arm in study.arms.values() for name in arm.seeds]


def _logged(study: Study, name: str) -> Iterator[Fields]:
    """Yield the rows of an arm's log, up to a last line that a kill cut short."""
    path = study.folder / "arms" / name / "metrics.jsonl"
    try:
        yield from read_lines(path, "restore it") if path.exists() else ()
    except DataError as error:
        if "not JSON" not in str(error):
            raise
