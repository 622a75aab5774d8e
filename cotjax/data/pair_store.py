"""Pairs on disk, and the reference's log-probabilities beside them.

    <folder>/ids.npy, roles.npy, …       the tokens of all pairs, one after another
    <folder>/pairs.json                  ids of the trajectories, sizes, and counts
    <folder>/reference-<hash>.npy        log-probability of each token under one reference model
    <folder>/reference-<hash>.json       the model's whole hash

The reference's pass over the data is made once for each model. Log-probabilities of another model
are never read: the hash of the model is in the file's name, and in the file beside it.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cotjax.data.pairs import PairCounts, PairExample
from cotjax.data.pipeline import Example
from cotjax.errors import DataError
from cotjax.runtime.files import atomic_folder, read_json, write_atomic

ARRAYS = {
    "ids": np.int32,
    "roles": np.int8,
    "branches": np.int32,
    "positions": np.int32,
    "segments": np.int8,
    "sides": np.int8,
}
_ABOUT = "pairs.json"


class PairSource(Sequence[Example]):
    """The pairs of a folder, as a data source of `cotjax.data.pipeline`.

    lengths: [pairs] int32, tokens of each.
    reference: [tokens] float32, where `with_reference` was called.

    Raises:
      DataError: the folder is incomplete or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.reference: np.ndarray | None = None
        about = read_json(folder / _ABOUT, "cotjax")
        try:
            self._names: list[str] = about["names"]
            self._first_steps: list[int] = about["first_steps"]
            self._steps: list[list[int]] = about["steps"]
            self.lengths = np.asarray(about["lengths"], np.int32)
            self._counts: dict[str, Any] = about["counts"]
            self._arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        except (KeyError, OSError, ValueError) as error:
            raise DataError(
                f"{folder}: not a complete folder of pairs ({error}); delete it"
            ) from None
        self._starts = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        short = [name for name, array in self._arrays.items() if len(array) != self._starts[-1]]
        if short:
            raise DataError(
                f"{folder / short[0]}.npy: not as long as {_ABOUT} says; delete the folder"
            )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        tokens = slice(self._starts[index], self._starts[index + 1])
        example: dict[str, Any] = {
            "id": self._names[index].encode(),
            "first_step": self._first_steps[index],
            "steps": np.asarray(self._steps[index], np.int32),
        }
        example |= {name: np.asarray(array[tokens]) for name, array in self._arrays.items()}
        if self.reference is not None:
            example["reference"] = self.reference[tokens]
        return example

    def lines(self) -> list[str]:
        """Return lines of text: how many pairs there are, and why there are no others."""
        left_out = Counter(self._counts["left_out"])
        return list(PairCounts(self._counts["pairs"], left_out).lines())

    def has_reference(self, model: str) -> bool:
        """Return whether the log-probabilities of a reference model, by its hash, are there."""
        return _reference_file(self.folder, model).with_suffix(".json").is_file()

    def with_reference(self, model: str) -> PairSource:
        """Return this source with the log-probabilities of a reference model, by its hash.

        Raises:
          DataError: there are none of this model, or the file is damaged.
        """
        file = _reference_file(self.folder, model)
        if not self.has_reference(model):
            others = sorted(
                path.stem.removeprefix("reference-")
                for path in self.folder.glob("reference-*.json")
            )
            raise DataError(
                f"{self.folder}: no reference log-probabilities of the model {model[:12]}; there "
                f"are those of {', '.join(others) or 'none'}, which another model gave"
            )
        found = read_json(file.with_suffix(".json"), "cotjax").get("model")
        if found != model:
            raise DataError(
                f"{file}: the log-probabilities of the model {str(found)[:12]}, not of "
                f"{model[:12]}; delete the file"
            )
        other = PairSource(self.folder)
        try:
            other.reference = np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: damaged ({error}); delete it and its .json") from None
        if len(other.reference) != self._starts[-1]:
            raise DataError(f"{file}: not of these pairs; delete it and its .json")
        return other

    def keep_reference(self, model: str, log_probs: Sequence[np.ndarray]) -> None:
        """Write a reference model's log-probabilities of each pair's tokens.

        Raises:
          DataError: their number is not that of the tokens, or one is not finite; the message names
            the pair.
        """
        for index, own in enumerate(log_probs):
            if len(own) != self.lengths[index] or not np.isfinite(own).all():
                raise DataError(
                    f"{self.folder}, pair {index} ({self._names[index]!r}): the reference gives "
                    f"{len(own)} log-probabilities of {self.lengths[index]} tokens, "
                    f"{int((~np.isfinite(own)).sum())} of them not finite"
                )
        file, packed = _reference_file(self.folder, model), io.BytesIO()
        np.save(packed, np.concatenate(list(log_probs)).astype(np.float32))
        write_atomic(file, packed.getvalue())
        write_atomic(file.with_suffix(".json"), json.dumps({"model": model}) + "\n")


def write_pairs(folder: Path, pairs: Iterable[PairExample], counts: PairCounts) -> PairSource:
    """Write pairs to a new folder, atomically, and return them as a source.

    `counts`: filled while `pairs` are made.

    Raises:
      DataError: there is no pair.
    """
    made = list(pairs)
    if not made:
        raise DataError(f"{folder}: no pair; {'; '.join(counts.lines())}")
    about = {
        "names": [pair.id for pair in made],
        "first_steps": [pair.first_step for pair in made],
        "steps": [pair.steps.tolist() for pair in made],
        "lengths": [len(pair.ids) for pair in made],
        "counts": {"pairs": counts.pairs, "left_out": dict(counts.left_out)},
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as new:
        for name, kind in ARRAYS.items():
            joined = np.concatenate([getattr(pair, name) for pair in made])
            np.save(new / f"{name}.npy", joined.astype(kind))
        (new / _ABOUT).write_text(json.dumps(about) + "\n")
    return PairSource(folder)


def _reference_file(folder: Path, model: str) -> Path:
    return folder / f"reference-{model[:12]}.npy"
