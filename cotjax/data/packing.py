"""Which examples stand in which row: a plan from their lengths alone, so that any row of any epoch can be read by itself.

The examples, in an order drawn from the seed, are packed into rows; that is done once. Each epoch then deals the examples anew
among the places of their length, and draws the order of the rows:

    rows       [a b c]  [d e]  [f g]      packed once: a and f are equally long, and so are c and e
    epoch 0    [d c]  [a g]  [f b e]
    epoch 1    [f b c]  [a g]  [d e]

So every epoch has as many rows as any other, each example stands in it once, and row n of the endless sequence of rows is found
without planning the epochs before it. Lengths count as equal when they round up to the same multiple of 1/128 of the average.
"""

from __future__ import annotations

import io
import os
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cotjax.errors import DataError
from cotjax.runtime.files import write_atomic

_ROUNDING = (
    128  # parts of the average length that lengths are rounded up to; it costs 1/256 of a row
)
_WINDOW = 1024  # examples that are packed together, the longest first
_ROW_BITS = 40


class Packing:
    """Rows of examples, by their number in the endless sequence over all epochs.

    Args:
      lengths: tokens of each example.
      row_length: tokens a row.
      seed: of the order in which examples are packed, dealt and read.
      bins: rows that stay open while packing.
    """

    def __init__(self, lengths: np.ndarray, row_length: int, seed: int, bins: int = 256):
        self._seed = seed
        step = max(1, int(lengths.mean()) // _ROUNDING)
        classes = np.minimum(-(-lengths // step) * step, row_length)
        order = _shuffled(seed, 0, len(lengths))
        order = order[np.lexsort((-classes[order], np.arange(len(order)) // _WINDOW))]
        row_of = fit(classes[order].tolist(), row_length, bins)
        self._places = order[np.argsort(row_of, kind="stable")]
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(row_of))])
        self._by_class = np.argsort(classes[self._places], kind="stable")
        self._class_of = classes[self._places][self._by_class]
        self.rows = len(self._starts) - 1  # an epoch
        self.filling = float(lengths.sum() / (self.rows * row_length))
        # Two epochs: prefetching threads read the end of one and the beginning of the next together.
        self._epoch = lru_cache(maxsize=2)(self._deal)

    def row(self, number: int) -> tuple[int, np.ndarray]:
        """(epoch, indices of the examples) of a row."""
        epoch, place = divmod(number, self.rows)
        dealt, order = self._epoch(epoch)
        row = order[place]
        return epoch, dealt[self._starts[row] : self._starts[row + 1]]

    def _deal(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's examples place by place, and its order of rows."""
        key = _raw(self._seed, 2 * epoch + 1, len(self._places))
        dealt = np.empty_like(self._places)
        dealt[self._by_class] = self._places[self._by_class[np.lexsort((key, self._class_of))]]
        return dealt, _shuffled(self._seed, 2 * epoch + 2, self.rows)


def fit(lengths: Sequence[int], row_length: int, bins: int) -> np.ndarray:
    """Pack in order, each into the open row whose room it fills best -> [N], the row of each. With more than `bins` rows open, the
    fullest is closed."""
    row_of = np.empty(len(lengths), np.int64)
    rooms: list[
        int
    ] = []  # sorted; the tokens that are free, and behind them, in the low bits, the row
    count = 0
    for index, length in enumerate(lengths):
        place = bisect_left(rooms, length << _ROW_BITS)
        if place < len(rooms):
            room = rooms.pop(place)
        else:
            room = row_length << _ROW_BITS | count
            count += 1
        row_of[index] = room & (1 << _ROW_BITS) - 1
        room -= length << _ROW_BITS
        insort(rooms, room)
        if len(rooms) > bins:
            rooms.pop(0)
    return row_of


def example_lengths(source: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Tokens of each example of a data source -> [N] int32. Those of a prepared dataset stand in a file beside it; without one,
    every example is read, and the file written. A source that has `lengths` (held_out.Part) says them itself."""
    if hasattr(source, "lengths"):
        return source.lengths
    file = _lengths_file(source)
    if file is not None and file.is_file():
        lengths = np.load(file)
        if len(lengths) == len(source):
            return lengths
    lengths = np.fromiter(
        (len(source[index]["ids"]) for index in range(len(source))), np.int32, len(source)
    )
    keep_lengths(source, lengths)
    return lengths


def keep_lengths(source: Sequence[Mapping[str, Any]], lengths: np.ndarray) -> None:
    """Write the lengths beside a prepared dataset, where it can be written to."""
    file = _lengths_file(source)
    if file is None or not os.access(file.parent, os.W_OK):
        return
    packed = io.BytesIO()
    np.save(packed, lengths)
    write_atomic(file, packed.getvalue())


def check_lengths(
    lengths: np.ndarray, row_length: int, source: Sequence[Mapping[str, Any]]
) -> None:
    """Raise DataError, naming the first, when an example is longer than a row."""
    long = np.flatnonzero(lengths > row_length)
    if len(long):
        name = source[int(long[0])]["id"].decode()
        raise DataError(
            f"example {name!r} has {lengths[long[0]]} tokens, a row has {row_length} (so for {len(long)} of {len(lengths)} examples): "
            "raise train.row_length, or lower data.max_length"
        )


def _lengths_file(source: Any) -> Path | None:
    info = getattr(source, "dataset_info", None)
    return Path(info.data_dir) / f"lengths-{source.split}.npy" if info is not None else None


def _shuffled(seed: int, stream: int, count: int) -> np.ndarray:
    return np.argsort(_raw(seed, stream, count), kind="stable")


def _raw(seed: int, stream: int, count: int) -> np.ndarray:
    """[count] uint64 from a bit generator, whose stream numpy keeps from version to version."""
    return np.random.Philox(key=[seed % 2**64, stream]).random_raw(count)
