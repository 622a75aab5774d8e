"""Records that the page shows something of: an episode, and invalid responses."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from cotjax.diagnostics.episodes import EpisodeCounts
from cotjax.report.summary import BASE, InvalidResponses, PointSummary, Summary
from cotjax.rollout.record import Response, read_record

VALID_ENOUGH = 0.95
# Share of valid responses -> (driver of the records that it is counted on, kind of the response).
VALIDITY = {
    "valid_cot": ("cot", "cot"),
    "valid_prompt": ("prompt", "prompt"),
    "valid_instructed": ("instructed", "instructed"),
    "valid_cot_states": ("reference", "cot"),
    "valid_prompt_states": ("reference", "prompt"),
    "valid_instructed_states": ("reference", "instructed"),
}


def shown_episode(
    episodes: Collection[EpisodeCounts], baseline: Collection[str], last: int
) -> EpisodeCounts | None:
    """Return a CoT-driven episode at the last checkpoint that shows reasoning at work.

    Preferred in this order: won, with a revision, lost by prompt actions, in-domain, of the
    baseline, short, first by path.

    `baseline`: names of the baseline's seeds in the records.
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
            each.arm not in baseline,
            each.steps,
            str(each.path),
        )

    return min(
        (each for each in unbroken if each.driver == "cot" and each.steps), key=rank, default=None
    )


def invalid_responses(
    summary: Summary, episodes: Collection[EpisodeCounts]
) -> tuple[InvalidResponses, ...]:
    """Return the kinds of which fewer than 95 % were valid, at the base or the last checkpoint."""
    found = []
    for metric in VALIDITY:
        shares = []
        for point in (point for domain in summary.domains for point in summary.ends(domain)):
            valid = point.metrics[metric].value
            if valid is not None and valid < VALID_ENOUGH:
                shares.append((*_place(summary, point), point.domain, valid))
        if shares:
            shares.sort(key=lambda row: (row[3], row[:3]))
            responses = _invalid(summary, episodes, metric, shares[0][:3])
            example = next(responses, None)
            text, problem = (example.text, example.problem or "") if example else ("", "")
            found.append(InvalidResponses(metric, tuple(shares), text, problem))
    return tuple(found)


def _place(summary: Summary, point: PointSummary) -> tuple[str, int]:
    """Return the arm and the checkpoint that were played for a point."""
    if point.checkpoint:
        return point.arm, point.checkpoint
    arm, _, step = summary.arms[point.arm].start.rpartition("@")
    return (arm, int(step)) if arm else (BASE, 0)


def _invalid(
    summary: Summary,
    episodes: Collection[EpisodeCounts],
    metric: str,
    place: tuple[str, int, str],
) -> Iterator[Response]:
    """Yield the invalid responses behind a share, in the order of the records' paths."""
    arm, checkpoint, domain = place
    driver, kind = VALIDITY[metric]
    names = {BASE, *summary.arms} if arm == BASE else {*summary.arms[arm].seeds}
    for episode in episodes:
        here = episode.checkpoint == checkpoint and episode.domain == domain
        if here and episode.driver == driver and episode.arm in names and episode.invalid.get(kind):
            for turn in read_record(episode.path).steps:
                response = getattr(turn, kind, None)
                if response is not None and not response.valid:
                    yield response
