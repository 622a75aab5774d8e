"""Hugging Face checkpoints in and out: config.json and safetensors <-> (ModelConfig, params)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from cotjax.errors import DataError, UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.decoder import Params, Weight, declared, leaf, nest
from cotjax.model.sharding import param_shardings

# A parameter's name there is its path here joined by dots; this says how its values lie there. torch's Linear keeps
# [out, in] where ours keeps [in, out], and flattens heads into one axis.
_LIE: dict[str, str] = {
    "embed_tokens.weight": "same",
    "lm_head.weight": "same",
    "layernorm.weight": "same",
    "norm.weight": "same",
    "q_proj.weight": "turned",
    "k_proj.weight": "turned",
    "v_proj.weight": "turned",
    "o_proj.weight": "turned",
    "q_proj.bias": "same",
    "k_proj.bias": "same",
    "v_proj.bias": "same",
    "gate_proj.weight": "turned",
    "up_proj.weight": "turned",
    "down_proj.weight": "turned",
}

# The input axes of the projections whose input is not one axis.
_INPUT_AXES = {"o_proj.weight": 2}

_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def load_hf(folder: str | PathLike[str], mesh: Mesh | None = None, **overrides: Any) -> tuple[ModelConfig, Params]:
    """Reads a checkpoint folder as transformers writes it: config.json, and model.safetensors whole or in indexed parts.

    Each tensor goes to its devices before the next is read. `overrides` are ModelConfig fields such as `compute_dtype`.
    Raises DataError, naming the tensors, for one that is missing, unknown or of another shape, and for a broken file.
    """
    folder = Path(folder)
    config = ModelConfig.from_hf(folder, **overrides)
    theirs = {".".join(path): path for path in declared(config)}
    files = _files(folder)
    names = {name: file for file in files for name in _names(file)}
    if config.tied_embeddings:
        names.pop("lm_head.weight", None)  # some exports repeat the tied matrix; transformers passes over it too
    _refuse(folder, "missing", sorted(theirs.keys() - names.keys()))
    _refuse(folder, "unknown", sorted(names.keys() - theirs.keys()))

    shardings = None if mesh is None else param_shardings(config, mesh)
    loaded: dict[tuple[str, ...], jax.Array] = {}
    for file in files:
        for name, tensor in _tensors(file, [name for name in theirs if names[name] == file]):
            path = theirs[name]
            weight = declared(config)[path]
            stored = _shape_there(name, weight)
            if tensor.shape != stored:
                raise DataError(f"{file}: {name} has shape {tensor.shape}; config.json asks for {stored}")
            values = (tensor.T if _lie(name) == "turned" else tensor).reshape(weight.shape).astype(weight.dtype)
            loaded[path] = _place(values, None if shardings is None else leaf(shardings, path))
    return config, nest(loaded)


def save_hf(folder: str | PathLike[str], config: ModelConfig, params: Params) -> None:
    """Writes config.json and model.safetensors, which `load_hf` and transformers' from_pretrained read.

    Values keep their bits. On several processes every one must call it; the first writes. Raises UsageError for a model with
    LoRA's adapters, for which these files have no place.
    """
    from safetensors.numpy import save_file

    if config.lora is not None:
        raise UsageError("lora: this model has adapters; merge them first (lora.merge), or write them alone (lora.save_peft)")
    folder = Path(folder)
    tensors: dict[str, np.ndarray] = {}
    for path, weight in declared(config).items():
        name, values = ".".join(path), _gather(leaf(params, path))
        if values.shape != weight.shape:
            raise DataError(f"params: {name} has shape {values.shape}; the config asks for {weight.shape}")
        there = _shape_there(name, weight)
        values = values.reshape(there[::-1]).T if _lie(name) == "turned" else values.reshape(there)
        tensors[name] = np.ascontiguousarray(values)
    if jax.process_index() != 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    # A reader never meets half a file: each appears under its name once it is whole.
    partial = folder / f"{_FILE}.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, folder / _FILE)
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps(config.to_hf(), indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / "config.json")


def _files(folder: Path) -> list[Path]:
    """The files that hold the tensors, each there."""
    if (folder / _FILE).is_file():
        return [folder / _FILE]
    index = folder / _INDEX
    if not index.is_file():
        raise DataError(f"{folder}: neither {_FILE} nor {_INDEX} is there; name a folder that save_pretrained wrote")
    try:
        files = [folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index}: not a readable index of tensors: {error!r}") from None
    _refuse(folder, "missing", [file.name for file in files if not file.is_file()], what="files")
    return files


def _names(file: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: not a whole safetensors file: {error}") from None


def _tensors(file: Path, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            for name in names:
                yield name, opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: not a whole safetensors file: {error}") from None


def _refuse(folder: Path, kind: str, names: list[str], what: str = "tensors") -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise DataError(f"{folder}: {kind} {what}: {', '.join(names[:5])}{more}; is config.json of another model?")


def _lie(name: str) -> str:
    return _LIE[next(end for end in _LIE if name.endswith(end))]


def _shape_there(name: str, weight: Weight) -> tuple[int, ...]:
    """The shape that a tensor has in a checkpoint."""
    if _lie(name) == "same":
        return weight.shape if len(weight.axes) == 1 or weight.axes[0] == "vocab" else (int(np.prod(weight.shape)),)
    inputs = next((axes for end, axes in _INPUT_AXES.items() if name.endswith(end)), 1)
    return int(np.prod(weight.shape[inputs:])), int(np.prod(weight.shape[:inputs]))


def _place(values: np.ndarray, where: Any) -> jax.Array:
    if where is None:
        return jax.numpy.asarray(values)
    return jax.make_array_from_callback(values.shape, where, lambda index: values[index])


def _gather(x: Any) -> np.ndarray:
    """The whole array on the host, also where other processes hold parts of it."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)
