"""Models' folders of three kinds, read and converted; GGUF files, converted.

    Hugging Face  config.json, model.safetensors (one file or indexed parts), tokenizer files
    Orbax         model.json (the fields of ModelConfig), params/ (an Orbax tree), token_ids.json
                  (bos, eos and pad ids, where known), tokenizer files
    PEFT          adapter_config.json, adapter_model.safetensors; read merged into their base

A pod restores from an Orbax folder: every process reads its own shards, from many files.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from cotjax.data.codec import TOKENIZER_FILES
from cotjax.errors import UsageError
from cotjax.model import lora
from cotjax.model.config import ModelConfig
from cotjax.model.params import Params, abstract_params, declared
from cotjax.model.sharding import make_mesh
from cotjax.runtime.files import atomic_folder, read_json, write_atomic
from cotjax.weights import peft
from cotjax.weights.generation import GENERATION_FILE, TOKEN_IDS_FILE, token_ids
from cotjax.weights.gguf import convert_gguf
from cotjax.weights.gguf_file import is_gguf
from cotjax.weights.huggingface import MAX_SHARD_BYTES, Say, load_hf, read_hf, save_hf
from cotjax.weights.orbax import restore_tree, save_tree
from cotjax.weights.stored import holds_weights

HUGGING_FACE, ORBAX, PEFT, GGUF = "Hugging Face", "Orbax", "PEFT", "GGUF"
OTHER = {
    HUGGING_FACE: ORBAX,
    ORBAX: HUGGING_FACE,
    PEFT: HUGGING_FACE,
    GGUF: HUGGING_FACE,
}  # what `convert` makes of each
_CONFIG_FILES = {HUGGING_FACE: "config.json", ORBAX: "model.json"}
_PARAMS = "params"
# Files that transformers keeps next to the weights; a model is not the same without them.
_KEPT = (*TOKENIZER_FILES, GENERATION_FILE)


@dataclass(frozen=True)
class Converted:
    """The result of a conversion."""

    parameters: int
    bytes: int  # of the parameters as they were written
    seconds: float


def source_kind(source: Path) -> str:
    """Return GGUF for a GGUF file, else the folder's kind. Raises UsageError as `folder_kind`."""
    return GGUF if is_gguf(source) else folder_kind(source)


def folder_kind(folder: Path) -> str:
    """Return HUGGING_FACE, ORBAX or PEFT.

    Raises UsageError, naming the expected files, for any other folder, and for a GGUF file.
    """
    if is_gguf(folder):
        raise UsageError(
            f"{folder}: a GGUF file; make a folder of it first: cotjax convert {folder} FOLDER"
        )
    kind = next((kind for kind, name in _CONFIG_FILES.items() if (folder / name).is_file()), None)
    if (folder / peft.CONFIG_FILE).is_file() and (
        kind is None or (kind == HUGGING_FACE and not holds_weights(folder))
    ):
        return PEFT
    if kind is None:
        raise UsageError(
            f"{folder}: holds neither config.json (a Hugging Face folder) nor model.json (the "
            "Orbax folder of `cotjax convert`) "
            f"nor {peft.CONFIG_FILE} (PEFT's)"
        )
    if kind == ORBAX and not (folder / _PARAMS).is_dir():
        hint = (
            "; it is a run: `cotjax export` writes its checkpoints"
            if (folder / "arms").is_dir()
            else ""
        )
        raise UsageError(f"{folder}: holds model.json but no {_PARAMS}/{hint}")
    return kind


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder's parameters. Raises UsageError where it holds no model."""
    kind = folder_kind(folder)
    if kind == PEFT:
        return [
            folder / peft.CONFIG_FILE,
            folder / peft.TENSORS_FILE,
            *weight_files(base_of(folder)),
        ]
    files = folder.glob("*.safetensors") if kind == HUGGING_FACE else (folder / _PARAMS).rglob("*")
    return sorted(path for path in files if path.is_file())


def read_config(folder: Path, say: Say | None = None, **overrides: Any) -> ModelConfig:
    """Return the model of a folder of any kind; `overrides` are fields of ModelConfig.

    `say` receives a line where tensors differ from config.json (huggingface.read_hf); the tensors
    are right. Raises UsageError or DataError.
    """
    kind = folder_kind(folder)
    if kind == PEFT:
        base = read_config(base_of(folder), say, **overrides)
        peft.read_adapter(folder, base)
        return base
    if kind == HUGGING_FACE:
        return read_hf(folder, say, **overrides)
    return ModelConfig.from_saved(folder / _CONFIG_FILES[ORBAX], **overrides)


