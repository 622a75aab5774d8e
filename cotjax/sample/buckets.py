"""The sizes that programs are compiled for: tokens read in one pass, and the cache's capacity."""

from __future__ import annotations

from collections.abc import Sequence

# Tokens of a slot read in one pass: few, or as many as fit. Longer pieces take several passes,
# which bounds the scores' memory (on CPU, passes twice as large cost a tenth of the speed).
READ_FEW = (16, 32, 48)
READ_MOST = 512
READ_AT_ONCE = 2048  # of all slots together, about
# The same where a pass may read more than that: what a size in between would waste then costs more
# than its program.
READ_MANY = (16, 32, 64, 128, 256, 512)
# Tokens of a slot's tree that are scored in one pass, likewise.
TREE_SIZES = (16, 32, 64, 128, 256, 512)
TREES_AT_ONCE = 4096  # of all slots together; a slot may always have TREE_LEAST
TREE_LEAST = 64
# Capacity of a slot's cache, in tokens. Decoding reads all of it at every step, so it grows with
# the longest slot; each capacity has programs of its own, so it grows by a half or a third.
CAPACITY_BUCKETS = (
    256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768,
)  # fmt: skip


def read_buckets(slots: int, at_once: int = READ_AT_ONCE) -> list[int]:
    """Return the numbers of tokens that each of this many slots may read in one pass.

    `at_once`: tokens of all slots together, about.
    """
    if at_once > READ_AT_ONCE:
        return [size for size in READ_MANY if size <= max(READ_MANY[0], at_once // slots)]
    most = min(READ_MOST, 1 << max(at_once // slots, 1).bit_length() - 1)
    return [*READ_FEW, *([most] if most > READ_FEW[-1] else [])]


def tree_buckets(slots: int) -> list[int]:
    """Return the numbers of tokens that each of this many slots' trees may have in one pass."""
    most = max(TREE_LEAST, TREES_AT_ONCE // slots)
    return [size for size in TREE_SIZES if size <= most]


def bucket(size: int, buckets: Sequence[int], most: int | None = None) -> int:
    """Return the smallest bucket that holds `size`, capped at `most`.

    Past the last bucket: the next multiple of it.
    """
    for each in buckets:
        if size <= each:
            return each if most is None else min(each, most)
    rounded = -(-size // buckets[-1]) * buckets[-1]
    return rounded if most is None else min(rounded, most)
