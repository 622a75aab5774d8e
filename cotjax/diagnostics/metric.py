"""What a diagnostic is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One diagnostic.

    Attributes:
      source: driver of the records that it is counted on; "both" for the gap; else the probe whose
        rows it is counted on.
      kind: "rate" (0 to 1), "difference" (of two rates), or "mean".
      upper: the most that a mean can be; None: the limit of an episode's steps, or of a response's
        tokens.
      low: the least that a mean can be; below 0 for a signed quantity.
    """

    label: str
    source: str
    kind: str = "rate"
    upper: float | None = None
    low: float = 0.0


def at_layer(metric: str, layer: int) -> str:
    """Return the name of a metric in one layer of the model, from 0."""
    return f"{metric}{_AT}{layer}"


def of_layer(name: str) -> tuple[str, int | None]:
    """Return the metric and the layer of a name of `at_layer`; None for a metric of all layers."""
    metric, at, layer = name.partition(_AT)
    return metric, int(layer) if at else None


_AT = "@"
