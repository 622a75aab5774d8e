"""What makes a study weaker than it looks, in sentences."""

from __future__ import annotations

from collections.abc import Collection

from cotjax.diagnostics.episodes import EpisodeCounts
from cotjax.diagnostics.metrics import METRICS
from cotjax.envs.worlds import IN_DOMAIN
from cotjax.report.labels import capitalize, domain_label
from cotjax.report.summary import BASE, InvalidResponses, PointSummary, Summary

_REASONED_ENOUGH = 0.9
ENOUGH_GAMES = 60  # of an OOD domain; the interval of a rate over 60 games is up to 25 points wide


def warnings_of(summary: Summary, episodes: Collection[EpisodeCounts]) -> list[str]:
    """Return warnings of what is missing, mixed, broken, invalid or without effect."""
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
    if summary.run.get("model", {}).get("continues_responses") is False:
        warnings.append(
            "Prompt actions are not available: the endpoint does not go on with a response that is "
            "begun for it, as a probe at the start showed."
        )
    warnings += _beforehand(summary)
    warnings += _missing(summary)
    warnings += [text for point in summary.points if (text := _unreasoned(summary, point))]
    warnings += [_invalid(summary, invalid) for invalid in summary.invalid]
    warnings += [
        f"{capitalize(arm.label)}: {cannot_differ(summary, name)}"
        for name, arm in summary.arms.items()
        if arm.cannot_differ
    ]
    broken = sum(episode.ended == "env_error" for episode in episodes)
    if broken:
        warnings.append(
            f"{broken} episode{'s' if broken > 1 else ''} ended by an environment error: left out "
            "of every number."
        )
    return warnings + _few_games(episodes) + _mixed(summary, episodes)


def _beforehand(summary: Summary) -> list[str]:
    """Warn of seeds that are too few, and of a primary measure that nobody fixed."""
    if not summary.last_checkpoint:
        return []
    warnings = []
    fewest = min(len(arm.seeds) for arm in summary.arms.values())
    if fewest == 1:
        warnings.append(
            "Training seeds are not covered: at least one arm was trained from one seed alone, so "
            "its intervals hold for other games and not for another training run."
        )
    elif fewest == 2:
        warnings.append("Two training seeds say little of others: give every arm at least three.")
    if not summary.primary.fixed:
        warnings.append(
            "The measure of the verdicts was not fixed beforehand: set `primary` in the config."
        )
    return warnings


def cannot_differ(summary: Summary, arm: str) -> str:
    """Return why an arm cannot differ from the one that it is compared with."""
    about = summary.arms[arm]
    minus = "" if about.minus is None else f" from {summary.label(about.minus)}"
    return (
        f"this arm cannot differ{minus}: what it drops is {_small(about.removed_share)} of its "
        "loss."
    )


def _small(share: float | None) -> str:
    percent = 100 * (share or 0.0)
    return f"{percent:.2f} %" if percent >= 0.005 else "less than 0.01 %"


def _invalid(summary: Summary, invalid: InvalidResponses) -> str:
    arm, checkpoint, domain, share = invalid.points[0]
    whose = "the base model" if arm == BASE else f"{summary.label(arm)}, step {checkpoint}"
    number = len(invalid.points)
    also = f"; below 95 % in {number} places" if number > 1 else ""
    return (
        f"{capitalize(METRICS[invalid.metric].label)}: only {100 * share:.0f} % "
        f"({whose}, {domain_label(domain)}{also}), so what is measured is form as well as choice."
    )


def _missing(summary: Summary) -> list[str]:
    """Warn of checkpoints without records."""
    warnings = []
    # Others may be those of an arm that is shorter, because others start from it.
    expected = {point.checkpoint for point in summary.points if point.arm in summary.compared}
    for arm, about in summary.compared.items():
        missing = [
            str(checkpoint)
            for checkpoint in sorted(expected)
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


def _few_games(episodes: Collection[EpisodeCounts]) -> list[str]:
    """Warn of OOD domains of which few games were played."""
    played: dict[str, set[str]] = {}
    for episode in episodes:
        played.setdefault(episode.domain, set()).add(episode.game)
    few = [
        f"{len(games)} {domain_label(domain)}"
        for domain, games in played.items()
        if domain != IN_DOMAIN and len(games) < ENOUGH_GAMES
    ]
    if not few:
        return []
    return [f"Fewer than {ENOUGH_GAMES} games, so with wide intervals: {', '.join(few)}."]


def _unreasoned(summary: Summary, point: PointSummary) -> str | None:
    """Warn where few CoT responses reasoned. The base, which all arms share, is named once."""
    reasoned = point.metrics["reasoned_cot"].value
    if reasoned is None or reasoned >= _REASONED_ENOUGH:
        return None
    if point.checkpoint == 0:
        bases = (arm for arm, about in summary.arms.items() if not about.start)
        if point.arm != next(bases, None):
            return None
    label = summary.label(point.arm) if point.checkpoint else "the base model"
    return (
        f"Only {100 * reasoned:.0f} % of the CoT responses of {label} at checkpoint "
        f"{point.checkpoint}, {domain_label(point.domain)}, held reasoning: the rest of its CoT "
        "actions are direct ones."
    )


def _mixed(summary: Summary, episodes: Collection[EpisodeCounts]) -> list[str]:
    """Warn of records that were not made from the same worlds, games or checkpoints."""
    warnings = []
    if len({episode.world for episode in episodes}) > 1:
        warnings.append("The records are of more than one world: they cannot be compared.")
    if len(summary.games_hashes) > 1:
        warnings.append(
            "The records were not all played on the same games (games_hash differs): they cannot "
            "be compared."
        )
    for place, hashes in summary.checkpoint_hashes.items():
        if len(hashes) > 1:
            arm, _, checkpoint = place.rpartition("/")
            warnings.append(
                f"The records of {arm} at checkpoint {checkpoint} are of {len(hashes)} different "
                "checkpoints (checkpoint_hash)."
            )
    return warnings
