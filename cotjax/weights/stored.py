"""The tensors of a Hugging Face folder, as their headers declare them. Never pickle."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cotjax.errors import DataError
from cotjax.weights.hf_config import QUANTIZED

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

FLOATS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}  # safetensors' name: ours

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_NAMED = 5  # how many tensors an error names
# Buffers that some files hold and every reader computes from config.json instead.
_BUFFER = re.compile(r"(.*\.)?rotary_emb\.inv_freq")
# Tensors next to, or in place of, packed weights: bitsandbytes, GPTQ, AWQ, FP8,
# compressed-tensors.
_PACKED = re.compile(
    r".*\.(qweight|qzeros|scales|g_idx|SCB|weight_format|(weight|input|output|k|v)_scale(_inv"
    r"|_2)?|weight_zero_point|weight_packed|weight_shape|weight_g_idx|weight_global_scale"
    r"|input_global_scale|weight\.(absmax|quant_map|nested_absmax|nested_quant_map"
    r"|quant_state\..*))"
)
_ADAPTER = re.compile(
    r".*\.(lora_(A|B|magnitude_vector|embedding_A|embedding_B)(\..*)?|base_layer\..*)"
)
_CHUNK_BYTES = 1 << 26  # of each tensor that are compared at a time


@dataclass(frozen=True)
class Stored:
    """A tensor as its file's header declares it."""

    file: Path
    name: str  # in the file
    shape: tuple[int, ...]
    dtype: str  # safetensors' name of it


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Return the tensors of a folder by the names that the model's parameters have with its output
    projection.

    Rotary buffers are passed over. Names without `model.`, which transformers writes for a model
    without its output projection, are read as if they had it.

    Raises DataError when the files are not there or not whole, and for quantized weights and
    adapters that were not merged.
    """
    tensors: dict[str, Stored] = {}
    for file in weight_files(folder):
        for name, tensor in header(file).items():
            if name in tensors:
                raise DataError(
                    f"{folder}: {name} is in {tensors[name].file.name} and in {file.name}; keep "
                    "one "
                    "of them"
                )
            if not _BUFFER.fullmatch(name):
                tensors[name] = tensor
    packed = [name for name in tensors if _PACKED.fullmatch(name)]
    if packed:
        raise DataError(f"{folder}: quantized: it holds {some(packed)}; {QUANTIZED}")
    no_floats = [
        f"{name} is {tensor.dtype}"
        for name, tensor in tensors.items()
        if tensor.dtype not in FLOATS
    ]
    if no_floats:
        raise DataError(f"{folder}: not floats: {some(no_floats)}; {QUANTIZED}")
    adapters = [name for name in tensors if _ADAPTER.fullmatch(name)]
    if adapters:
        raise DataError(
            f"{folder}: holds adapters that were not merged: {some(adapters)}; call PEFT's "
            "merge_and_unload, then save it again"
        )
    if EMBEDDING not in tensors and EMBEDDING.removeprefix("model.") in tensors:
        tensors = {
            name if name == HEAD else f"model.{name}": tensor for name, tensor in tensors.items()
        }
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """Return the tensors' files. Raises DataError when one is missing."""
    if (folder / FILE).is_file():
        return [folder / FILE]
    index = folder / INDEX
    if not index.is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        if pickles:
            raise DataError(
                f"{folder}: holds {pickles[0]} and no safetensors; pickled weights are not read, "
                "because opening a pickle runs code: "
                "save them again with transformers: "
                "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER)"
            )
        raise DataError(
            f"{folder}: neither {FILE} nor {INDEX} is there; name a folder that save_pretrained "
            "wrote"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [folder / name for name in names]
    except (
        OSError,
        UnicodeDecodeError,
        json.JSONDecodeError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise DataError(f"{index}: not a readable index of tensors: {error!r}") from None
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{folder}: missing files: {some(missing)}; {INDEX} names them")
    return files


def holds_weights(folder: Path) -> bool:
    """Return whether a folder holds a finished save."""
    return any((folder / name).exists() for name in (FILE, INDEX))


def all_there(folder: Path) -> bool:
    """Return whether no file of a folder's tensors is missing."""
    try:
        return bool(weight_files(folder))
    except DataError:
        return False


def same_values(one: Stored, other: Stored) -> bool:
    """Return whether two tensors are equal bit for bit, holding some rows at a time."""
    from safetensors import SafetensorError, safe_open

    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    rows = max(1, _CHUNK_BYTES // (8 * max(1, int(np.prod(one.shape[1:])))))
    for start in range(0, one.shape[0], rows):
        parts = []
        for tensor in (one, other):
            try:
                # Opened for each part: the pages of a file stay in memory as long as it is open.
                with safe_open(tensor.file, framework="np") as opened:
                    parts.append(
                        opened.get_slice(tensor.name)[
                            start : min(start + rows, one.shape[0])
                        ].tobytes()
                    )
            except (OSError, SafetensorError) as error:
                raise DataError(f"{tensor.file}: {tensor.name} cannot be read: {error}") from None
        if parts[0] != parts[1]:
            return False
    return True


def widest_dtype(tensors: Iterable[Stored]) -> str:
    """Return the smallest float dtype that represents the values of all tensors."""
    import jax.numpy as jnp

    names = {FLOATS[tensor.dtype] for tensor in tensors}
    if (
        "float64" in names or not names
    ):  # which jax, as it is set up here, would cut to float32 without a word
        return "float64" if names else "float32"
    widest = jnp.dtype(names.pop())
    for name in names:
        widest = jnp.promote_types(widest, name)
    return str(widest)


def wrapped_by(unknown: Sequence[str], missing: Sequence[str]) -> str | None:
    """Return the prefix that all unknown names have before the missing ones; else None."""
    for name in unknown[:1]:
        for known in missing:
            if name.endswith(f".{known}"):
                prefix = name.removesuffix(known)
                if {each.removeprefix(prefix) for each in unknown} == set(missing):
                    return prefix
    return None


def some(names: Sequence[str]) -> str:
    """Return the first names of a list, for an error message."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def header(file: Path) -> dict[str, Stored]:
    """Return every tensor of a file, without its values."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            names = opened.keys()
            cuts = {name: opened.get_slice(name) for name in names}
            return {
                name: Stored(file, name, tuple(cut.get_shape()), cut.get_dtype())
                for name, cut in cuts.items()
            }
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: not a whole safetensors file: {error}") from None
