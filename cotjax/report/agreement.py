"""D1 and D2 beyond equal texts: the floor of sampling, and the likelihood of actions, as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from cotjax.diagnostics.statistics import NOTHING, Estimate
from cotjax.report.labels import domain_label, number, percent
from cotjax.report.section import Section, SectionRow, SectionTable
from cotjax.report.summary import Summary

FLOOR_TITLE = "Do both modes differ beyond the floor of sampling?"
LIKELIHOOD_TITLE = "How likely actions are, with reasoning and without"
_SAYS = (
    "With 95 % intervals, each of which stands alone. “Says” has words where the interval of the "
    "difference excludes 0; a dash says that nothing was shown, not that nothing differs."
)
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


def floor(summary: Summary) -> Section:
    """Return D2 and the revision rate beside their floor, of sampled responses."""
    said = [
        "Two samples of one mode also disagree. In each expert state, several responses of each "
        "kind are sampled; the floor is the share of equal actions among pairs of one kind.",
        "The revision rate beyond its floor is the mean of both floors minus the share of equal "
        "pairs of a CoT and a prompt action: half the squared distance of the two modes' actions, "
        "0 where both draw from the same actions alike.",
    ]
    says = {1: "the modes differ beyond the floor"}
    return _section(summary, "floor", FLOOR_TITLE, _FLOOR, said, "revision_excess", says)


def likelihood(summary: Summary) -> Section:
    """Return the likelihood of the reference action, and how far the modes' actions are apart."""
    said = [
        "Actions are scored by all their tokens and those of </action>, right after the prompt and "
        "<action>, and after the model's own reasoning and <action>. Fewer nats are more likely.",
        "The posterior is an action's share of the probability of all admissible actions.",
    ]
    says = {1: "reasoning makes the reference action more likely", -1: "less likely"}
    return _section(summary, "likelihood", LIKELIHOOD_TITLE, _LIKELIHOOD, said, "d1_nats_gap", says)


def _section(
    summary: Summary,
    id_: str,
    title: str,
    columns: Columns,
    said: Sequence[str],
    main: str,
    says: Mapping[int, str],
) -> Section:
    """Return the section of one probe.

    `says`: sign of the metric `main`, where its interval excludes 0 -> what that says.
    """
    rows = []
    for point in (point for domain in summary.domains for point in summary.ends(domain)):
        estimates = [point.metrics.get(name, NOTHING) for name, _ in columns.values()]
        if not any(estimate.measured for estimate in estimates):
            continue
        cells = [
            write(estimate)
            for (_, write), estimate in zip(columns.values(), estimates, strict=True)
        ]
        cells.append(says.get(point.metrics.get(main, NOTHING).sign, "–"))
        label = f"{summary.label_of(point)} · {domain_label(point.domain)}"
        rows.append(SectionRow(label, tuple(cells)))
    if not rows:
        return Section(id_, title, ())
    table = SectionTable("", (*columns, "says"), tuple(rows), notes=(_SAYS,))
    return Section(id_, title, (table,), tuple(said))
