"""TFDS data source -> shuffled, packed batches, as a checkpointable Grain iterator.

A batch is a dict of [B, T] numpy arrays, which `dropped_weights` makes into what a train step sees:

    ids, targets   int32    token ids, and what each position predicts
    weights        float32  loss weight of each target, without dropping
    draws          float32  the fraction above which reduced action supervision drops this target (2: never)
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
from cotjax.masking import NEVER, NORMALIZERS, Dropping, LinearFraction, MaskError, Role, target_weights, targets

ROW_FEATURES = ("ids", "targets", "weights", "draws", "roles", "branches", "positions")


@dataclass(frozen=True)
class Masking:
    """The loss mask of a run: what `cotjax.masking.Dropping` says, in values that a config file holds.

    `fraction`: the share k of units whose action loss is dropped; where `fraction_steps` is not 0 it goes to `last_fraction`
    over so many updates. `unit`: "example" (a whole trajectory), "turn" (one step: its prompt and response) or "token".
    `control`, `redraw`, `action_close`, `end`: see `Dropping`. `supervised`: role names that are trained on. `normalizer`: what
    the sum of losses is divided by; see `cotjax.masking.losses`.
    """

    seed: int = 0
    fraction: float = 0.0
    last_fraction: float = 0.0
    fraction_steps: int = 0
    unit: str = "turn"
    control: str = "action"
    redraw: bool = False
    action_close: bool = False
    end: bool = False
    supervised: tuple[str, ...] = ("REASONING", "ACTION_OPEN", "ACTION", "ACTION_CLOSE", "END")
    normalizer: str = "token_sum"

    def __post_init__(self):
        for name in self.supervised:
            if name not in Role.__members__:
                raise UsageError(f"masking.supervised: unknown role {name!r}; there are {', '.join(Role.__members__)}")
        if self.normalizer not in NORMALIZERS:
            raise UsageError(f"masking.normalizer: unknown {self.normalizer!r}; there are {', '.join(NORMALIZERS)}")
        try:
            self.dropping()
        except MaskError as error:
            raise UsageError(f"masking: {error}") from None

    def dropping(self) -> Dropping:
        fraction = LinearFraction(self.fraction, self.last_fraction, self.fraction_steps) if self.fraction_steps else self.fraction
        return Dropping(fraction, self.seed, self.unit, self.redraw, self.control, self.action_close, self.end, self.roles())

    def roles(self) -> tuple[Role, ...]:
        """The supervised roles."""
        return tuple(Role[name] for name in self.supervised)

    def drops(self) -> bool:
        """Whether anything is ever dropped."""
        return self.fraction > 0 or (self.fraction_steps > 0 and self.last_fraction > 0)


def example_features(example: dict, masking: Masking, epoch: int = 0) -> dict[str, np.ndarray]:
    """One stored example -> its row features (arrays of its own length). `weights` are those without dropping; `draws` says of
    each target from which fraction on it is dropped.

    Raises:
      DataError: the masking does not go with the example (see `Dropping.draws`).
    """
    roles, branches = example["roles"], example["branches"]
    weights = target_weights(roles, branches=branches, supervised=masking.roles())
    draws = np.full(roles.shape, NEVER, np.float32)
    if masking.drops():
        # Tokens on the trunk, branch 0, are a turn only in the direct form, where the roles tell the turns apart.
        turns = example["first_step"] + branches - 1 if branches.any() else None
        try:
            draws = masking.dropping().draws(roles, example["id"].decode(), turns=turns, epoch=epoch)
        except MaskError as error:
            raise DataError(str(error)) from None
    return {
        "ids": example["ids"],
        "targets": targets(example["ids"]),
        "weights": weights,
        "draws": targets(draws),
        "roles": targets(roles).astype(np.int8),
        "branches": branches,
        "positions": example["positions"],
    }


def dropped_weights(batch: dict[str, np.ndarray], fraction: float) -> dict[str, np.ndarray]:
    """A batch of `batches` -> what a train step sees at this fraction: `weights` with the drawn targets dropped, and `budget`
    [B, 1] float32, the weight of the row without dropping.

    Raises:
      DataError: nothing is left to train on.
    """
    batch = dict(batch)
    draws, full = batch.pop("draws"), batch["weights"]
    batch["weights"] = np.where(draws < np.float32(fraction), np.float32(0), full)
    batch["budget"] = full.sum(-1, keepdims=True)
    if not batch["weights"].any():
        raise DataError("a batch holds no supervised token: the masking drops everything; check masking.supervised and the data's roles")
    return batch


class _Features(grain.transforms.MapWithIndex):
    def __init__(self, masking: Masking, examples: int):
        self._masking, self._examples = masking, examples

    def map_with_index(self, index: int, example: dict) -> dict:
        return example_features(example, self._masking, epoch=index // self._examples)


class _Finish(grain.transforms.Map):
    """Names the packed row's arrays. A row is filled up with zeros; its filling is never drawn."""

    def map(self, packed: dict) -> dict:
        batch = {name: packed[name] for name in ROW_FEATURES}
        batch["segment_ids"] = packed["ids_segment_ids"].astype(np.int32)
        return batch


def batches(
    source: Sequence[dict], *, row_length: int, batch: int, masking: Masking, seed: int, epochs: int | None = None, bins: int = 16
) -> grain.IterDataset:
    """Shuffled each epoch, packed first fit into rows of `row_length`, batched. The same arguments give the same batches;
    the iterator's `get_state` / `set_state` go on from any batch.

    Raises:
      UsageError: `batch` or `row_length` is not positive.
      DataError: the source is empty, or (from the iterator) the masking does not go with an example.
    """
    if batch <= 0 or row_length <= 0:
        raise UsageError(f"batch ({batch}) and row_length ({row_length}) must be at least 1")
    if len(source) == 0:
        raise DataError("the dataset holds no examples")
    rows = (
        grain.MapDataset.source(source).shuffle(seed=seed).repeat(epochs).map_with_index(_Features(masking, len(source))).to_iter_dataset()
    )
    packed = grain.experimental.FirstFitPackIterDataset(
        rows,
        length_struct={name: row_length for name in ROW_FEATURES},
        num_packing_bins=max(bins, batch),
        shuffle_bins=False,
    )
    return packed.batch(batch, drop_remainder=True).map(_Finish())
