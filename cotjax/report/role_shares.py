"""D6 and D7 as tables of shares by group of tokens, and a table of their causal partners."""

from __future__ import annotations

from collections.abc import Mapping

from cotjax.diagnostics.role_shares import GROUPS, NAMES, PROMPT
from cotjax.diagnostics.statistics import NOTHING, Estimate
from cotjax.report.labels import domain_label, number, percent
from cotjax.report.section import Section, SectionRow, SectionTable, under_headings
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
    "A share says where a model reads, not what it uses: hidden and swapped thoughts do.",
)


READ, USED = "Where the model reads", "What it uses"
# Metric -> heading of its column.
_READ = {
    "attention_of_two": "D6, attention: the prompt's part of prompt and reasoning, %",
    "gradient_of_two": "D7, gradient: the prompt's part of the two, %",
    "attention_prompt_action": "D6 without reasoning: the prompt's part of all, %",
    "gradient_prompt_action": "D7 without reasoning: the same, %",
}
_USED = {
    "attention_masked_changed": "actions that change, reasoning hidden from the action, %",
    "attention_masked_nats": "added −log probability, nats",
    "attention_blocked_changed": "hidden from all behind it, %",
    "attention_blocked_nats": "added, nats",
    "thought_swapped_changed": "thought of another game, %",
    "thought_swapped_nats": "added, nats",
}


def role_shares(summary: Summary) -> Section:
    """Return D6 and D7 at the base and at the last checkpoint of each arm.

    Without tables where neither probe was run.
    """
    points = [
        point
        for domain in summary.domains
        for point in summary.ends(domain)
        if _of(point, "attention_prompt").measured or _of(point, "gradient_prompt").measured
    ]
    tables = [
        SectionTable(
            f"{summary.label_of(point)} · {domain_label(point.domain)}",
            COLUMNS,
            tuple(_rows(point)),
            rows_are="tokens",
        )
        for point in points
    ]
    for title, columns in ((USED, _USED), (READ, _READ)):
        groups = (
            (domain_label(domain), [_partner(summary, each, columns) for each in points
                                    if each.domain == domain])
            for domain in summary.domains
        )  # fmt: skip
        if rows := under_headings(groups):
            notes = (" ".join(_published()),) if title == READ else ()
            tables.insert(
                0, SectionTable(title, tuple(columns.values()), rows, notes, rows_are="arm")
            )
    return Section("roles", TITLE, tuple(tables), notes=NOTES, open=2)


def _of(point: PointSummary, metric: str) -> Estimate:
    return point.metrics.get(metric, NOTHING)


def _rows(point: PointSummary) -> list[SectionRow]:
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
        rows.append(SectionRow(f"{name}: {_WHAT[name]}", cells, part=name in PROMPT))
    return rows


_WHAT = {"prompt": "the whole prompt", **GROUPS}


def _per_token(share: Estimate, uniform: Estimate) -> str:
    if share.value is None or not uniform.value:
        return "–"
    return f"{share.value / uniform.value:.2f}"


def _partner(summary: Summary, point: PointSummary, columns: Mapping[str, str]) -> SectionRow:
    estimates = {name: _of(point, name) for name in columns}
    cells = (
        number(each, 2, signed=True) if name.endswith("nats") else percent(each)
        for name, each in estimates.items()
    )
    return SectionRow(summary.label_of(point), tuple(cells))


def _published() -> list[str]:
    """Return the published figures, in sentences."""
    worlds = []
    for world, shares in PUBLISHED_GRADIENT.items():
        each = ", ".join(
            f"{share} ({model})" for share, model in zip(shares, PUBLISHED_MODELS, strict=True)
        )
        worlds.append(f"{world} {each} %")
    return [
        "Published for the prompt's part of the two (arXiv 2606.26935): attention, "
        f"{PUBLISHED_ATTENTION} %; gradient, {'; '.join(worlds)}."
    ]
