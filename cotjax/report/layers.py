"""D6 and D7 layer by layer: the shares of prompt and reasoning in each layer of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cotjax.diagnostics.role_shares import BY_LAYER
from cotjax.diagnostics.statistics import NOTHING, Estimate
from cotjax.report.labels import domain_label, percent, spread
from cotjax.report.section import Section, SectionRow, SectionTable, under_headings
from cotjax.report.summary import PointSummary, Summary

TITLE = "D6 and D7, layer by layer"
UNIFORM = "all layers, if uniform"
_MOST = 12  # layers that a table shows
# Probe -> title of its tables.
_PROBES = {"attention": "D6, attention", "gradient": "D7, gradient (value path)"}
_COLUMNS = tuple(
    head
    for part in BY_LAYER
    for head in (f"{part}, % of the layer", f"{part}, per token (1: uniform)")
)
_NOTE = (
    "Each layer's shares add to 100 % with those of the response's tags and of the action's own "
    "tokens, mean over states, with 95 % intervals over games. Layer 1 is next to the input. “If "
    "uniform” is the share of the tokens; a share over it is 1 where a token of the part gets as "
    "much as any other."
)


def layers(summary: Summary) -> Section:
    """Return a table for each of the two probes and each domain, the ends of every arm in it.

    Of deep models, evenly spread layers. Without tables where neither probe was run.
    """
    tables, shown = [], True
    for probe, title in _PROBES.items():
        for domain in summary.domains:
            ends = [point for point in summary.ends(domain) if _layers(point, probe)]
            groups = ((summary.label_of(point), list(_rows(point, probe))) for point in ends)
            if rows := under_headings(groups):
                heading = f"{title} · {domain_label(domain)}"
                tables.append(SectionTable(heading, _COLUMNS, rows, rows_are="layer"))
                shown = shown and all(len(_layers(point, probe)) <= _MOST for point in ends)
    notes = (_NOTE,) if shown else (_NOTE, "Not every layer is shown: summary.json has all.")
    return Section("layers", TITLE, tuple(tables), notes=notes, open=0, folded=True)


def _layers(point: PointSummary, probe: str) -> Mapping[int, list[Estimate]]:
    """Return number of the layer, from 1 -> its estimates of BY_LAYER."""
    parts = [point.layers.get(f"{probe}_{part}", ()) for part in BY_LAYER]
    return {number: list(each) for number, each in enumerate(zip(*parts, strict=True), 1)}


def _rows(point: PointSummary, probe: str) -> Iterator[SectionRow]:
    found = _layers(point, probe)
    uniform = [point.metrics.get(f"{probe}_uniform_{part}", NOTHING) for part in BY_LAYER]
    cells = [text for each in uniform for text in (percent(each, digits=1), "1")]
    yield SectionRow(UNIFORM, tuple(cells))
    for number in spread(list(found), _MOST):
        cells = []
        for share, usual in zip(found[number], uniform, strict=True):
            over = share.value / usual.value if share.value is not None and usual.value else None
            cells += [percent(share, digits=1), "–" if over is None else f"{over:.2f}"]
        yield SectionRow(f"layer {number}", tuple(cells), part=True)
