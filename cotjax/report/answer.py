"""The answer in three sentences: what was asked, the primary estimand, and how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from cotjax.diagnostics.share import Verdict
from cotjax.envs.worlds import IN_DOMAIN
from cotjax.report.labels import domain_label, percent, points, world_label
from cotjax.report.rows import PlacedGain
from cotjax.report.summary import Summary
from cotjax.report.verdicts import (
    NOT_INTERPRETED,
    measure,
    share_text,
    verdict_of,
)

_UNKNOWN = "The records are too few for an answer: the tables have what was measured."


def answer(summary: Summary) -> tuple[str, str, str]:
    """Return the study in three sentences, about its first domain."""
    return _asked(summary), _found(summary), _unsure(summary)


def placed_by_measure(summary: Summary) -> dict[str, list[str]]:
    """Return measure, in words -> the domains whose verdicts are by it."""
    measures: dict[str, list[str]] = {}
    for domain in summary.domains:
        rows = [summary.placed(arm, domain) for arm in summary.arms]
        for row in rows:
            if row is not None:
                measures.setdefault(measure(row), []).append(domain)
                break
    return measures


def games_of(summary: Summary, domain: str) -> int:
    """Return the largest number of games behind a rate in a domain."""
    return max(
        (
            point.metrics[name].games
            for point in summary.points
            if point.domain == domain
            for name in ("d3_cot", "d1_cot")
        ),
        default=0,
    )


def _asked(summary: Summary) -> str:
    games = _listed(f"{games_of(summary, each)} {domain_label(each)}" for each in summary.domains)
    played = f"{games} {world_label(summary.world)} games"
    if not summary.last_checkpoint:
        return (
            f"How well does the base model act at once, and how well after reasoning, on {played}?"
        )
    arms = len(summary.compared)
    trained = f"{_counted(arms, 'arm')} trained for {summary.last_checkpoint} updates"
    measures = placed_by_measure(summary)
    by = _listed(
        name + (f" {_listed(map(domain_label, domains))}" if len(measures) > 1 else "")
        for name, domains in measures.items()
    )
    return (
        f"Does the gain of {trained} land in the prompt action, which a model gives at once, or in "
        f"what reasoning adds to it{f', by {by}' if by else ''}, on {played}?"
    )


def _found(summary: Summary) -> str:
    domain = summary.domains[0]
    if not summary.last_checkpoint:
        return _levels(summary, domain)
    rows = {arm: summary.placed(arm, domain) for arm in summary.arms}
    first = rows.pop(summary.baseline)
    if first is None or first.placement.verdict is Verdict.MISSING:
        return _UNKNOWN
    text = f"{_gain(summary, first)} ({domain_label(domain)})"
    covered = [row for row in rows.values() if row and summary.primary.covers(row.arm, domain)]
    if len(covered) == 1 < len(rows):
        text += f"; {_lower(_gain(summary, covered[0]))}"
        apart = len(rows) - 1
        if apart == 1:
            return f"{text}. The other arm is described by its interval alone."
        return f"{text}. The {apart} other arms are described by intervals alone."
    counts = Counter(verdict_of(summary, row) for row in covered)
    if len(counts) == 1:
        others = "the other arm" if counts.total() == 1 else f"all {counts.total()} other arms"
        text += f"; on {others} it is “{next(iter(counts))}”"
    elif counts:
        each = _listed(f"“{verdict}” on {number}" for verdict, number in counts.most_common())
        text += f"; of the {counts.total()} other arms, it is {each}"
    return f"{text}."


def _gain(summary: Summary, row: PlacedGain) -> str:
    """Return the primary estimand of an arm with its interval and verdict."""
    label, placement = summary.label(row.arm), row.placement
    share, verdict = share_text(row), verdict_of(summary, row)
    if placement.verdict is Verdict.FLOOR or share == "–":
        return (
            f"The verdict on “{label}” is “{verdict}”: CoT actions moved by "
            f"{points(placement.total)}, prompt actions by {points(placement.prompt)}"
        )
    wide = ", for the interval is too wide" if placement.verdict is Verdict.UNPLACED else ""
    return (
        f"Of the gain of “{label}”, {share} is in the prompt action: the verdict is “{verdict}”"
        f"{wide}"
    )


def _levels(summary: Summary, domain: str) -> str:
    """Return the base's success in a sentence."""
    point = summary.last(summary.baseline, domain)
    if point is None:
        return _UNKNOWN
    for name, what in (("d3", "wins"), ("d1", "agrees with the expert in")):
        cot, prompt = (point.metrics[f"{name}_{kind}"] for kind in ("cot", "prompt"))
        if cot.measured and prompt.measured:
            of = "games" if name == "d3" else "states"
            return (
                f"It {what} {percent(cot)} % of {of} by CoT actions and {percent(prompt)} % by "
                f"prompt actions ({domain_label(domain)}): nothing has been trained, so there is "
                "no gain to place yet."
            )
    return "Nothing has been trained, so there is no gain to place yet."


def _unsure(summary: Summary) -> str:
    seeds = [len(arm.seeds) for arm in summary.arms.values()]
    trained = bool(summary.last_checkpoint)
    silent = ["other models and worlds"]
    if trained and min(seeds) == 1:
        silent.insert(0, "other training seeds (at least one arm has a single one)")
    unread = [
        domain_label(domain)
        for domain in summary.domains
        if domain != IN_DOMAIN
        and any(
            (row := summary.placed(arm, domain)) and verdict_of(summary, row) == NOT_INTERPRETED
            for arm in summary.arms
        )
    ]
    if unread:
        silent.append(f"what is too little to interpret ({_listed(unread)})")
    over = "games and training seeds" if trained and max(seeds) > 1 else "games"
    family = (
        f", all {_counted(summary.primary.tests, 'test')} of the verdicts share one level of 5 %,"
        if summary.primary.tests
        else ""
    )
    return (
        f"Brackets are 95 % intervals over {over}{family} and nothing is said of {_listed(silent)}."
    )


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(texts: Iterable[str]) -> str:
    *first, last = [*texts] or [""]
    return f"{', '.join(first)} and {last}" if first else last
