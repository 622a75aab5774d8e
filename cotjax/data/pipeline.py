"""TFDS data source -> shuffled, packed batches, as a checkpointable Grain iterator.

Row n of the endless sequence of rows is a function of (lengths of the examples, row length, seed,
n); see `cotjax.data.packing`. Batch n holds rows n·B to (n + 1)·B. So any process can read any part
of any batch by itself, and the state of an iterator is one number, the same for every process.

A batch is a dict of [B, T] numpy arrays, from which `dropped_weights` makes what a train step
takes:

    ids, targets   int32    token ids, and the token that each position predicts
    weights        float32  loss weight of each target, before dropping
    draws          float32  the fraction above which this target is dropped (2: never)
    roles          int8     role of each *target* (for metrics by role)
    segment_ids    int32    0 is padding, 1.. the example within the row
    branches       int32    0 is the trunk
    positions      int32    rope position within the example

`dropped_weights` compares `draws` with the fraction of the step, so that a schedule needs no new
draw, and adds `budget`, float32 [B, 1], and `dropped`, int32 [B, 3].
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grain
import numpy as np

from cotjax.data.packing import Packing, check_lengths, example_lengths
from cotjax.errors import DataError, UsageError
from cotjax.masking import NEVER, Dropping, target_weights, targets, turn_numbers
from cotjax.masking.drop import AS_MANY

Example = Mapping[str, Any]  # as the TFDS dataset stores it
# Fields that examples of preferences (data.pairs) and of played episodes (data.rollouts) have
# besides, by token. A batch has them by target.
BY_TOKEN = {
    "sides": np.int8,
    "reference": np.float32,
    "log_probs": np.float32,
    "sampled": np.float32,
    "advantages": np.float32,
}
# What `dropped` counts in each row: targets that lose their weight, the draws that dropped them (of
# examples, turns or tokens), and the examples that they are in.
DROPPED = ("tokens", "units", "examples")


def example_features(example: Example, dropping: Dropping, epoch: int = 0) -> dict[str, np.ndarray]:
    """Return the row features of one stored example, each an array of the example's own length.

    Raises:
      MaskError: the dropping does not fit the example (see `Dropping.draws`).
    """
    row = packed_row([example], dropping, epoch, len(example["ids"]))
    return {name: array for name, array in row.items() if name != "segment_ids"}


def check_supervised(source: Sequence[Example], dropping: Dropping) -> None:
    """Raise DataError when no example of the source has a token that is trained on."""
    examples = (source[number] for number in range(len(source)))
    if not any(example_features(example, dropping)["weights"].any() for example in examples):
        raise DataError(
            "no example holds a supervised token; check masking.supervised and the data's roles"
        )


def packed_row(
    examples: Sequence[Example], dropping: Dropping, epoch: int, row_length: int
) -> dict[str, np.ndarray]:
    """Return one row [T] of each field of a batch. Padding has segment 0, weight 0, and no draw.

    Fields of BY_TOKEN that examples have come too; beside `sides` the target's example, `pairs`.

    Raises:
      MaskError: the dropping does not fit an example (see `Dropping.draws`).
    """
    lengths = [len(example["ids"]) for example in examples]
    used = sum(lengths)
    ends = np.cumsum(lengths) - 1

    def joined(name: str, dtype: type) -> np.ndarray:
        row: np.ndarray = np.zeros(row_length, dtype)
        np.concatenate([example[name] for example in examples], out=row[:used], casting="same_kind")
        return row

    def shifted(row: np.ndarray) -> np.ndarray:
        moved = targets(row)
        moved[ends] = row[ends]  # as in an example by itself
        return moved

    ids, roles, branches = (
        joined("ids", np.int32),
        joined("roles", np.int8),
        joined("branches", np.int32),
    )
    numbers = np.zeros(row_length, np.int32)  # of the example, from 1
    numbers[:used] = np.repeat(np.arange(len(examples), dtype=np.int32), lengths) + 1
    segment_ids = numbers.copy()
    if "segments" in examples[0]:
        segment_ids[:used] = _consecutive([example["segments"] for example in examples])
    here = slice(0, used)
    weights = np.zeros(row_length, np.float32)
    weights[here] = target_weights(
        roles[here],
        branches=branches[here],
        segment_ids=segment_ids[here],
        supervised=dropping.supervised,
    )
    draws = np.full(row_length, NEVER, np.float32)
    if dropping.drops():
        np.concatenate([_draws(dropping, example, epoch) for example in examples], out=draws[:used])
    row = {
        "ids": ids,
        "targets": shifted(ids),
        "weights": weights,
        "draws": shifted(draws),
        "roles": shifted(roles),
        "branches": branches,
        "positions": joined("positions", np.int32),
        "segment_ids": segment_ids,
    }
    for name in filter(examples[0].__contains__, BY_TOKEN):
        row[name] = shifted(joined(name, BY_TOKEN[name]))
    if "sides" in row:
        row["pairs"] = np.where(row["sides"] > 0, numbers, 0).astype(np.int32)
    return row


def _consecutive(segments: Sequence[np.ndarray]) -> np.ndarray:
    """Return the segments of several examples, each numbered from 0, as a row's, from 1."""
    first, numbers = 1, []
    for own in segments:
        numbers.append(first + own.astype(np.int32))
        first = int(numbers[-1].max()) + 1
    return np.concatenate(numbers)


