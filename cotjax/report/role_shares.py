"""D6 and D7 as tables of shares by group of tokens, with their causal partners in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cotjax.diagnostics.role_shares import GROUPS, NAMES, PROMPT
from cotjax.diagnostics.statistics import NOTHING, Estimate
from cotjax.report.labels import domain_label, percent
from cotjax.report.summary import PointSummary, Summary

TITLE = "Where the action's information comes from"
# Of arXiv 2606.26935, in percent: model -> the prompt's share.
PUBLISHED_ATTENTION = "about 80"
PUBLISHED_GRADIENT: Mapping[str, tuple[float, float, float]] = {
    "ALFWorld": (73.2, 72.7, 73.5),
    "ScienceWorld": (76.5, 78.9, 79.2),
    "BFCL": (84.4, 84.6, 82.7),
}
PUBLISHED_MODELS = ("Qwen3-4B", "Qwen3-8B", "Qwen3-14B")
COLUMNS = (
    "share of tokens",
    "D6: attention",
    "attention per token",
    "D7: gradient, value path",
    "gradient per token",
    "|gradient × embedding|",
)
NOTES = (
    "Shares are in percent with 95 % intervals over games, mean over states; those of the eight "
    "groups add to 100.",
    "Share of tokens is what uniform attention would give; “per token” is a share over it: 1 is "
    "uniform.",
    "A share says where a model reads, not what it uses: the sentences on hidden and swapped "
    "thoughts do.",
)


@dataclass(frozen=True)
class RoleRow:
    """One group of tokens.

    Attributes:
      part: the group is a part of the prompt, whose row stands above it.
      what: what the group holds.
      cells: one for each of COLUMNS.
    """

    name: str
    what: str
    part: bool
    cells: tuple[str, ...]


@dataclass(frozen=True)
class RoleTable:
    """One point: the base, or an arm at the last checkpoint, in one domain."""

    label: str
    domain: str
    rows: tuple[RoleRow, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class RoleShares:
    """The section; without tables where neither probe was run.

    Attributes:
      published: (what, prompt's share in percent), one for each published figure.
    """

    title: str
    columns: tuple[str, ...]
    tables: tuple[RoleTable, ...]
    published: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def role_shares(summary: Summary) -> RoleShares:
    """Return D6 and D7 at the base and at the last checkpoint of each arm."""
    tables = [
        RoleTable(
            summary.label_of(point), domain_label(domain), tuple(_rows(point)), tuple(_said(point))
        )
        for domain in summary.domains
        for point in summary.ends(domain)
        if _of(point, "attention_prompt").measured or _of(point, "gradient_prompt").measured
    ]
    return RoleShares(TITLE, COLUMNS, tuple(tables), tuple(_published()), NOTES)


def _of(point: PointSummary, metric: str) -> Estimate:
    return point.metrics.get(metric, NOTHING)


def _rows(point: PointSummary) -> list[RoleRow]:
    rows = []
    for name in NAMES:
        attention, gradient, of_input = (
            _of(point, f"{kind}_{name}") for kind in ("attention", "gradient", "gradient_input")
        )
        uniform = _of(point, f"attention_uniform_{name}")
        if not uniform.measured:
            uniform = _of(point, f"gradient_uniform_{name}")
        if not (uniform.value or attention.value or gradient.value or of_input.value):
            continue  # no state has such tokens
        cells = (
            percent(uniform, digits=1),
            percent(attention, digits=1),
            _per_token(attention, uniform),
            percent(gradient, digits=1),
            _per_token(gradient, uniform),
            percent(of_input, digits=1),
        )
        rows.append(RoleRow(name, _WHAT[name], name in PROMPT, cells))
    return rows


_WHAT = {"prompt": "the whole prompt", **GROUPS}


def _per_token(share: Estimate, uniform: Estimate) -> str:
    if share.value is None or not uniform.value:
        return "–"
    return f"{share.value / uniform.value:.2f}"


def _said(point: PointSummary) -> list[str]:
    """Return what the shares and their causal partners say, one sentence each."""
    said = []
    for probe, what, published in (
        ("attention", "attention of the action's tokens", PUBLISHED_ATTENTION),
        ("gradient", "action's gradient", "73 (ALFWorld) to 85 (BFCL)"),
    ):
        prompt, reasoning = (_of(point, f"{probe}_{name}") for name in ("prompt", "reasoning"))
        if prompt.measured:
            said.append(
                f"Of the {what}, {percent(prompt)} % {_GOES[probe]} the prompt and "
                f"{percent(reasoning)} % {_GOES[probe]} the reasoning; of these two together the "
                f"prompt has {percent(_of(point, f'{probe}_of_two'))} % (published: {published})."
            )
    for metric, what in _PARTNERS.items():
        changed, nats = (_of(point, f"{metric}_{kind}") for kind in ("changed", "nats"))
        if changed.measured:
            said.append(f"{what}, {percent(changed)} % of the actions change, by {_nats(nats)}.")
    return said


_GOES = {"attention": "is on", "gradient": "reaches"}
# Metrics, without their endings -> what was done to the reasoning.
_PARTNERS = {
    "attention_masked": "When the action's tokens do not see the reasoning",
    "attention_blocked": "When nothing behind the reasoning sees it",
    "thought_swapped": "After another game's thought of about the same length",
}


def _nats(estimate: Estimate) -> str:
    """Return "+1.21 [+0.90, +1.60] nats"."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "– nats"
    value, low, high = (f"{x + 0.0:+.2f}" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}] nats".replace("-", "−")


def _published() -> list[tuple[str, str]]:
    rows = [("attention", PUBLISHED_ATTENTION)]
    for world, shares in PUBLISHED_GRADIENT.items():
        each = ", ".join(
            f"{share} ({model})" for share, model in zip(shares, PUBLISHED_MODELS, strict=True)
        )
        rows.append((f"gradient, {world}", each))
    return rows
