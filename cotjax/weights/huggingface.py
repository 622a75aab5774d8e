"""Hugging Face checkpoints: config.json and safetensors <-> (ModelConfig, params). Never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from cotjax.errors import DataError, UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.params import Params, Weight, declared, leaf, nest, param_shardings
from cotjax.weights.hf_config import config_from_hf, config_to_hf
from cotjax.weights.layout import Cut, as_declared, as_stored, stored_cut, stored_shape
from cotjax.weights.stored import (
    EMBEDDING,
    FILE,
    HEAD,
    INDEX,
    Stored,
    same_values,
    some,
    stored_tensors,
    widest_dtype,
    wrapped_by,
)

MAX_SHARD_BYTES = 4_000_000_000


Say = Callable[[str], None]  # takes a line for the user


def read_hf(folder: str | PathLike[str], say: Say | None = None, **overrides: Any) -> ModelConfig:
    """Return the model of a checkpoint folder: its config.json, corrected by what its tensors are.

    The output projection is tied only where the files hold none of its own, and `param_dtype` is
    one that all tensors' values fit in; `say` reports where config.json says otherwise.
    `overrides` are ModelConfig fields such as `compute_dtype`.

    Raises DataError, naming the tensors, for those missing, unknown, of another shape or not
    floats, and for a broken file.
    """
    return _open(Path(folder), say, overrides)[0]


def load_hf(
    folder: str | PathLike[str], mesh: Mesh | None = None, **overrides: Any
) -> tuple[ModelConfig, Params]:
    """Read a checkpoint folder as transformers writes it: config.json, and model.safetensors whole
    or in indexed parts.

    The model is that of `read_hf`, which checks names, shapes and dtypes against the files' headers
    before any tensor is read. Then each tensor goes to its devices before the next is read, and of
    each only the parts that this process's devices hold: the host's peak is at most two tensors
    more than this process's own share of the parameters. With `param_dtype` among the overrides,
    values are cast as they are read.

    Raises DataError as `read_hf`.
    """
    config, stored = _open(Path(folder), None, overrides)
    weights = {".".join(path): (path, weight) for path, weight in declared(config).items()}
    shardings = None if mesh is None else param_shardings(config, mesh)
    loaded: dict[tuple[str, ...], jax.Array] = {}
    for name in sorted(weights, key=lambda name: str(stored[name].file)):
        path, weight = weights[name]
        where = None if shardings is None else leaf(shardings, path)
        # Waited for: an array on its way to a device still takes its memory on the host.
        loaded[path] = place(_reader(name, weight, stored[name]), weight, where).block_until_ready()
    return config, nest({path: loaded[path] for path in declared(config)})


def save_hf(
    folder: str | PathLike[str],
    config: ModelConfig,
    params: Params,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    token_ids: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json and safetensors, which `load_hf` and transformers' from_pretrained read.

    `token_ids`: bos, eos and pad ids for config.json (hf_config.TOKEN_IDS).

    Up to `max_shard_bytes` go into model.safetensors; more go into numbered parts of at most that
    size (a larger tensor has a part of its own) and an index. One tensor at a time is gathered, and
    one part at a time held. Values keep their bits.

    What is written has its name only when all of it is there: until then a model that was in the
    folder stays whole, and an interrupted save leaves no more than `.partial` files, which the next
    save takes away. On several processes every one must call it; the first writes.

    Raises DataError when `params` are not of this config, UsageError for a `max_shard_bytes` below
    1 and for a model with LoRA's adapters, for which these files have no place.
    """
    if config.lora is not None:
        raise UsageError(
            "lora: this model has adapters; merge them first (lora.merge), or write them alone "
            "(weights.peft.save_peft)"
        )
    if max_shard_bytes < 1:
        raise UsageError(f"max_shard_bytes is {max_shard_bytes}; it must be 1 or more")
    folder = Path(folder)
    _check_params(config, params)
    parts = _parts(config, params, max_shard_bytes)
    writes = jax.process_index() == 0
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in (*folder.glob("model*.partial"), *folder.glob("config.json.partial")):
            left_over.unlink()
        partial_of(folder / "config.json").write_text(
            json.dumps(config_to_hf(config, token_ids), indent=2) + "\n", encoding="utf-8"
        )
    for file, names in parts.items():
        tensors = {}
        for name in names:
            values = gather(leaf(params, tuple(name.split("."))))
            if writes:
                tensors[name] = as_stored(name, declared(config)[tuple(name.split("."))], values)
        if writes:
            write_part(
                partial_of(folder / file), tensors, mode_of=partial_of(folder / "config.json")
            )
    if writes:
        _reveal(folder, parts, _sizes(config, params))
    if jax.process_count() > 1:
        # No process reads the folder before it is complete.
        multihost_utils.sync_global_devices("save_hf")


