"""Best-fit packing of examples into rows, planned from their lengths alone.

The examples, in an order drawn from the seed, are packed into rows once. Each epoch then exchanges
examples of equal length among their slots, and shuffles the rows:

    rows       [a b c]  [d e]  [f g]      packed once: a and f are equally long, and so are c and e
    epoch 0    [d c]  [a g]  [f b e]
    epoch 1    [f b c]  [a g]  [d e]

So all epochs have the same number of rows, each example is in every epoch once, and any row n of
the endless sequence of rows can be computed without planning the epochs before it. Lengths count as
equal when they round up to the same multiple of 1/128 of the average.
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

# Lengths are rounded up to a multiple of the average over this, which costs 1/256 of a row.
_ROUNDING = 128
_WINDOW = 1024  # examples that are packed together, longest first


class Packing:
    """Rows of examples, by their number in the endless sequence over all epochs.

    Args:
      lengths: tokens of each example.
      row_length: tokens per row.
      seed: of the order in which examples are packed, exchanged and read.
      bins: rows that are kept open while packing.
    """

    def __init__(self, lengths: np.ndarray, row_length: int, seed: int, bins: int = 256):
        self._seed = seed
        step = max(1, int(lengths.mean()) // _ROUNDING)
        classes = np.minimum(-(-lengths // step) * step, row_length)
        order = _shuffled(seed, 0, len(lengths))
        order = order[np.lexsort((-classes[order], np.arange(len(order)) // _WINDOW))]
        row_of = fit(classes[order].tolist(), row_length, bins)
        self._slots = order[np.argsort(row_of, kind="stable")]
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(row_of))])
        self._by_class = np.argsort(classes[self._slots], kind="stable")
        self._class_of = classes[self._slots][self._by_class]
        self.rows = len(self._starts) - 1  # an epoch
        self.filling = float(lengths.sum() / (self.rows * row_length))
        # Two epochs: prefetching threads read the end of one and the beginning of the next at a
        # time.
        self._epoch = lru_cache(maxsize=2)(self._exchange)

    def row(self, number: int) -> tuple[int, np.ndarray]:
        """Return (epoch, indices of the examples) of a row."""
        epoch, index = divmod(number, self.rows)
        examples, order = self._epoch(epoch)
        row = order[index]
        return epoch, examples[self._starts[row] : self._starts[row + 1]]

    def _exchange(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the example in each slot of an epoch, and the order of its rows."""
        key = _raw(self._seed, 2 * epoch + 1, len(self._slots))
        examples = np.empty_like(self._slots)
        examples[self._by_class] = self._slots[self._by_class[np.lexsort((key, self._class_of))]]
        return examples, _shuffled(self._seed, 2 * epoch + 2, self.rows)


def fit(lengths: Sequence[int], row_length: int, bins: int) -> np.ndarray:
    """Pack in order, each example into the open row that it fills best -> [N], the row of each.

    At most `bins` rows are open; the fullest is closed first.
    """
    row_of = np.empty(len(lengths), np.int64)
    open_rows: list[tuple[int, int]] = []  # (free tokens, row), sorted
    rows = 0
    for example, length in enumerate(lengths):
        best = bisect_left(open_rows, (length, 0))
        if best < len(open_rows):
            free, row = open_rows.pop(best)
        else:
            free, row = row_length, rows
            rows += 1
        row_of[example] = row
        insort(open_rows, (free - length, row))
        if len(open_rows) > bins:
            open_rows.pop(0)
    return row_of


def example_lengths(source: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the number of tokens of each example of a data source, [N] int32.

    A prepared dataset has them in a file next to it; without the file, every example is read and
    the file is written. A source with an attribute `lengths` (held_out.Part) gives them itself.
    """
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


def are_alone(source: Sequence[Mapping[str, Any]], row_length: int) -> bool:
    """Say whether every packed row of a data source holds one example, of one line.

    No two examples then fit into a row together, and none has branches or segments of its own.
    Examples are read for it only where the first holds.
    """
    shortest = np.sort(example_lengths(source))[:2]
    if len(shortest) == 2 and shortest.sum() <= row_length:
        return False
    return not any(_is_divided(source[index]) for index in range(len(source)))


def _is_divided(example: Mapping[str, Any]) -> bool:
    return "segments" in example or bool(np.any(example["branches"]))


def keep_lengths(source: Sequence[Mapping[str, Any]], lengths: np.ndarray) -> None:
    """Write the lengths next to a prepared dataset, if its folder is writable."""
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
            f"example {name!r} has {lengths[long[0]]} tokens, a row has {row_length} (too few for "
            f"{len(long)} of {len(lengths)} examples): raise train.row_length, or lower "
            "data.max_length"
        )


def _lengths_file(source: Sequence[Mapping[str, Any]]) -> Path | None:
    info, split = (getattr(source, name, None) for name in ("dataset_info", "split"))
    return None if info is None else Path(info.data_dir) / f"lengths-{split}.npy"


def _shuffled(seed: int, stream: int, count: int) -> np.ndarray:
    return np.argsort(_raw(seed, stream, count), kind="stable")


def _raw(seed: int, stream: int, count: int) -> np.ndarray:
    """Return [count] uint64 from a bit generator, whose stream is stable over numpy versions."""
    return np.random.Philox(key=[seed % 2**64, stream]).random_raw(count)
