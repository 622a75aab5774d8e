"""The share of trajectories that is held out from training, and the batches to measure it on.

Whether a trajectory is held out is a function of (seed, trajectory id) alone: the same on every
host, after a resume, and whatever else is in the data. All examples of a trajectory are on the same
side, because its steps repeat each other's text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from cotjax.data.packing import Packing, check_lengths, example_lengths
from cotjax.data.pipeline import Example, dropped_weights, packed_row
from cotjax.errors import DataError
from cotjax.masking import Dropping, draw


@dataclass(frozen=True, eq=False)
class Part(Sequence[Example]):
    """Some examples of a data source, in its order."""

    source: Sequence[Example]
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.source[int(self.indices[index])]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example."""
        return example_lengths(self.source)[self.indices]


def is_held_out(trajectory_id: str, share: float, seed: int) -> bool:
    """Return whether a trajectory is held out at this share of all.

    Subsets are nested: what a smaller share holds out, a larger one does too.
    """
    return draw(seed, f"held out/{trajectory_id}") < share


def split(source: Sequence[Example], share: float, seed: int) -> tuple[Part, Part]:
    """Return the examples to train on and those that are held out, by the id of their trajectory.

    Raises:
      DataError: one of the two is empty.
    """
    names = [source[index]["id"].decode() for index in range(len(source))]
    held = np.array([is_held_out(name, share, seed) for name in names])
    if held.all() or not held.any():
        which = "all" if held.all() else "none"
        raise DataError(
            f"train.eval_share {share} holds out {which} of the {len(set(names))} trajectories; "
            "change it, or give more of them"
        )
    return Part(source, np.flatnonzero(~held)), Part(source, np.flatnonzero(held))


def held_out_batches(
    source: Sequence[Example],
    *,
    row_length: int,
    batch: int,
    dropping: Dropping,
    rows: Sequence[int],
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches as a train step takes them, with each example once and nothing dropped.

    The last batch is filled up with padding. `rows`: the rows of a batch that this process makes.

    Raises:
      DataError: an example is longer than a row.
    """
    dropping = replace(dropping, fraction=0.0)
    lengths = example_lengths(source)
    check_lengths(lengths, row_length, source)
    packing = Packing(lengths, row_length, seed=0)

    def row(number: int) -> dict[str, np.ndarray]:
        examples = [source[index] for index in packing.row(min(number, packing.rows - 1))[1]]
        packed = packed_row(examples, dropping, 0, row_length)
        if number >= packing.rows:
            return {name: np.zeros_like(array) for name, array in packed.items()}
        return packed

    for first in range(0, packing.rows, batch):
        own = [row(first + index) for index in rows]
        yield dropped_weights(
            {name: np.stack([each[name] for each in own]) for name in own[0]}, 0.0
        )
