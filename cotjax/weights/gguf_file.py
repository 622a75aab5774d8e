"""GGUF files, llama.cpp's format: their metadata, and their tensors dequantised one at a time.

A model is one file, or parts named NAME-00001-of-00003.gguf. The first part has the metadata.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cotjax.errors import DataError
from cotjax.weights.stored import some

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_PART = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_SPLIT_COUNT = "split.count"


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor as its file's header declares it."""

    file: Path
    name: str
    shape: tuple[int, ...]  # rows first, as in a Hugging Face checkpoint
    quantisation: str  # such as "Q4_1", "F16"
    packed: Any  # gguf.ReaderTensor: a view of the memory-mapped file

    def values(self) -> np.ndarray:
        """Return the dequantised values, float32. Raises DataError for an unknown quantisation."""
        from gguf.quants import dequantize

        try:
            values = dequantize(self.packed.data, self.packed.tensor_type)
        except NotImplementedError:
            raise DataError(
                f"{self.file}: {self.name} is {self.quantisation}, which the package gguf cannot "
                "dequantise; take a file of another quantisation"
            ) from None
        return values.reshape(self.shape)


@dataclass(frozen=True)
class GGUF:
    """A model's metadata and tensors."""

    file: Path  # the first part
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]

    @property
    def architecture(self) -> str:
        """The name before the keys of the model's sizes, such as "llama"."""
        return str(self.metadata.get("general.architecture", "unknown"))

    def quantisations(self) -> dict[str, int]:
        """Return the number of tensors of each quantisation, the most frequent first."""
        return dict(Counter(one.quantisation for one in self.tensors.values()).most_common())


def is_gguf(path: Path) -> bool:
    """Return whether a path is a file that is called, or begins as, a GGUF file."""
    if not path.is_file():
        return False
    if path.suffix == SUFFIX:
        return True
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_gguf(file: Path) -> GGUF:
    """Open a GGUF file, or all parts of a split one. No tensor is read yet.

    Raises DataError for a file that is not GGUF or is cut, and for missing parts.
    """
    file = _first_part(file)
    metadata, tensors = _read(file)
    parts = metadata.get(_SPLIT_COUNT, 1)
    for other in _other_parts(file, parts):
        for name, tensor in _read(other)[1].items():
            if name in tensors:
                raise DataError(f"{other}: {name} is also in {tensors[name].file.name}")
            tensors[name] = tensor
    return GGUF(file, metadata, tensors)


def _first_part(file: Path) -> Path:
    part = _PART.fullmatch(file.name)
    if part is None or int(part["number"]) == 1:
        return file
    first = file.with_name(f"{part['name']}-00001-of-{part['count']}.gguf")
    if not first.is_file():
        raise DataError(f"{file}: a split model, and its part {first.name} is missing")
    return first


def _other_parts(file: Path, count: int) -> list[Path]:
    """Return the parts of a split model besides the first."""
    if count <= 1:
        return []
    part = _PART.fullmatch(file.name)
    if part is None:
        raise DataError(
            f"{file}: the first of {count} parts under another name; name all of them "
            f"MODEL-00001-of-{count:05d}.gguf and so on, in one folder"
        )
    names = [f"{part['name']}-{n:05d}-of-{count:05d}.gguf" for n in range(2, count + 1)]
    missing = [name for name in names if not file.with_name(name).is_file()]
    if missing:
        raise DataError(
            f"{file}: a split model of {count} parts, of which are missing: {some(missing)}"
        )
    return [file.with_name(name) for name in names]


def _read(file: Path) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
    """Return one file's metadata and tensors."""
    try:
        with file.open("rb") as opened:
            magic = opened.read(len(_MAGIC))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    if magic != _MAGIC:
        raise DataError(f"{file}: not a GGUF file; it does not begin with {_MAGIC.decode()}")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError) as error:
        raise DataError(
            f"{file}: not a whole GGUF file ({error}); copy or download it again"
        ) from None
    tensors = {
        tensor.name: GGUFTensor(
            file,
            tensor.name,
            tuple(int(size) for size in reversed(tensor.shape)),
            tensor.tensor_type.name,
            tensor,
        )
        for tensor in reader.tensors
    }
    return metadata, tensors