def stored_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of this config's checkpoint."""
    return {
        ".".join(path): stored_shape(".".join(path), weight)
        for path, weight in declared(config).items()
    }


# ---- reading


def _open(
    folder: Path, say: Say | None, overrides: Mapping[str, Any]
) -> tuple[ModelConfig, dict[str, Stored]]:
    """Return the model and its tensors by name, exactly those that it declares."""
    config = config_from_hf(
        folder, **overrides
    )  # first: what kind of model it is says more than what is missing
    stored = stored_tensors(folder)
    say = say or (lambda line: None)
    if config.tied_embeddings and HEAD in stored:
        if EMBEDDING not in stored:
            stored[EMBEDDING] = stored.pop(HEAD)  # the one matrix, under its other name
        elif same_values(stored[HEAD], stored[EMBEDDING]):
            del stored[HEAD]
        else:
            config = replace(config, tied_embeddings=False)
            say(
                f"{folder}: {HEAD} is not the embedding, though config.json says that they are "
                "tied; it is kept, and the model is untied"
            )
    _check(folder, stored, {".".join(path): weight for path, weight in declared(config).items()})
    dtype = widest_dtype(stored.values())
    if "param_dtype" in overrides or dtype == config.param_dtype:
        return config, stored
    if dtype == "float64":
        raise DataError(
            f"{folder}: its tensors are float64, which is not kept; choose another dtype (convert "
            "--dtype, model.param_dtype)"
        )
    say(
        f"{folder}: the tensors are {dtype} and are read as such, not as {config.param_dtype}, "
        "which is config.json's dtype"
    )
    return replace(config, param_dtype=dtype), stored


def _check(folder: Path, stored: Mapping[str, Stored], weights: Mapping[str, Weight]) -> None:
    """Raise one DataError for all tensors that do not match the config."""
    both = [name for name in weights if name in stored]
    shapes = [
        f"{name} has shape {stored[name].shape}; config.json asks for "
        f"{stored_shape(name, weights[name])}"
        for name in both
        if stored[name].shape != stored_shape(name, weights[name])
    ]
    missing, unknown = (
        sorted(weights.keys() - stored.keys()),
        sorted(stored.keys() - weights.keys()),
    )
    if missing == [HEAD] and not unknown:
        raise DataError(
            f"{folder}: missing tensors: {HEAD}, and config.json says that it is not tied to the "
            "embedding; "
            "save the whole model (AutoModelForCausalLM), or set tie_word_embeddings to true if "
            "it is"
        )
    before = wrapped_by(unknown, missing)
    if before is not None:
        raise DataError(
            f"{folder}: every name has {before!r} before it; save the model that is inside that "
            "wrapper"
        )
    wrong = [f"missing tensors: {some(missing)}"] if missing else []
    wrong += [f"unknown tensors: {some(unknown)}"] if unknown else []
    wrong += [f"wrong shapes: {some(shapes)}"] if shapes else []
    if wrong:
        raise DataError(f"{folder}: {'; '.join(wrong)}; is config.json of another model?")


def _reader(name: str, weight: Weight, stored: Stored) -> Callable[[Cut], np.ndarray]:
    """Return a function that reads part of a parameter from its file."""
    from safetensors import SafetensorError, safe_open

    def read(cut: Cut) -> np.ndarray:
        # Opened for each tensor: the pages of a file stay in memory as long as it is open.
        try:
            with safe_open(stored.file, framework="np") as opened:
                values = opened.get_slice(stored.name)[stored_cut(name, weight, cut)]
        except (OSError, SafetensorError) as error:
            raise DataError(f"{stored.file}: {stored.name} cannot be read: {error}") from None
        shape = [one.stop - one.start for one in cut]
        return as_declared(name, values, shape).astype(weight.dtype, copy=False)

    return read


