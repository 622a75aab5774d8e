"""Makes a study's summary from its records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cotjax.diagnostics.episodes import EpisodeCounts, count_records
from cotjax.diagnostics.metrics import METRICS, Point, Signed, contrast, contrast_p, points
from cotjax.diagnostics.statistics import Estimate
from cotjax.errors import DataError
from cotjax.report.labels import domain_label
from cotjax.report.summary import (
    BASE,
    Arm,
    ArmDifference,
    Change,
    ElicitationUse,
    HeldOutLoss,
    Played,
    PointSummary,
    Summary,
)
from cotjax.runtime.files import write_atomic
from cotjax.train.metrics import read_held_out

# What is compared across checkpoints and arms: success and its gap, which are also tested, and the
# actions on expert states.
COMPARED = (
    "d3_cot",
    "d3_prompt",
    "gap",
    "d1_cot",
    "d1_prompt",
    "d1_gap",
    "revision",
    "revision_helpful",
    "revision_harmful",
)
_TESTED = ("d3_cot", "d3_prompt", "gap")
_REASONED_ENOUGH = 0.9
_DOMAINS = ("in_domain", "ood")

# (checkpoint, domain) -> point of one arm.
Curve = dict[tuple[int, str], Point]


def summarize(run_folder: str | Path) -> Summary:
    """Read `run_folder`/records and run.json, write `run_folder`/summary.json, and return it.

    The same records give the same bytes.

    Raises:
      DataError: records are missing or malformed; the message names the file.
    """
    run_folder = Path(run_folder)
    run = _read_run(run_folder / "run.json")
    episodes = count_records(run_folder / "records")
    by_place = points(episodes)
    arms = _arms(run, {episode.arm for episode in episodes})
    domains = sorted({domain for _, _, domain in by_place}, key=_domain_order)
    curves = {arm: _curve(by_place, arm) for arm in arms}
    last = _last_checkpoint(curves, run_folder)
    baseline = min(arms, key=lambda arm: arms[arm].fraction or 0.0)
    shown = _shown_episode(episodes, baseline, last)
    summary = Summary(
        run=run,
        world=", ".join(sorted({episode.world for episode in episodes})),
        arms=arms,
        baseline=baseline,
        checkpoints=tuple(sorted({place[0] for curve in curves.values() for place in curve})),
        last_checkpoint=last,
        domains=tuple(domains),
        elicitation=_elicitation(episodes),
        points=tuple(
            _point(arm, checkpoint, domain, point)
            for arm, curve in curves.items()
            for (checkpoint, domain), point in curve.items()
        ),
        changes=tuple(_changes(curves, domains, last)),
        arm_differences=tuple(_arm_differences(curves, domains, baseline, last)),
        held_out=_held_out(run_folder, arms),
        shown_episode=str(shown.path.relative_to(run_folder)) if shown else None,
        seconds={
            "environment": round(sum(each.environment_s for each in episodes), 3),
            "sampler": round(sum(each.sampler_s for each in episodes), 3),
        },
    )
    summary = summary.with_warnings(*_warnings(summary, episodes), *_mixed(episodes))
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


def _arms(run: Mapping[str, Any], seen: set[str]) -> dict[str, Arm]:
    """Return the arms that have records, in the order of run.json; else the base alone."""
    described = run.get("arms") or {}
    names = [arm for arm in described if arm in seen and arm != BASE]
    names += sorted(seen - set(described) - {BASE})
    arms = {}
    for name in names or [BASE]:
        about = described.get(name) or {}
        arms[name] = Arm(str(about.get("label") or name), about.get("fraction"))
    return arms


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
        metrics={name: _rounded(point.estimate(name)) for name in METRICS},
        gap_p=_p([(1, point, "gap")], "gap"),
        invalid={
            driver: dict(sorted(reasons.items())) for driver, reasons in point.invalid.items()
        },
        env_faults={driver: point.env_faults[driver] for driver in sorted(point.ended)},
    )


def _rounded(estimate: Estimate) -> Estimate:
    # Adding 0.0 turns -0.0 into 0.0.
    value, low, high = (
        None if x is None else round(x, 6) + 0.0
        for x in (estimate.value, estimate.low, estimate.high)
    )
    return replace(estimate, value=value, low=low, high=high)


def _p(signed: Signed, metric: str) -> float | None:
    p = contrast_p(signed) if metric in _TESTED else None
    return None if p is None else float(f"{p:.4g}")


def _changes(curves: Mapping[str, Curve], domains: Sequence[str], last: int) -> list[Change]:
    changes: list[Change] = []
    for arm, curve in curves.items():
        for domain in domains:
            if last == 0 or not {(0, domain), (last, domain)} <= curve.keys():
                continue
            for metric in COMPARED:
                signed = [(1, curve[last, domain], metric), (-1, curve[0, domain], metric)]
                estimate, p = _rounded(contrast(signed)), _p(signed, metric)
                changes.append(Change(arm, domain, metric, 0, last, estimate, p))
    return changes


def _arm_differences(
    curves: Mapping[str, Curve], domains: Sequence[str], baseline: str, last: int
) -> list[ArmDifference]:
    differences: list[ArmDifference] = []
    for arm, curve in curves.items():
        if arm == baseline or last == 0:
            continue
        for domain in domains:
            place = last, domain
            if place not in curve or place not in curves[baseline]:
                continue
            for metric in COMPARED:
                signed = [(1, curve[place], metric), (-1, curves[baseline][place], metric)]
                estimate, p = _rounded(contrast(signed)), _p(signed, metric)
                differences.append(ArmDifference(domain, metric, arm, baseline, last, estimate, p))
    return differences


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


def _shown_episode(
    episodes: Collection[EpisodeCounts], baseline: str, last: int
) -> EpisodeCounts | None:
    """Return a CoT-driven episode at the last checkpoint that shows reasoning at work.

    Preferred in this order: won, with a revision, lost by prompt actions, in-domain, of the
    baseline arm, short, first by path.
    """
    unbroken = [each for each in episodes if each.checkpoint == last and each.ended != "env_error"]
    lost = {
        (each.arm, each.game, each.sample, each.seed)
        for each in unbroken
        if each.driver == "prompt" and not each.success
    }

    def rank(each: EpisodeCounts) -> tuple[bool | int | str, ...]:
        return (
            not each.success,
            not each.revisions,
            (each.arm, each.game, each.sample, each.seed) not in lost,
            each.domain != "in_domain",
            each.arm != baseline,
            each.steps,
            str(each.path),
        )

    return min(
        (each for each in unbroken if each.driver == "cot" and each.steps), key=rank, default=None
    )


def _warnings(summary: Summary, episodes: Collection[EpisodeCounts]) -> list[str]:
    """Warn of what is missing, mixed or broken."""
    warnings = []
    if not summary.run:
        warnings.append(
            "There is no run.json: the model, the data and the versions behind these records are "
            "not known here."
        )
    drivers = [use.driver for use in summary.elicitation]
    for driver in sorted({driver for driver in drivers if drivers.count(driver) > 1}):
        warnings.append(
            f"The {driver} records were not all made with the same elicitation: their points "
            "cannot be compared."
        )
    warnings += _missing(summary)
    warnings += [text for point in summary.points if (text := _unreasoned(summary, point))]
    broken = sum(episode.ended == "env_error" for episode in episodes)
    if broken:
        warnings.append(
            f"{broken} episode{'s' if broken > 1 else ''} ended by an environment error: left out "
            "of every number."
        )
    return warnings


def _missing(summary: Summary) -> list[str]:
    """Warn of checkpoints without records."""
    warnings = []
    for arm, about in summary.arms.items():
        missing = [
            str(checkpoint)
            for checkpoint in summary.checkpoints
            if any(summary.point(arm, checkpoint, domain) is None for domain in summary.domains)
        ]
        if missing:
            warnings.append(
                f"{about.label}: no records at checkpoint {', '.join(missing)} in at least one "
                "domain."
            )
    unplayed = {int(each) for each in summary.run.get("checkpoints") or []}
    unplayed -= set(summary.checkpoints)
    if unplayed:
        listed = ", ".join(map(str, sorted(unplayed)))
        warnings.append(f"run.json names checkpoints without records: {listed}.")
    return warnings


def _unreasoned(summary: Summary, point: PointSummary) -> str | None:
    """Warn where few CoT responses reasoned. The base, which all arms share, is named once."""
    reasoned = point.metrics["reasoned_cot"].value
    if reasoned is None or reasoned >= _REASONED_ENOUGH:
        return None
    if point.checkpoint == 0 and point.arm != next(iter(summary.arms)):
        return None
    label = summary.label(point.arm) if point.checkpoint else "the base model"
    return (
        f"Only {100 * reasoned:.0f} % of the CoT responses of {label} at checkpoint "
        f"{point.checkpoint}, {domain_label(point.domain)}, held reasoning: the rest of its CoT "
        "actions are direct ones."
    )


def _mixed(episodes: Collection[EpisodeCounts]) -> list[str]:
    """Warn of records that were not made from the same worlds, games or checkpoints."""
    warnings = []
    if len({episode.world for episode in episodes}) > 1:
        warnings.append("The records are of more than one world: they cannot be compared.")
    if len({episode.played_on[0] for episode in episodes}) > 1:
        warnings.append(
            "The records were not all played on the same games (games_hash differs): they cannot "
            "be compared."
        )
    checkpoints: dict[tuple[str, int], set[str]] = {}
    for episode in episodes:
        place = episode.arm, episode.checkpoint
        checkpoints.setdefault(place, set()).add(episode.played_on[1])
    for (arm, checkpoint), hashes in sorted(checkpoints.items()):
        if len(hashes) > 1:
            warnings.append(
                f"The records of {arm} at checkpoint {checkpoint} are of {len(hashes)} different "
                "checkpoints (checkpoint_hash)."
            )
    return warnings
