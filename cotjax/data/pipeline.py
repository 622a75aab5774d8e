"""TFDS data source -> shuffled, packed batches, as a checkpointable Grain iterator.

Row n of the endless sequence of rows is a function of (the examples' lengths, row length, seed, n); see `cotjax.data.packing`. Batch
n holds rows n·B to (n + 1)·B. So any process can read any part of any batch by itself, and where an iterator stands is one number,
the same for every process.

A batch is a dict of [B, T] numpy arrays, which `dropped_weights` makes into what a train step sees:

    ids, targets   int32    token ids, and what each position predicts
    weights        float32  loss weight of each target, without dropping
    draws          float32  the fraction above which reduced action supervision drops this target (2: never)
    roles          int8     role of each *target* (for metrics by role)
    segment_ids    int32    0 is padding, 1.. the example within the row
    branches       int32    0 is the trunk
    positions      int32    rope position within the example

and `dropped_weights` adds `budget`, float32 [B, 1], and `dropped`, int32 [B, 3].
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import grain
import numpy as np

from cotjax.data.packing import Packing, check_lengths, example_lengths
from cotjax.errors import DataError, UsageError
from cotjax.masking import (
    NEVER,
    NORMALIZERS,
    Dropping,
    LinearFraction,
    MaskError,
    Role,
    target_weights,
    targets,
    turn_numbers,
)
from cotjax.masking.drop import AS_MANY

# What `dropped` counts in each row: targets that lose their weight, and the drawn units and the examples that they are of.
DROPPED = ("tokens", "units", "examples")


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
                raise UsageError(
                    f"masking.supervised: unknown role {name!r}; there are {', '.join(Role.__members__)}"
                )
        if self.normalizer not in NORMALIZERS:
            raise UsageError(
                f"masking.normalizer: unknown {self.normalizer!r}; there are {', '.join(NORMALIZERS)}"
            )
        try:
            self.dropping()
        except MaskError as error:
            raise UsageError(f"masking: {error}") from None

    def dropping(self) -> Dropping:
        fraction = (
            LinearFraction(self.fraction, self.last_fraction, self.fraction_steps)
            if self.fraction_steps
            else self.fraction
        )
        return Dropping(
            fraction,
            self.seed,
            self.unit,
            self.redraw,
            self.control,
            self.action_close,
            self.end,
            self.roles(),
        )

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
    row = packed_row([example], masking, epoch, len(example["ids"]))
    return {name: array for name, array in row.items() if name != "segment_ids"}


def check_supervised(source: Sequence[dict], masking: Masking) -> None:
    """Raise DataError when no example of the source has a token that is trained on."""
    examples = (source[number] for number in range(len(source)))
    if not any(example_features(example, masking)["weights"].any() for example in examples):
        raise DataError(
            "no example holds a supervised token; check masking.supervised and the data's roles"
        )


def packed_row(
    examples: Sequence[dict], masking: Masking, epoch: int, row_length: int
) -> dict[str, np.ndarray]:
    """Stored examples -> one row [T] of each of a batch's fields. The filling behind them is segment 0, weighs 0, and is never drawn.

    Raises:
      DataError: the masking does not go with an example (see `Dropping.draws`).
    """
    lengths = [len(example["ids"]) for example in examples]
    used = sum(lengths)
    ends = np.cumsum(lengths) - 1

    def joined(name: str, dtype: type) -> np.ndarray:
        row = np.zeros(row_length, dtype)
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
    segment_ids = np.zeros(row_length, np.int32)
    segment_ids[:used] = np.repeat(np.arange(1, len(examples) + 1, dtype=np.int32), lengths)
    here = slice(0, used)
    weights = np.zeros(row_length, np.float32)
    weights[here] = target_weights(
        roles[here],
        branches=branches[here],
        segment_ids=segment_ids[here],
        supervised=masking.roles(),
    )
    draws = np.full(row_length, NEVER, np.float32)
    if masking.drops():
        dropping = masking.dropping()
        np.concatenate([_draws(dropping, example, epoch) for example in examples], out=draws[:used])
    return {
        "ids": ids,
        "targets": shifted(ids),
        "weights": weights,
        "draws": shifted(draws),
        "roles": shifted(roles),
        "branches": branches,
        "positions": joined("positions", np.int32),
        "segment_ids": segment_ids,
    }


def example_turns(example: dict) -> np.ndarray:
    """The trajectory's step that each token is of -> [T] int32: a response's own step, and for a prompt that of the response behind it.

    So a step is drawn under one number in every layout, also behind steps that are not trained on.
    """
    return example["steps"][turn_numbers(example["roles"])]


def _draws(dropping: Dropping, example: dict, epoch: int) -> np.ndarray:
    try:
        return dropping.draws(
            example["roles"], example["id"].decode(), turns=example_turns(example), epoch=epoch
        )
    except MaskError as error:
        raise DataError(str(error)) from None


def _check_control(source: Sequence[dict], masking: Masking) -> None:
    """Raise DataError, naming it, for an example that has too few tokens for a control that drops as many as the action has.

    All examples are read, so that the run does not stop at one of them hours later.
    """
    if not masking.drops() or masking.control not in AS_MANY:
        return
    dropping = masking.dropping()
    if dropping.redraw:  # sooner or later every unit is drawn
        dropping = replace(dropping, fraction=1.0)
    for index in range(len(source)):
        _draws(dropping, source[index], epoch=0)


def dropped_weights(batch: dict[str, np.ndarray], fraction: float) -> dict[str, np.ndarray]:
    """A batch of `batches` -> what a train step sees at this fraction: `weights` with the drawn targets dropped, and `budget`
    [B, 1] float32, the weight of the row without dropping; `dropped` [B, 3] int32, what the row loses to it (DROPPED).
    """
    batch = dict(batch)
    draws, full = batch.pop("draws"), batch["weights"]
    gone = draws < np.float32(fraction)
    batch["weights"] = np.where(gone, np.float32(0), full)
    batch["budget"] = full.sum(-1, keepdims=True)
    batch["dropped"] = _counts(gone & (full > 0), batch["segment_ids"], draws)
    return batch


def _counts(gone_BT: np.ndarray, segment_ids_BT: np.ndarray, draws_BT: np.ndarray) -> np.ndarray:
    """What each row loses to dropping, [B, 3] int32, as DROPPED names it."""
    rows, _ = np.nonzero(gone_BT)
    # Row, example and draw in one number each. What is drawn together has one draw, and within an example no two units have the same.
    examples = rows << 16 | segment_ids_BT[gone_BT]
    units = examples << 32 | draws_BT[gone_BT].view(np.uint32)
    different = [
        np.bincount(np.unique(found) >> bits, minlength=len(gone_BT))
        for found, bits in ((units, 48), (examples, 16))
    ]
    return np.stack([gone_BT.sum(axis=1), *different], axis=1).astype(np.int32)


@dataclass(frozen=True)
class _Rows:
    """What Grain reads: element i is the examples of the i-th of the rows that this process reads."""

    source: Sequence[dict]
    packing: Packing
    batch: int
    rows: Sequence[int]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int, list[dict]]:
        batch, place = divmod(index, len(self.rows))
        epoch, examples = self.packing.row(batch * self.batch + self.rows[place])
        return epoch, [self.source[example] for example in examples.tolist()]


@dataclass(frozen=True)
class _Pack(grain.transforms.Map):
    masking: Masking
    row_length: int

    def map(self, row: tuple[int, list[dict]]) -> dict[str, np.ndarray]:
        epoch, examples = row
        return packed_row(examples, self.masking, epoch, self.row_length)


def batches(
    source: Sequence[dict],
    *,
    row_length: int,
    batch: int,
    masking: Masking,
    seed: int,
    rows: Sequence[int] | None = None,
    epochs: int | None = None,
    threads: int = 4,
) -> grain.IterDataset:
    """Shuffled each epoch, packed into rows of `row_length`, batched. The same arguments give the same batches.

    The iterator's `get_state` / `set_state` go on from any batch, at once; a state is a few JSON values and does not depend on `rows`.

    Args:
      batch: rows of the global batch.
      rows: which of them this process reads, in this order (None: all).
      epochs: how often each example is read, less what fills no last batch (None: without end).
      threads: that read and pack ahead of the caller; 0: the caller does it.

    Raises:
      UsageError: `batch` or `row_length` is not positive, or `rows` names none, or one that the batch does not have.
      DataError: the source is empty, an example is longer than a row, or the masking does not go with an example.
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
    _check_control(source, masking)
    packing = Packing(lengths, row_length, seed)
    count = (sys.maxsize if epochs is None else packing.rows * epochs) // batch * len(rows)
    read = _Rows(source, packing, batch, rows, count)
    made = (
        grain.MapDataset.source(read)
        .map(_Pack(masking, row_length))
        .batch(len(rows), drop_remainder=True)
    )
    ahead = 2 * threads
    return made.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
