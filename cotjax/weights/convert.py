"""A model's folder, of any kind, and from one to another.

    Hugging Face    config.json, model.safetensors whole or in indexed parts, the tokenizer's files
    Orbax           model.json (the fields of ModelConfig), params/ (an Orbax tree), token_ids.json (bos, eos and pad ids,
                    where they are known), the tokenizer's files
    PEFT            adapter_config.json, adapter_model.safetensors; read as its base with the adapters merged into it

The second kind is what a pod restores from: every process reads its own shards, from as many files
as there are.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from cotjax.data.codec import TOKENIZER_FILES
from cotjax.errors import UsageError
from cotjax.model import lora
from cotjax.model.config import ModelConfig
from cotjax.model.params import Params, abstract_params
from cotjax.model.sharding import make_mesh
from cotjax.runtime.files import atomic_folder, read_json, write_atomic
from cotjax.weights import peft
from cotjax.weights.generation import GENERATION_FILE, TOKEN_IDS_FILE, token_ids
from cotjax.weights.huggingface import MAX_SHARD_BYTES, Say, load_hf, read_hf, save_hf
from cotjax.weights.orbax import restore_tree, save_tree
from cotjax.weights.stored import holds_weights

HUGGING_FACE, ORBAX, PEFT = "Hugging Face", "Orbax", "PEFT"
OTHER = {
    HUGGING_FACE: ORBAX,
    ORBAX: HUGGING_FACE,
    PEFT: HUGGING_FACE,
}  # what `convert` makes of each
_CONFIG_FILES = {HUGGING_FACE: "config.json", ORBAX: "model.json"}
_PARAMS = "params"
# What transformers keeps beside the weights, and a model is not the same without.
_KEPT = (*TOKENIZER_FILES, GENERATION_FILE)


@dataclass(frozen=True)
class Converted:
    """What a conversion made."""

    parameters: int
    bytes: int  # of the parameters as they were written
    seconds: float


def folder_kind(folder: Path) -> str:
    """HUGGING_FACE, ORBAX or PEFT. Raises UsageError when the folder is none of them, saying what
    was looked for.
    """
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
    """Return the files that hold the parameters of a folder of any kind. Raises UsageError when it
    is none.
    """
    kind = folder_kind(folder)
    if kind == PEFT:
        return [
            folder / peft.CONFIG_FILE,
            folder / peft.TENSORS_FILE,
            *weight_files(base_of(folder)),
        ]
    found = folder.glob("*.safetensors") if kind == HUGGING_FACE else (folder / _PARAMS).rglob("*")
    return sorted(path for path in found if path.is_file())


def read_config(folder: Path, say: Say | None = None, **overrides: Any) -> ModelConfig:
    """The model in a folder of any kind; `overrides` are fields of ModelConfig. Raises UsageError
    or DataError.

    `say` is told where its tensors are not what its config.json says (weights.read_hf), and those
    are right.
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
    """The folder of the base that a PEFT folder's adapters belong to. Raises UsageError when it is
    not there.
    """
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
    """Return the folders where a model's files lie: its own, and behind it the base's where it is
    adapters.
    """
    return (folder, base_of(folder)) if folder_kind(folder) == PEFT else (folder,)


def tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer of a model's folder lies: there, or with the base of adapters."""
    if not (folder / "tokenizer.json").is_file() and folder_kind(folder) == PEFT:
        return base_of(folder)
    return folder


def load_params(folder: Path, mesh: Mesh, **overrides: Any) -> Params:
    """The parameters in a folder of any kind, read straight into their places on `mesh`. Raises
    UsageError or DataError.
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
    """Writes model.json, params/ and the known `token_ids` into a folder. On several processes
    every one must call it.
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
    """Writes the model of a folder of one kind as a folder of the other; adapters merged into their
    base, as Hugging Face's.

    `dtype` is what the parameters become (None: what the source's tensors are); `max_shard_bytes`
    is of a safetensors file. Each device of this process holds its share of the parameters in
    between. `out` appears when all of it is written.

    Raises UsageError when `source` is no model's folder or `out` holds something, DataError when
    the model cannot be read.
    """
    started = time.perf_counter()
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
            found = next((home / name for home in homes(source) if (home / name).is_file()), None)
            if found is not None:
                shutil.copyfile(found, partial / name)
    leaves = jax.tree.leaves(params)
    return Converted(
        sum(x.size for x in leaves), sum(x.nbytes for x in leaves), time.perf_counter() - started
    )
