"""D6 and D7 by layer: the shares of prompt and reasoning in each layer of the model."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cotjax.check import intervals
from cotjax.check.episodes import Tally
from cotjax.check.fields import Fields
from cotjax.check.intervals import Number, Seed
from cotjax.errors import DataError

_PARTS = ("prompt", "reasoning")
_NAME = re.compile(r"(?P<metric>\w+) in layer (?P<layer>\d+)")


def counted_by_layer(cot: Fields, own: str) -> dict[str, float]:
    """Return what a state adds in each layer. `own`: "attention" or "gradient"."""
    found: dict[str, float] = {}
    for part in _PARTS:
        shares = cot.get(f"{part}_by_layer", list)
        for layer, share in enumerate(shares):
            number = isinstance(share, int | float) and not isinstance(share, bool)
            if not number or not 0 <= share <= 1:
                raise DataError(
                    f"{cot.place}: {part}_by_layer[{layer}] is {share!r:.60}, not a share; restore "
                    "the file"
                )
            found[f"{own}_{part} in layer {layer}"] = float(share)
    return found


def numbers_by_layer(where: Mapping[Seed, Tally]) -> dict[str, list[Number]]:
    """Return metric -> its number in each layer, with intervals; {} where none was measured."""
    names = {name for tally in where.values() for name in tally.cells}
    layers: dict[str, dict[int, str]] = {}
    for name in names:
        if match := _NAME.fullmatch(name):
            layers.setdefault(match["metric"], {})[int(match["layer"])] = name
    found = {}
    for metric, by_number in layers.items():
        cells = [
            {seed: tally.cells.get(by_number[layer], {}) for seed, tally in where.items()}
            for layer in sorted(by_number)
        ]
        found[metric] = [intervals.mean(each, 0.0, 1.0) for each in cells]
    return found
