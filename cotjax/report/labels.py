"""Domains, estimates and p-values as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cotjax.diagnostics.statistics import Estimate
from cotjax.envs.worlds import load_world
from cotjax.errors import UsageError

NOT_DEFINED = "not defined"  # in place of a number that has no meaning there
_DOMAINS = {"in_domain": "in-domain", "ood": "out-of-domain"}


def domain_label(domain: str) -> str:
    """Return a domain as readers write it: of "ood_rooms", "out-of-domain (rooms)".

    Every domain but "in_domain" is out of domain, whatever its world calls it.
    """
    words = domain.removeprefix("ood_").replace("_", " ")
    return _DOMAINS.get(domain, f"out-of-domain ({words})")


def world_label(names: str) -> str:
    """Return the worlds of a summary as readers write them: of "alfworld", "ALFWorld"."""
    return ", ".join(map(_titled, names.split(", ")))


def _titled(name: str) -> str:
    try:
        return load_world(name).title or name.replace("_", " ")
    except UsageError:  # it was of another installation
        return name


def percent(estimate: Estimate, signed: bool = False, digits: int = 0) -> str:
    """Return "83 [71, 91]", in percent or percentage points; a dash where nothing was measured."""
    return number(estimate, digits, signed, scale=100)


def number(estimate: Estimate, digits: int, signed: bool = False, scale: int = 1) -> str:
    """Return "+1.21 [+0.90, +1.60]"; a dash where nothing was measured."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "–"
    plus = "+" if signed else ""
    # Adding 0.0 turns -0.0 into 0.0.
    value, low, high = (
        f"{round(scale * x, digits) + 0.0:{plus}.{digits}f}"
        for x in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]".replace("-", "−")


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """Return an estimate times a positive factor."""
    value, low, high = (
        None if x is None else factor * x for x in (estimate.value, estimate.low, estimate.high)
    )
    return replace(estimate, value=value, low=low, high=high)


def points(estimate: Estimate) -> str:
    """Return "+8.3 [-2.1, +18.0] points"."""
    return f"{percent(estimate, signed=True, digits=1)} points"


def p_text(p: float) -> str:
    """Return "p = 0.031", or "p < 0.001"."""
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def capitalize(text: str) -> str:
    """Return the text with its first letter in upper case, and the others as they are."""
    return text[:1].upper() + text[1:]


def spread(checkpoints: Sequence[int], most: int) -> list[int]:
    """Return at most this many checkpoints, evenly spread, first and last included."""
    count = min(len(checkpoints), most)
    chosen = np.unique(np.linspace(0, len(checkpoints) - 1, count).round().astype(int))
    return [checkpoints[i] for i in chosen]
