"""Names seen so far, kept as digests: what finds a name that comes twice in a file of millions."""

from __future__ import annotations

import hashlib

import numpy as np

_RECENT = 1 << 16  # names that are held in a dict before they are merged into the arrays


class Digests:
    """Each name's 64-bit digest and a number, 12 bytes a name. Two of a million names share a digest once in 37 million files."""

    def __init__(self):
        self._recent: dict[int, int] = {}
        self._digests = np.zeros(0, np.uint64)  # sorted
        self._numbers = np.zeros(0, np.uint32)

    def add(self, name: str, number: int) -> int | None:
        """Note the name under `number`, below 2**32; or return the number that it was noted under before."""
        digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
        if digest in self._recent:
            return self._recent[digest]
        place = int(self._digests.searchsorted(np.uint64(digest)))
        if place < len(self._digests) and self._digests[place] == digest:
            return int(self._numbers[place])
        self._recent[digest] = number
        if len(self._recent) == _RECENT:
            self._merge()
        return None

    def _merge(self) -> None:
        digests = np.concatenate(
            [self._digests, np.fromiter(self._recent, np.uint64, len(self._recent))]
        )
        numbers = np.concatenate(
            [self._numbers, np.fromiter(self._recent.values(), np.uint32, len(self._recent))]
        )
        order = np.argsort(digests)
        self._digests, self._numbers = digests[order], numbers[order]
        self._recent = {}
