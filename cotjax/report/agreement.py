"""D1 and D2 beyond equal texts: the floor of sampling, and the likelihood of actions, as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from cotjax.diagnostics.statistics import NOTHING, Estimate
from cotjax.report.labels import domain_label, number, percent
from cotjax.report.section import Section, SectionRow, SectionTable, under_headings
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
_REFERENCE: Columns = {
    "nats after the CoT": ("d1_nats_cot", _nats),
    "after the prompt": ("d1_nats_prompt", _nats),
    "saved by reasoning": ("d1_nats_gap", _signed_nats),
    "nats per token after the CoT": ("d1_token_nats_cot", _nats),
    "per token after the prompt": ("d1_token_nats_prompt", _nats),
    "posterior after the CoT, %": ("d1_posterior_cot", percent),
    "posterior after the prompt, %": ("d1_posterior_prompt", percent),
}
_BOTH: Columns = {
    "nats of the CoT action minus prompt action, after the prompt": ("d2_nats", _signed_nats),
    "divergence of the posteriors, nats": ("d2_divergence", _nats),
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
    tables = {"": _FLOOR}
    return _section(summary, "floor", FLOOR_TITLE, tables, said, "revision_excess", says)


def likelihood(summary: Summary) -> Section:
    """Return the likelihood of the reference action, and how far the modes' actions are apart."""
    said = [
        "Actions are scored by all their tokens and those of </action>, right after the prompt and "
        "<action>, and after the model's own reasoning and <action>. Fewer nats are more likely.",
        "The posterior is an action's share of the probability of all admissible actions.",
    ]
    says = {1: "reasoning makes the reference action more likely", -1: "less likely"}
    tables = {"D1: the reference action": _REFERENCE, "D2: the two actions": _BOTH}
    return _section(summary, "likelihood", LIKELIHOOD_TITLE, tables, said, "d1_nats_gap", says)


def _section(
    summary: Summary,
    id_: str,
    title: str,
    tables: Mapping[str, Columns],
    said: Sequence[str],
    main: str,
    says: Mapping[int, str],
) -> Section:
    """Return the section of one probe, with a table for each title.

    `says`: sign of the metric `main`, where its interval excludes 0 -> what that says.
    """
    found = tuple(
        table
        for name, columns in tables.items()
        if (table := _table(summary, name, columns, main, says)).rows
    )
    return Section(id_, title, found, tuple(said) if found else (), (_SAYS,) if found else ())


def _table(
    summary: Summary, title: str, columns: Columns, main: str, says: Mapping[int, str]
) -> SectionTable:
    """Return a table of the base and every arm by domain; words where `main` is a column."""
    worded = main in (metric for metric, _ in columns.values())
    groups = []
    for domain in summary.domains:
        rows = []
        for point in summary.ends(domain):
            estimates = [point.metrics.get(name, NOTHING) for name, _ in columns.values()]
            if any(estimate.measured for estimate in estimates):
                writers = (write for _, write in columns.values())
                cells = [write(each) for write, each in zip(writers, estimates, strict=True)]
                if worded:
                    cells.append(says.get(point.metrics.get(main, NOTHING).sign, "–"))
                rows.append(SectionRow(summary.label_of(point), tuple(cells)))
        groups.append((domain_label(domain), rows))
    heads = (*columns, "says") if worded else tuple(columns)
    return SectionTable(title, heads, under_headings(groups), rows_are="arm")
