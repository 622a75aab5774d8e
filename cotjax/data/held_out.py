"""A share of the trajectories that is not trained on, and the rows that their loss is measured over.

Which ones is a function of (seed, trajectory id) alone: the same on every host and after a resume, and whatever else is in the
data. All examples of a trajectory are on the same side, for its steps tell each other's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cotjax.data.packing import Packing, check_lengths, example_lengths
from cotjax.data.pipeline import Masking, dropped_weights, packed_row
from cotjax.errors import DataError
from cotjax.masking import draw


@dataclass(frozen=True, eq=False)
class Part:
    """Some examples of a data source, in its order."""

    source: Sequence[dict]
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        return self.source[int(self.indices[index])]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example."""
        return example_lengths(self.source)[self.indices]


def is_held_out(trajectory_id: str, share: float, seed: int) -> bool:
    """Whether a trajectory is held out, at this share of all. Those of a smaller share are among those of a larger one."""
    return draw(seed, f"held out/{trajectory_id}") < share


def split(source: Sequence[dict], share: float, seed: int) -> tuple[Part, Part]:
    """(what is trained on, what is held out) of a data source, whose examples have their trajectory's id.

    Raises:
      DataError: one of the two is empty.
    """
    names = [source[index]["id"].decode() for index in range(len(source))]
    held = np.array([is_held_out(name, share, seed) for name in names])
    if held.all() or not held.any():
        which = "all" if held.all() else "none"
        raise DataError(
            f"train.eval_share {share} holds out {which} of the {len(set(names))} trajectories; change it, or give more of them"
        )
    return Part(source, np.flatnonzero(~held)), Part(source, np.flatnonzero(held))


def held_out_batches(
    source: Sequence[dict], *, row_length: int, batch: int, masking: Masking, rows: Sequence[int]
) -> Iterator[dict[str, np.ndarray]]:
    """Batches as a train step sees them, which hold each example once and drop nothing; the last one is filled up with padding.

    `rows`: which of the batch's rows this process makes.

    Raises:
      DataError: an example is longer than a row.
    """
    masking = replace(masking, fraction=0.0, last_fraction=0.0, fraction_steps=0)
    lengths = example_lengths(source)
    check_lengths(lengths, row_length, source)
    packing = Packing(lengths, row_length, seed=0)

    def row(number: int) -> dict[str, np.ndarray]:
        examples = [source[index] for index in packing.row(min(number, packing.rows - 1))[1]]
        made = packed_row(examples, masking, 0, row_length)
        return (
            made
            if number < packing.rows
            else {name: np.zeros_like(array) for name, array in made.items()}
        )

    for first in range(0, packing.rows, batch):
        made = [row(first + place) for place in rows]
        yield dropped_weights(
            {name: np.stack([each[name] for each in made]) for name in made[0]}, 0.0
        )
