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
