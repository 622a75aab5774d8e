"""A model's folder, of either kind, and from one to the other.

    Hugging Face    config.json, model.safetensors whole or in indexed parts, the tokenizer's files
    Orbax           model.json (the fields of ModelConfig), params/ (an Orbax tree), the tokenizer's files

The second kind is what a pod restores from: every process reads its own shards, from as many files as there are.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from cotjax.data.tokens import TOKENIZER_FILES
from cotjax.errors import DataError, UsageError
from cotjax.files import whole_folder, write_whole
from cotjax.model import decoder
from cotjax.model.config import ModelConfig
from cotjax.model.decoder import Params
from cotjax.model.sharding import make_mesh
from cotjax.model.weights import MAX_SHARD_BYTES, load_hf, save_hf
from cotjax.train.checkpoint import check_shapes

HUGGING_FACE, ORBAX = "Hugging Face", "Orbax"
_CONFIG_FILES = {HUGGING_FACE: "config.json", ORBAX: "model.json"}
_PARAMS = "params"
# What transformers keeps beside the weights, and a model is not the same without.
_KEPT = (*TOKENIZER_FILES, "generation_config.json")
# Arrays on their way between host and files at any one time; more than the largest single one (5 GB in a 70B model).
_HOST_GB = 8


@dataclass(frozen=True)
class Converted:
    """What a conversion made."""

    parameters: int
    bytes: int  # of the parameters as they were written
    seconds: float


def folder_kind(folder: Path) -> str:
    """HUGGING_FACE or ORBAX. Raises UsageError when the folder is neither, saying what was looked for."""
    kind = next((kind for kind, name in _CONFIG_FILES.items() if (folder / name).is_file()), None)
    if kind is None:
        raise UsageError(
            f"{folder}: holds neither config.json (a Hugging Face folder) nor model.json (the Orbax folder of `cotjax convert`)"
        )
    if kind == ORBAX and not (folder / _PARAMS).is_dir():
        hint = "; it is a run: `cotjax export` writes its checkpoints" if (folder / "arms").is_dir() else ""
        raise UsageError(f"{folder}: holds model.json but no {_PARAMS}/{hint}")
    return kind


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the parameters of a folder of either kind. Raises UsageError when it is neither."""
    found = folder.glob("*.safetensors") if folder_kind(folder) == HUGGING_FACE else (folder / _PARAMS).rglob("*")
    return sorted(path for path in found if path.is_file())


def read_config(folder: Path, **overrides: Any) -> ModelConfig:
    """The model in a folder of either kind; `overrides` are fields of ModelConfig. Raises UsageError or DataError."""
    if folder_kind(folder) == HUGGING_FACE:
        return ModelConfig.from_hf(folder, **overrides)
    return ModelConfig.from_saved(folder / _CONFIG_FILES[ORBAX], **overrides)


def load_params(folder: Path, mesh: Mesh, **overrides: Any) -> Params:
    """The parameters in a folder of either kind, read straight into their places on `mesh`. Raises UsageError or DataError."""
    if folder_kind(folder) == HUGGING_FACE:
        return load_hf(folder, mesh, **overrides)[1]
    like = decoder.abstract_params(read_config(folder, **overrides), mesh)
    saved = (folder / _PARAMS).resolve()
    try:
        check_shapes(saved, like)
        with ocp.StandardCheckpointer(restore_concurrent_gb=_HOST_GB) as checkpointer:
            return checkpointer.restore(saved, like)
    except (ValueError, KeyError, FileNotFoundError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{saved}: cannot be restored ({reason}); convert the model anew") from error


def save_orbax(folder: Path, config: ModelConfig, params: Params) -> None:
    """Writes model.json and params/ into a folder. On several processes every one must call it."""
    folder.mkdir(parents=True, exist_ok=True)
    with ocp.StandardCheckpointer(save_concurrent_gb=_HOST_GB) as checkpointer:
        checkpointer.save((folder / _PARAMS).resolve(), params)
    write_whole(folder / _CONFIG_FILES[ORBAX], json.dumps(asdict(config), indent=2) + "\n")


def convert(source: Path, out: Path, dtype: str | None = None, max_shard_bytes: int = MAX_SHARD_BYTES) -> Converted:
    """Writes the model of a folder of one kind as a folder of the other.

    `dtype` is what the parameters become (None: what they are); `max_shard_bytes` is of a safetensors file. Each device of
    this process holds its share of the parameters in between. `out` appears when all of it is written.

    Raises UsageError when `source` is no model's folder or `out` holds something, DataError when the model cannot be read.
    """
    started = time.perf_counter()
    overrides = {} if dtype is None else {"param_dtype": dtype}
    with whole_folder(out) as partial:
        kind, config = folder_kind(source), read_config(source, **overrides)
        params = load_params(source, make_mesh(data=1, fsdp=-1), **overrides)
        if kind == HUGGING_FACE:
            save_orbax(partial, config, params)
        else:
            save_hf(partial, config, params, max_shard_bytes)
        for name in _KEPT:
            if (source / name).is_file():
                shutil.copyfile(source / name, partial / name)
    leaves = jax.tree.leaves(params)
    return Converted(sum(x.size for x in leaves), sum(x.nbytes for x in leaves), time.perf_counter() - started)
