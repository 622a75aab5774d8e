"""Cells of the tables of AutoCoA's page."""

from __future__ import annotations

from cotjax.diagnostics.statistics import Estimate
from cotjax.report.labels import number, percent
from cotjax.report.section import Cell

# Figures that are counts an episode; the others are shares.
_COUNTS = {"searches", "oracle", "regret"}


def value(name: str, estimate: Estimate) -> str:
    """Return a figure with its interval: a count an episode, or percent."""
    return number(estimate, 2) if name in _COUNTS else percent(estimate, digits=1)


def moved(name: str, estimate: Estimate) -> Cell:
    """Return a difference with its interval, bold where that excludes 0."""
    text = (
        number(estimate, 2, signed=True)
        if name in _COUNTS
        else percent(estimate, signed=True, digits=1)
    )
    return Cell(text, sure=estimate.sign != 0)