def example_turns(example: Example) -> np.ndarray:
    """Return the trajectory's step of each token, [T] int32; a prompt has that of its response.

    So a step is drawn under one number in every layout, also behind steps that are not trained on.
    """
    return example["steps"][turn_numbers(example["roles"])]


def _draws(dropping: Dropping, example: Example, epoch: int) -> np.ndarray:
    return dropping.draws(
        example["roles"], example["id"].decode(), turns=example_turns(example), epoch=epoch
    )


def _check_control(source: Sequence[Example], dropping: Dropping) -> None:
    """Raise MaskError, naming it, for an example that has too few tokens for the control.

    All examples are read, so that the run does not stop at one of them hours later.
    """
    if not dropping.drops() or dropping.control not in AS_MANY:
        return
    if dropping.redraw:  # some epoch draws a number below any fraction
        dropping = replace(dropping, fraction=1.0)
    for index in range(len(source)):
        _draws(dropping, source[index], epoch=0)


def dropped_weights(batch: dict[str, np.ndarray], fraction: float) -> dict[str, np.ndarray]:
    """Return a batch as a train step takes it: `weights` of 0 where `draws` is below the fraction.

    `draws` goes; `budget` [B, 1] float32 comes, the weight of each row before dropping, and
    `dropped` [B, 3] int32, what each row loses, as DROPPED names it.
    """
    batch = dict(batch)
    draws, full = batch.pop("draws"), batch["weights"]
    gone = draws < np.float32(fraction)
    batch["weights"] = np.where(gone, np.float32(0), full)
    batch["budget"] = full.sum(-1, keepdims=True)
    batch["dropped"] = _counts(gone & (full > 0), batch["segment_ids"], draws)
    return batch


def _counts(gone_BT: np.ndarray, segment_ids_BT: np.ndarray, draws_BT: np.ndarray) -> np.ndarray:
    """Count what each row loses to dropping: [B, 3] int32, as DROPPED names it."""
    rows, _ = np.nonzero(gone_BT)
    segments, draws = segment_ids_BT[gone_BT], draws_BT[gone_BT]
    # The tokens of an example are neighbours, so an example begins where the segment changes.
    begins_example = np.ones(len(rows), bool)
    begins_example[1:] = (rows[1:] != rows[:-1]) | (segments[1:] != segments[:-1])
    # Tokens that one draw dropped have the same number, and no two draws of an example do.
    draws = draws[np.lexsort((draws, np.cumsum(begins_example)))]
    begins_draw = begins_example.copy()
    begins_draw[1:] |= draws[1:] != draws[:-1]
    counts = [
        np.bincount(which, minlength=len(gone_BT))
        for which in (rows, rows[begins_draw], rows[begins_example])
    ]
    return np.stack(counts, axis=1).astype(np.int32)


@dataclass(frozen=True)
class _Rows:
    """What Grain reads: element i is the examples of the i-th row that this process reads."""

    source: Sequence[Example]
    packing: Packing
    batch: int
    rows: Sequence[int]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int, list[Example]]:
        batch, place = divmod(index, len(self.rows))
        epoch, examples = self.packing.row(batch * self.batch + self.rows[place])
        return epoch, [self.source[example] for example in examples.tolist()]


@dataclass(frozen=True)
class _Pack(grain.transforms.Map):
    dropping: Dropping
    row_length: int

    def map(self, row: tuple[int, list[Example]]) -> dict[str, np.ndarray]:
        epoch, examples = row
        return packed_row(examples, self.dropping, epoch, self.row_length)


def batches(
    source: Sequence[Example],
    *,
    row_length: int,
    batch: int,
    dropping: Dropping,
    seed: int,
    rows: Sequence[int] | None = None,
    epochs: int | None = None,
    threads: int = 4,
) -> grain.IterDataset:
    """Return batches of packed rows, shuffled each epoch; the same arguments give the same ones.

    The iterator's `get_state` / `set_state` continue from any batch, at once; a state is a few JSON
    values and does not depend on `rows`.

    Args:
      batch: rows of the global batch.
      dropping: which roles are trained on, and which targets are dropped.
      rows: the rows of a batch that this process reads, in this order (None: all).
      epochs: how often each example is read, except rows that do not fill a last batch (None: no
        end).
      threads: that read and pack ahead of the caller; 0: the caller does it.

    Raises:
      UsageError: `batch` or `row_length` is not positive, or `rows` names none, or one that the
        batch does not have.
      DataError: the source is empty, an example is longer than a row, or the dropping does not fit
        an example.
    """
    if batch <= 0 or row_length <= 0:
        raise UsageError(f"batch ({batch}) and row_length ({row_length}) must be at least 1")
    rows = range(batch) if rows is None else list(rows)
    if not rows or not 0 <= min(rows) <= max(rows) < batch:
        raise UsageError(f"a process reads one row or more of the batch's {batch}, not {rows}")
    if len(source) == 0:
        raise DataError("the dataset holds no examples")
    lengths = example_lengths(source)
    check_lengths(lengths, row_length, source)
    _check_control(source, dropping)
    packing = Packing(lengths, row_length, seed)
    count = (sys.maxsize if epochs is None else packing.rows * epochs) // batch * len(rows)
    read = _Rows(source, packing, batch, rows, count)
    packed = (
        grain.MapDataset.source(read)
        .map(_Pack(dropping, row_length))
        .batch(len(rows), drop_remainder=True)
    )
    ahead = 2 * threads
    return packed.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    )
