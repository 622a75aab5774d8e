"""Makes a study's summary from its records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cotjax.diagnostics.episodes import EpisodeCounts, count_records
from cotjax.diagnostics.information import Information, read_information
from cotjax.diagnostics.metrics import METRICS, Point, points
from cotjax.diagnostics.probes import count_probes
from cotjax.errors import DataError
from cotjax.report.arms import find_arms, with_information
from cotjax.report.chosen import invalid_responses, shown_episode
from cotjax.report.compare import (
    Curve,
    Curves,
    arm_differences,
    changes,
    p_value,
    placements,
    rounded,
    splits,
)
from cotjax.report.summary import (
    BASE,
    ElicitationUse,
    HeldOutLoss,
    Played,
    PointSummary,
    Summary,
)
from cotjax.report.warnings import warnings_of
from cotjax.runtime.files import write_atomic
from cotjax.train.metrics import read_held_out

_DOMAINS = ("in_domain", "ood")


def summarize(run_folder: str | Path) -> Summary:
    """Read `run_folder`/records and run.json, write `run_folder`/summary.json, and return it.

    Arms that differ by their seed alone become one: a game's episodes of all seeds count as one
    game. The same records give the same bytes.

    Raises:
      DataError: records are missing or malformed; the message names the file.
    """
    run_folder = Path(run_folder)
    run = _read_run(run_folder / "run.json")
    episodes = count_records(run_folder / "records")
    information = _information(run_folder, {episode.arm for episode in episodes})
    arms = with_information(find_arms(run, {episode.arm for episode in episodes}), information)
    arm_of = {seed: name for name, arm in arms.items() for seed in arm.seeds}
    measured = list(count_probes(run_folder))
    by_seed = points(episodes, measured)
    by_arm = points(
        (replace(each, arm=arm_of.get(each.arm, each.arm)) for each in episodes),
        (replace(each, arm=arm_of.get(each.arm, each.arm)) for each in measured),
    )
    domains = sorted({domain for _, _, domain in by_arm}, key=_domain_order)
    curves = {arm: _curve(by_arm, arm) for arm in arms}
    seed_curves = {seed: _curve(by_seed, seed) for seed in arm_of}
    last = _last_checkpoint(curves, run_folder)
    compare = arms, curves, seed_curves, domains, last
    baseline = next(iter(arms))
    shown = shown_episode(episodes, arms[baseline].seeds, last)
    summary = Summary(
        run=run,
        world=", ".join(sorted({episode.world for episode in episodes})),
        arms=arms,
        baseline=baseline,
        checkpoints=tuple(sorted({place[0] for curve in curves.values() for place in curve})),
        last_checkpoint=last,
        domains=tuple(domains),
        elicitation=_elicitation(episodes),
        points=_points(curves),
        seed_points=_points(
            {seed: seed_curves[seed] for seed, arm in arm_of.items() if len(arms[arm].seeds) > 1}
        ),
        changes=tuple(changes(*compare)),
        arm_differences=tuple(arm_differences(*compare)),
        placements=tuple(placements(*compare)),
        splits=tuple(splits(arms, curves, domains, last)),
        information=information,
        invalid=(),
        held_out=_held_out(run_folder, arm_of),
        shown_episode=str(shown.path.relative_to(run_folder)) if shown else None,
        seconds={
            "environment": round(sum(each.environment_s for each in episodes), 3),
            "sampler": round(sum(each.sampler_s for each in episodes), 3),
        },
    )
    summary = replace(summary, invalid=invalid_responses(summary, episodes))
    summary = summary.with_warnings(*warnings_of(summary, episodes))
    write_atomic(run_folder / "summary.json", summary.to_json())
    return summary


def _read_run(path: Path) -> dict[str, Any]:
    """Return run.json; {} where there is none."""
    if not path.exists():
        return {}
    remedy = "start the run again, or delete the file to report without it"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not complete JSON ({error}); {remedy}") from None
    if not isinstance(run, dict):
        raise DataError(f"{path}: not a JSON object; {remedy}")
    return run


def _domain_order(domain: str) -> tuple[int, str]:
    return (_DOMAINS.index(domain) if domain in _DOMAINS else len(_DOMAINS), domain)


def _curve(by_place: Mapping[tuple[str, int, str], Point], arm: str) -> Curve:
    """Return an arm's points in order; at checkpoint 0 the base's, unless it has its own."""
    base = {
        (checkpoint, domain): point
        for (name, checkpoint, domain), point in by_place.items()
        if name == BASE and checkpoint == 0
    }
    own = {
        (checkpoint, domain): point
        for (name, checkpoint, domain), point in by_place.items()
        if name == arm
    }
    both = base | own
    return {place: both[place] for place in sorted(both, key=lambda p: (p[0], _domain_order(p[1])))}


def _last_checkpoint(curves: Mapping[str, Curve], run_folder: Path) -> int:
    """Return the last checkpoint that every arm has. Raises DataError where there is none."""
    shared = set.intersection(*({place[0] for place in curve} for curve in curves.values()))
    if not shared:
        raise DataError(
            f"{run_folder / 'records'}: the arms {', '.join(curves)} have no checkpoint in common; "
            "run `cotjax evaluate` for all of them"
        )
    return max(shared)


def _points(curves: Curves) -> tuple[PointSummary, ...]:
    return tuple(
        _point(arm, checkpoint, domain, point)
        for arm, curve in curves.items()
        for (checkpoint, domain), point in curve.items()
    )


def _point(arm: str, checkpoint: int, domain: str, point: Point) -> PointSummary:
    episodes = {}
    for driver, ended in sorted(point.ended.items()):
        broken = ended.get("env_error", 0)
        episodes[driver] = Played(
            played=ended.total() - broken,
            won=ended.get("won", 0),
            env_error=broken,
            ended=dict(sorted(ended.items())),
        )
    return PointSummary(
        arm=arm,
        checkpoint=checkpoint,
        domain=domain,
        episodes=episodes,
        metrics={name: rounded(point.estimate(name)) for name in METRICS},
        gap_p=p_value([(1, point, "gap")], "gap"),
        invalid={
            driver: dict(sorted(reasons.items())) for driver, reasons in point.invalid.items()
        },
        env_faults={driver: point.env_faults[driver] for driver in sorted(point.ended)},
    )


def _information(run_folder: Path, arms: Collection[str]) -> dict[str, tuple[Information, ...]]:
    """Return the rows on the action's information, of the arms that have any."""
    rows = {arm: tuple(read_information(run_folder / "arms" / arm)) for arm in sorted(arms)}
    return {arm: each for arm, each in rows.items() if each}


def _held_out(run_folder: Path, arms: Collection[str]) -> dict[str, tuple[HeldOutLoss, ...]]:
    """Return the held-out losses of the arms that have any (`train.eval_every`)."""
    losses = {}
    for arm in arms:
        path = run_folder / "arms" / arm / "metrics.jsonl"
        rows = read_held_out(path) if path.exists() else []
        if rows:
            losses[arm] = tuple(
                HeldOutLoss(row["step"], row["held_out"]["loss"], row["held_out"]["loss_by_role"])
                for row in rows
            )
    return losses


def _elicitation(episodes: Sequence[EpisodeCounts]) -> tuple[ElicitationUse, ...]:
    uses = Counter(
        (episode.driver, json.dumps(episode.elicitation, sort_keys=True)) for episode in episodes
    )
    return tuple(
        ElicitationUse(driver, json.loads(text), records)
        for (driver, text), records in sorted(uses.items())
    )
