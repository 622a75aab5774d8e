"""TFDS data source -> shuffled, packed batches, as a checkpointable Grain iterator.

A batch is a dict of [B, T] numpy arrays, all that a train step sees:

    ids, targets   int32    token ids, and what each position predicts
    weights        float32  loss weight of each target
    roles          int8     role of each *target* (for metrics by role)
    segment_ids    int32    0 is padding, 1.. the example within the row
    branches       int32    0 is the trunk
    positions      int32    rope position within the example
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grain
import numpy as np

from cotjax.errors import DataError, UsageError
from cotjax.masking import Role, drops_action, target_weights, targets

ROW_FEATURES = ("ids", "targets", "weights", "roles", "branches", "positions")
UNITS = ("step", "trajectory")


@dataclass(frozen=True)
class Masking:
    """Reduced action supervision as the pipeline applies it.

    `fraction`: the share k of examples whose action loss is dropped. `unit`: what an example is, a "step" (its prompt and
    response) or a whole "trajectory". `supervised`: role names that are trained on. `dropped`: role names that a dropped
    example loses.
    """

    seed: int = 0
    fraction: float = 0.0
    unit: str = "step"
    supervised: tuple[str, ...] = ("REASONING", "ACTION_OPEN", "ACTION", "ACTION_CLOSE", "END")
    dropped: tuple[str, ...] = ("ACTION",)

    def __post_init__(self):
        if self.unit not in UNITS:
            raise UsageError(f"unknown masking unit {self.unit!r}; there are {', '.join(UNITS)}")
        if not 0.0 <= self.fraction <= 1.0:
            raise UsageError(f"the masking fraction must be in 0..1, not {self.fraction}")
        for name in (*self.supervised, *self.dropped):
            if name not in Role.__members__:
                raise UsageError(f"unknown role {name!r}; there are {', '.join(Role.__members__)}")


def example_features(example: dict, masking: Masking) -> dict[str, np.ndarray]:
    """One stored example -> its row features (arrays of its own length)."""
    roles, branches = example["roles"], example["branches"]
    weights = target_weights(
        roles,
        drop_action=_dropped_tokens(example, masking),
        branches=branches,
        supervised=[Role[name] for name in masking.supervised],
        dropped=[Role[name] for name in masking.dropped],
    )
    return {
        "ids": example["ids"],
        "targets": targets(example["ids"]),
        "weights": weights,
        "roles": targets(roles).astype(np.int8),
        "branches": branches,
        "positions": example["positions"],
    }


def _dropped_tokens(example: dict, masking: Masking) -> np.ndarray | None:
    """[T] bool, true on the tokens whose example drops its action loss."""
    if masking.fraction == 0.0:
        return None
    name = example["id"].decode()
    branches = example["branches"]
    if masking.unit == "trajectory":
        return np.full(branches.shape, drops_action(masking.seed, name, masking.fraction))
    steps = int(branches.max())
    table = np.zeros(steps + 1, bool)
    for branch in range(1, steps + 1):
        table[branch] = drops_action(masking.seed, f"{name}#{int(example['first_step']) + branch - 1}", masking.fraction)
    return table[branches]


class _Features(grain.transforms.Map):
    def __init__(self, masking: Masking):
        self._masking = masking

    def map(self, example: dict) -> dict:
        return example_features(example, self._masking)


class _Finish(grain.transforms.Map):
    """Names the packed row's arrays, and refuses a batch without anything to learn."""

    def map(self, packed: dict) -> dict:
        batch = {name: packed[name] for name in ROW_FEATURES}
        batch["segment_ids"] = packed["ids_segment_ids"].astype(np.int32)
        if not batch["weights"].any():
            raise DataError(
                "a batch holds no supervised token: the masking drops everything; check masking.supervised and the data's roles"
            )
        return batch


def batches(
    source: Sequence[dict], *, row_length: int, batch: int, masking: Masking, seed: int, epochs: int | None = None, bins: int = 16
) -> grain.IterDataset:
    """Shuffled each epoch, packed first fit into rows of `row_length`, batched. The same arguments give the same batches;
    the iterator's `get_state` / `set_state` go on from any batch.

    Raises:
      UsageError: `batch` or `row_length` is not positive.
      DataError: the source is empty, or (from the iterator) a batch has no supervised token.
    """
    if batch <= 0 or row_length <= 0:
        raise UsageError(f"batch ({batch}) and row_length ({row_length}) must be at least 1")
    if len(source) == 0:
        raise DataError("the dataset holds no examples")
    rows = grain.MapDataset.source(source).shuffle(seed=seed).repeat(epochs).map(_Features(masking)).to_iter_dataset()
    packed = grain.experimental.FirstFitPackIterDataset(
        rows,
        length_struct={name: row_length for name in ROW_FEATURES},
        num_packing_bins=max(bins, batch),
        shuffle_bins=False,
    )
    return packed.batch(batch, drop_remainder=True).map(_Finish())
