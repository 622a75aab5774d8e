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
from cotjax.diagnostics.metrics import METRICS, Point, Pool, Seed, by_layer, points
from cotjax.diagnostics.probes import count_probes
from cotjax.errors import DataError
from cotjax.report.arms import find_arms, start_of, with_information
from cotjax.report.chosen import invalid_responses, shown_episode
from cotjax.report.compare import (
    Curve,
    SeedCurves,
    arm_differences,
    changes,
    p_value,
    rounded,
    splits,
    trends,
)
from cotjax.report.family import placements, primary_of
from cotjax.report.summary import (
    BASE,
    Arm,
    ElicitationUse,
    HeldOutLoss,
    Played,
    PointSummary,
    Reward,
    Summary,
)
from cotjax.report.warnings import warnings_of
from cotjax.runtime.files import write_atomic
from cotjax.runtime.members import natural
from cotjax.train.metrics import read_held_out, read_metrics

_DOMAINS = ("in_domain", "ood")


def summarize(run_folder: str | Path) -> Summary:
    """Read `run_folder`/records and run.json, write `run_folder`/summary.json, and return it.

    Arms that differ by their seed alone become one, whose intervals hold over games and seeds. The
    same records give the same bytes.

    Raises:
      DataError: records are missing or malformed; the message names the file.
    """
    run_folder = Path(run_folder)
    run = _read_run(run_folder / "run.json")
    episodes = count_records(run_folder / "records")
    information = _information(run_folder, {episode.arm for episode in episodes})
    arms = with_information(find_arms(run, {episode.arm for episode in episodes}), information)
    arm_of = {seed: name for name, arm in arms.items() for seed in arm.seeds}
    by_place = points(episodes, count_probes(run_folder))
    domains = sorted({domain for _, _, domain in by_place}, key=_domain_order)
    seed_curves = {name: _curve(by_place, name, start_of(run, name)) for name in arm_of}
    curves = {name: _together(arm, seed_curves) for name, arm in arms.items()}
    last = _last_checkpoint(arms, curves, run_folder)
    compare = arms, curves, seed_curves, domains, last
    placed, primary = placements(*compare, primary_of(run), run.get("expert", True))
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
        trends=tuple(trends(arms, curves, domains, last)),
        primary=primary,
        placements=placed,
        splits=tuple(splits(arms, curves, domains, last)),
        information=information,
        invalid=(),
        held_out=_held_out(run_folder, arm_of),
        rewards=_rewards(run_folder, arms),
        shown_episode=str(shown.path.relative_to(run_folder)) if shown else None,
        seconds={
            "environment": round(sum(each.environment_s for each in episodes), 3),
            "sampler": round(sum(each.sampler_s for each in episodes), 3),
        },
        games_hashes=tuple(sorted({episode.played_on[0] for episode in episodes})),
        checkpoint_hashes=_checkpoint_hashes(episodes),
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


def _curve(
    by_place: Mapping[tuple[str, int, str], Point], name: str, start: tuple[str, int] | None
) -> dict[tuple[int, str], Point]:
    """Return an arm's points in order; at checkpoint 0 those of its start, unless it has its own.

    `start`: (member, checkpoint); None for the base.
    """
    base = {
        (0, domain): point
        for (arm, checkpoint, domain), point in by_place.items()
        if (arm, checkpoint) == (start or (BASE, 0))
    }
    own = {
        (checkpoint, domain): point
        for (arm, checkpoint, domain), point in by_place.items()
        if arm == name
    }
    both = base | own
    return {place: both[place] for place in sorted(both, key=lambda p: (p[0], _domain_order(p[1])))}


def _together(arm: Arm, seed_curves: SeedCurves) -> Curve:
    """Return the curve of an arm's seeds together. The base's points belong to every seed."""
    known = list(arm.seeds.values())
    curve: dict[tuple[int, str], dict[Seed, Point]] = {}
    for name, seed in arm.seeds.items():
        # Two arms of one seed, or of none that is known, still are two.
        key = name if seed is None or known.count(seed) > 1 else seed
        for place, point in seed_curves[name].items():
            of_base = all(seed_curves[other].get(place) is point for other in arm.seeds)
            curve.setdefault(place, {})[None if of_base and place[0] == 0 else key] = point
    return {place: Pool(by_seed) for place, by_seed in curve.items()}


def _last_checkpoint(arms: Mapping[str, Arm], curves: Mapping[str, Curve], run_folder: Path) -> int:
    """Return the last checkpoint that every arm has, but for those that others start from.

    Raises DataError where there is none.
    """
    starts = {arm.start.rpartition("@")[0] for arm in arms.values()}
    compared = [curve for arm, curve in curves.items() if arm not in starts]
    shared = set.intersection(*({place[0] for place in curve} for curve in compared))
    if not shared:
        raise DataError(
            f"{run_folder / 'records'}: the arms {', '.join(curves)} have no checkpoint in common; "
            "run `cotjax evaluate` for all of them"
        )
    return max(shared)


def _points(
    curves: Mapping[str, Mapping[tuple[int, str], Point | Pool]],
) -> tuple[PointSummary, ...]:
    return tuple(
        _point(arm, checkpoint, domain, point)
        for arm, curve in curves.items()
        for (checkpoint, domain), point in curve.items()
    )


def _point(arm: str, checkpoint: int, domain: str, point: Point | Pool) -> PointSummary:
    episodes, together = {}, point.together
    for driver, ended in sorted(together.ended.items()):
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
            driver: dict(sorted(reasons.items())) for driver, reasons in together.invalid.items()
        },
        env_faults={driver: together.env_faults[driver] for driver in sorted(together.ended)},
        layers={name: tuple(map(rounded, each)) for name, each in by_layer(point).items()},
    )


def _information(run_folder: Path, arms: Collection[str]) -> dict[str, tuple[Information, ...]]:
    """Return the rows on the action's information, of the arms that have any."""
    rows = {
        arm: tuple(read_information(run_folder / "arms" / arm)) for arm in sorted(arms, key=natural)
    }
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


def _rewards(run_folder: Path, arms: Mapping[str, Arm]) -> dict[str, tuple[Reward, ...]]:
    """Return the rewards of the arms that play what they learn from."""
    rewards = {}
    for member in (each for arm in arms.values() for each in arm.seeds):
        path = run_folder / "arms" / member / "metrics.jsonl"
        rows = read_metrics(path) if path.exists() else []
        found = tuple(
            Reward(row["step"], (row["reward"] or {}).get("mean"), row["success"])
            for row in rows
            if "reward" in row
        )
        if found:
            rewards[member] = found
    return rewards


def _checkpoint_hashes(episodes: Sequence[EpisodeCounts]) -> dict[str, tuple[str, ...]]:
    hashes: dict[tuple[str, int], set[str]] = {}
    for episode in episodes:
        place = episode.arm, episode.checkpoint
        hashes.setdefault(place, set()).add(episode.played_on[1])
    places = sorted(hashes, key=lambda place: (natural(place[0]), place[1]))
    return {f"{arm}/{step}": tuple(sorted(hashes[arm, step])) for arm, step in places}


def _elicitation(episodes: Sequence[EpisodeCounts]) -> tuple[ElicitationUse, ...]:
    uses = Counter(
        (episode.driver, json.dumps(episode.elicitation, sort_keys=True)) for episode in episodes
    )
    return tuple(
        ElicitationUse(driver, json.loads(text), records)
        for (driver, text), records in sorted(uses.items())
    )