def place(
    read: Callable[[Cut], np.ndarray], weight: Weight, where: NamedSharding | None
) -> jax.Array:
    """Return the sharded array; a part that several devices hold is read once."""
    if where is None:
        return jax.numpy.asarray(read(tuple(slice(0, size) for size in weight.shape)))
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def part(index: Cut | None) -> np.ndarray:
        cut = tuple(slice(None) for _ in weight.shape) if index is None else index
        bounds = tuple(one.indices(size)[:2] for one, size in zip(cut, weight.shape, strict=True))
        if bounds not in parts:
            parts[bounds] = read(tuple(slice(*bound) for bound in bounds))
        return parts[bounds]

    return jax.make_array_from_callback(weight.shape, where, part)


# ---- writing


def _check_params(config: ModelConfig, params: Params) -> None:
    """Raise DataError for a parameter of another shape than the config's."""
    for path, weight in declared(config).items():
        if leaf(params, path).shape != weight.shape:
            raise DataError(
                f"params: {'.'.join(path)} has shape {leaf(params, path).shape}; the config asks "
                f"for {weight.shape}"
            )


def _sizes(config: ModelConfig, params: Params) -> dict[str, int]:
    """Return the bytes of every tensor by its name."""
    return {
        ".".join(path): leaf(params, path).size * leaf(params, path).dtype.itemsize
        for path in declared(config)
    }


def _parts(config: ModelConfig, params: Params, max_bytes: int) -> dict[str, list[str]]:
    """Return file name -> its tensors, in the model's order."""
    parts: list[list[str]] = [[]]
    held = 0
    for name, size in _sizes(config, params).items():
        if parts[-1] and held + size > max_bytes:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += size
    if len(parts) == 1:
        return {FILE: parts[0]}
    return {
        f"model-{number:05d}-of-{len(parts):05d}.safetensors": names
        for number, names in enumerate(parts, 1)
    }


def partial_of(file: Path) -> Path:
    """Return a file's temporary name, until it is complete."""
    return file.with_name(file.name + ".partial")


def write_part(file: Path, tensors: dict[str, np.ndarray], mode_of: Path) -> None:
    """Write one safetensors file, with the mode of the file `mode_of`."""
    from safetensors.numpy import save_file

    save_file(tensors, file, metadata={"format": "pt"})
    os.chmod(file, mode_of.stat().st_mode)  # safetensors makes its files the owner's alone


def _reveal(folder: Path, parts: Mapping[str, list[str]], sizes: Mapping[str, int]) -> None:
    """Rename the finished files.

    The file that a reader opens first is deleted first and renamed last, so it never sees a
    mixture.
    """
    for name in (INDEX, FILE):
        (folder / name).unlink(missing_ok=True)
    for old in folder.glob("model-*-of-*.safetensors"):
        old.unlink()
    os.replace(partial_of(folder / "config.json"), folder / "config.json")
    for file in parts:
        os.replace(partial_of(folder / file), folder / file)
    if len(parts) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file for file in parts for name in parts[file]},
        }
        partial = partial_of(folder / INDEX)
        partial.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(partial, folder / INDEX)


def gather(x: Any) -> np.ndarray:
    """Return the whole array on the host, also where other processes hold parts of it."""
    if not isinstance(x, jax.Array):
        return np.asarray(x)
    if not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    values = np.empty(x.shape, x.dtype)
    for shard in x.addressable_shards:
        if shard.replica_id == 0:
            # An array keeps the copy on the host that it once gave: a fresh one of the same buffer
            # takes it along when it goes.
            fresh = jax.make_array_from_single_device_arrays(
                shard.data.shape, shard.data.sharding, [shard.data]
            )
            values[shard.index] = np.asarray(fresh)
    return values