def base_of(folder: Path) -> Path:
    """Return the base's folder of a PEFT folder. Raises UsageError when it is missing."""
    named = read_json(folder / peft.CONFIG_FILE, "PEFT's save_pretrained").get(
        "base_model_name_or_path"
    )
    base = next(
        (path for path in (Path(str(named)), folder / str(named)) if named and path.is_dir()), None
    )
    if base is None:
        raise UsageError(
            f"{folder}: {peft.CONFIG_FILE} names the base {named!r}, which is no folder here; "
            "write there, "
            "as base_model_name_or_path, the folder that holds the base"
        )
    if folder_kind(base) == PEFT:
        raise UsageError(
            f"{folder}: its base {base} is adapters too; merge those first: cotjax convert {base} "
            "FOLDER"
        )
    return base


def homes(folder: Path) -> tuple[Path, ...]:
    """Return the folders of a model's files: its own, then for adapters their base's."""
    return (folder, base_of(folder)) if folder_kind(folder) == PEFT else (folder,)


def tokenizer_folder(folder: Path) -> Path:
    """Return the folder of a model's tokenizer: its own, or for adapters their base's."""
    if not (folder / "tokenizer.json").is_file() and folder_kind(folder) == PEFT:
        return base_of(folder)
    return folder


def load_params(folder: Path, mesh: Mesh, **overrides: Any) -> Params:
    """Read the parameters of a folder of any kind straight into their shards on `mesh`.

    Raises UsageError or DataError.
    """
    kind = folder_kind(folder)
    if kind == HUGGING_FACE:
        return load_hf(folder, mesh, **overrides)[1]
    if kind == PEFT:
        base = base_of(folder)
        config, params = read_config(base, **overrides), load_params(base, mesh, **overrides)
        return lora.merge(*peft.load_peft(folder, config, params, mesh))[1]
    return restore_tree(folder / _PARAMS, abstract_params(read_config(folder, **overrides), mesh))


def save_orbax(
    folder: Path, config: ModelConfig, params: Params, token_ids: Mapping[str, Any] | None = None
) -> None:
    """Write model.json, params/ and the known `token_ids` into a folder.

    On several processes every one must call it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tree(folder / _PARAMS, params)
    if token_ids:
        write_atomic(folder / TOKEN_IDS_FILE, json.dumps(dict(token_ids), indent=2) + "\n")
    write_atomic(folder / _CONFIG_FILES[ORBAX], json.dumps(asdict(config), indent=2) + "\n")


def convert(
    source: Path,
    out: Path,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    say: Say | None = None,
) -> Converted:
    """Convert a Hugging Face folder to Orbax, an Orbax folder to Hugging Face; merge a PEFT folder;
    dequantise a GGUF file to a Hugging Face folder.

    `dtype`: of the parameters (None: the source's; a GGUF file's become float32).
    `max_shard_bytes`: of a safetensors file. Each device of this process holds its share of the
    parameters in between; of a GGUF file one part of that size is held. `out` appears when it is
    complete.

    Raises UsageError when `source` is no model's folder or `out` is not empty, DataError when the
    model cannot be read.
    """
    started = time.perf_counter()
    if source_kind(source) == GGUF:
        return _convert_gguf(source, out, dtype or "float32", max_shard_bytes, say)
    overrides = {} if dtype is None else {"param_dtype": dtype}
    with atomic_folder(out) as partial:
        kind, config = folder_kind(source), read_config(source, say, **overrides)
        params = load_params(source, make_mesh(data=1, fsdp=-1), **overrides)
        ids = token_ids(homes(source)[-1])
        if OTHER[kind] == ORBAX:
            save_orbax(partial, config, params, ids)
        else:
            save_hf(partial, config, params, max_shard_bytes, ids)
        for name in _KEPT:
            kept = next((home / name for home in homes(source) if (home / name).is_file()), None)
            if kept is not None:
                shutil.copyfile(kept, partial / name)
    leaves = jax.tree.leaves(params)
    return Converted(
        sum(x.size for x in leaves), sum(x.nbytes for x in leaves), time.perf_counter() - started
    )


def _convert_gguf(
    source: Path, out: Path, dtype: str, max_shard_bytes: int, say: Say | None
) -> Converted:
    started = time.perf_counter()
    with atomic_folder(out) as partial:
        config, read = convert_gguf(source, partial, dtype, max_shard_bytes)
    if say is not None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in read.quantisations().items())
        say(f"{source}: {read.architecture}, {kinds} tensors, written as {dtype}")
    weights = declared(config).values()
    sizes = [(prod(weight.shape), weight.dtype.itemsize) for weight in weights]
    return Converted(
        sum(size for size, _ in sizes),
        sum(size * width for size, width in sizes),
        time.perf_counter() - started,
    )
