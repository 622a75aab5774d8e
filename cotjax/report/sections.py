"""The page's sections on probes."""

from __future__ import annotations

from cotjax.report.agreement import floor, likelihood
from cotjax.report.judged import judged
from cotjax.report.layers import layers
from cotjax.report.role_shares import role_shares
from cotjax.report.section import Section
from cotjax.report.summary import Summary
from cotjax.report.traces import changed_thoughts, conflicts

_SECTIONS = (judged, conflicts, changed_thoughts, role_shares, layers, floor, likelihood)


def sections(summary: Summary) -> list[Section]:
    """Return a section for each kind of probe that measured something."""
    return [section for make in _SECTIONS if (section := make(summary)).tables]
