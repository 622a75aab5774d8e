"""D1 and D2 beyond equal texts: the floor of sampling, and the likelihood of actions, as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from cotjax.diagnostics.statistics import NOTHING, Estimate
from cotjax.report.labels import domain_label, number, percent
from cotjax.report.summary import Summary

FLOOR_TITLE = "Do both modes differ beyond the floor of sampling?"
LIKELIHOOD_TITLE = "How likely actions are, with reasoning and without"
_signed_percent = partial(percent, signed=True)
_nats = partial(number, digits=2)
_signed_nats = partial(number, digits=2, signed=True)
# Title of a column -> the metric, and how it is written.
Columns = Mapping[str, tuple[str, Callable[[Estimate], str]]]
_FLOOR: Columns = {
    "two CoT actions the same": ("d2_floor_cot", percent),
    "two prompt actions the same": ("d2_floor_prompt", percent),
    "CoT and prompt action the same": ("d2_sampled", percent),
    "revision rate beyond its floor": ("revision_excess", _signed_percent),
    "not comparable": ("d2_floor_not_comparable", percent),
}
_LIKELIHOOD: Columns = {
    "nats of the reference action after the CoT": ("d1_nats_cot", _nats),
    "after the prompt": ("d1_nats_prompt", _nats),
    "saved by reasoning": ("d1_nats_gap", _signed_nats),
    "per token after the CoT": ("d1_token_nats_cot", _nats),
    "per token after the prompt": ("d1_token_nats_prompt", _nats),
    "posterior after the CoT": ("d1_posterior_cot", percent),
    "posterior after the prompt": ("d1_posterior_prompt", percent),
    "CoT action minus prompt action, after the prompt": ("d2_nats", _signed_nats),
    "divergence of the posteriors": ("d2_divergence", _nats),
}


@dataclass(frozen=True)
class AgreementRow:
    """The base, or an arm at the last checkpoint, in one domain. `cells`: one a column."""

    label: str
    domain: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """A section; without rows where its probe was not run.

    Attributes:
      sentences: what a reader should know before the numbers, then what these say.
    """

    title: str
    sentences: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[AgreementRow, ...]


def floor(summary: Summary) -> Agreement:
    """Return D2 and the revision rate beside their floor, of sampled responses."""
    said = [
        "Two samples of one mode also disagree. In each expert state, several responses of each "
        "kind are sampled; the floor is the share of equal actions among pairs of one kind.",
        "The revision rate beyond its floor is the mean of both floors minus the share of equal "
        "pairs of a CoT and a prompt action: half the squared distance of the two modes' actions, "
        "0 where both draw from the same actions alike.",
    ]
    return _section(summary, FLOOR_TITLE, _FLOOR, said, "revision_excess", _beyond)


def likelihood(summary: Summary) -> Agreement:
    """Return the likelihood of the reference action, and how far the modes' actions are apart."""
    said = [
        "Actions are scored by all their tokens and those of </action>, right after the prompt and "
        "<action>, and after the model's own reasoning and <action>. Fewer nats are more likely.",
        "The posterior is an action's share of the probability of all admissible actions.",
    ]
    return _section(summary, LIKELIHOOD_TITLE, _LIKELIHOOD, said, "d1_nats_gap", _saved)


def _section(
    summary: Summary,
    title: str,
    columns: Columns,
    said: list[str],
    metric: str,
    say: Callable[[Estimate], str],
) -> Agreement:
    """Return the section of one probe; `say` puts its main metric, at each point, into words."""
    rows, sentences = [], []
    for domain in summary.domains:
        for point in summary.ends(domain):
            estimates = [point.metrics.get(name, NOTHING) for name, _ in columns.values()]
            if not any(estimate.measured for estimate in estimates):
                continue
            cells = [
                write(estimate)
                for (_, write), estimate in zip(columns.values(), estimates, strict=True)
            ]
            label, place = summary.label_of(point), domain_label(domain)
            rows.append(AgreementRow(label, place, tuple(cells)))
            main = point.metrics.get(metric, NOTHING)
            if main.measured:
                sentences.append(f"{label}, {place}: {say(main)}")
    return Agreement(title, (*said, *sentences) if rows else (), tuple(columns), tuple(rows))


def _beyond(excess: Estimate) -> str:
    text = _signed_percent(excess)
    if excess.sign > 0:
        return f"the modes differ beyond the floor, by {text} points."
    return f"no difference of the modes beyond the floor is seen: {text} points."


def _saved(gap: Estimate) -> str:
    text = _signed_nats(gap)
    if gap.sign:
        word = "more" if gap.sign > 0 else "less"
        return f"its own reasoning makes the reference action {word} likely, by {text} nats."
    return f"its own reasoning makes no clear difference: {text} nats."
