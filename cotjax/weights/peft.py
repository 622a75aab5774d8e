"""LoRA adapters in PEFT's folder: adapter_config.json and adapter_model.safetensors. Never
pickle.
"""

from __future__ import annotations

import json
import os
import re
from math import prod
from os import PathLike
from pathlib import Path as FilePath

import jax
import numpy as np
from jax.sharding import Mesh

from cotjax.errors import DataError, UsageError
from cotjax.model.config import LoRA, ModelConfig
from cotjax.model.linear import LORA_FACTORS
from cotjax.model.lora import adapted_config, adapters_of, targets
from cotjax.model.params import (
    Params,
    Path,
    declared,
    join_params,
    leaf,
    nest,
    param_shardings,
    trainable_paths,
)
from cotjax.runtime.files import read_json
from cotjax.weights.hf_config import QUANTIZED
from cotjax.weights.huggingface import gather, partial_of, place, write_part
from cotjax.weights.stored import FLOATS, header, some

CONFIG_FILE, TENSORS_FILE = "adapter_config.json", "adapter_model.safetensors"

# Keys of adapter_config.json that do not change what a trained adapter computes. Of all others,
# also those that PEFT is yet to have, nothing but "off" is read.
_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
_READ = {"peft_type", "r", "lora_alpha", "target_modules", "init_lora_weights"}
# Ways to draw first values that leave the base as it is. The others (PiSSA, OLoRA, LoftQ, …) change
# it, and an adapter that was saved under their name belongs to that changed base.
_DRAWS = (True, False, "gaussian", "orthogonal", "eva")


def save_peft(
    folder: str | PathLike[str], config: ModelConfig, params: Params, base_name: str
) -> None:
    """Writes the adapters alone as `peft.PeftModel.from_pretrained(model, folder)` and `load_peft`
    read them.

    `base_name`: the folder or hub name of the base, for who reads the file; PEFT's AutoPeftModel
    loads it from there. Values keep their bits. On several processes every one must call it; the
    first writes. Raises UsageError without adapters.
    """
    lora = adapters_of(config)
    tensors: dict[str, np.ndarray] = {}
    for path in sorted(trainable_paths(config)):
        values = gather(leaf(params, path))
        tensors[_name_there(path)] = np.ascontiguousarray(
            values.reshape(_matrix_shape(config, path)).T
        )
    if jax.process_index() != 0:
        return
    alpha = lora.alpha
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": lora.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "target_modules": _target_modules(config),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    folder = FilePath(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # As in huggingface.save_hf, a reader never meets half a file.
    partial_of(folder / CONFIG_FILE).write_text(
        json.dumps(described, indent=2) + "\n", encoding="utf-8"
    )
    write_part(partial_of(folder / TENSORS_FILE), tensors, mode_of=partial_of(folder / CONFIG_FILE))
    for name in (TENSORS_FILE, CONFIG_FILE):
        os.replace(partial_of(folder / name), folder / name)


def read_adapter(folder: str | PathLike[str], config: ModelConfig) -> ModelConfig:
    """The config with the adapters of a folder that PEFT, or `save_peft`, wrote; their tensors'
    headers are read, not their values.

    Raises UsageError when the config has adapters already; DataError for an option that changes
    numbers in a way this decoder does not (DoRA, rsLoRA, biases, …), and, naming the tensors, for
    one that is missing, unknown or of another shape.
    """
    folder = FilePath(folder)
    config, file = adapted_config(config, _read_config(folder / CONFIG_FILE)), folder / TENSORS_FILE
    if not file.is_file():
        raise DataError(
            f"{file}: there is no such file; pickled adapters are not read, so save them with "
            "PEFT's safe_serialization=True"
        )
    try:
        names = {_name_there(path): path for path in sorted(trainable_paths(config))}
    except UsageError as error:
        raise DataError(f"{folder / CONFIG_FILE}: {error}") from None
    tensors = header(file)
    for kind, wrong in (
        ("missing", names.keys() - tensors.keys()),
        ("unknown", tensors.keys() - names.keys()),
    ):
        if wrong:
            raise DataError(
                f"{file}: {kind} tensors: {some(sorted(wrong))}; is the adapter of another model?"
            )
    for name, path in names.items():
        stored = _matrix_shape(config, path)[::-1]
        if tensors[name].shape != stored:
            raise DataError(
                f"{file}: {name} has shape {tensors[name].shape}; this model and {CONFIG_FILE} "
                f"ask for {stored}"
            )
        if tensors[name].dtype not in FLOATS:
            raise DataError(f"{file}: {name} is {tensors[name].dtype}; {QUANTIZED}")
    return config


def load_peft(
    folder: str | PathLike[str], config: ModelConfig, params: Params, mesh: Mesh | None = None
) -> tuple[ModelConfig, Params]:
    """Return the base with the adapters of a folder by PEFT or `save_peft`, in float32.

    Raises as `read_adapter`.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    config, file = read_adapter(folder, config), FilePath(folder) / TENSORS_FILE
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: not a whole safetensors file: {error}") from None
    shardings = None if mesh is None else param_shardings(config, mesh)
    adapters: dict[Path, jax.Array] = {}
    for path in sorted(trainable_paths(config)):
        weight = declared(config)[path]
        values = tensors[_name_there(path)].T.reshape(weight.shape).astype(weight.dtype)
        adapters[path] = place(
            values.__getitem__, weight, None if shardings is None else leaf(shardings, path)
        )
    return config, join_params(config, nest(adapters), params)


def _name_there(path: Path) -> str:
    return f"base_model.model.{'.'.join(path)}.weight"


def _matrix_shape(config: ModelConfig, path: Path) -> tuple[int, int]:
    """Return a factor's shape as one matrix, inputs first; PEFT stores the transpose."""
    rank = adapters_of(config).rank
    outer = prod(declared(config)[path].shape) // rank
    return (outer, rank) if path[-1] == LORA_FACTORS[0] else (rank, outer)


def _target_modules(config: ModelConfig) -> list[str]:
    """Return the targets as PEFT's list: last names where they suffice, else whole paths.

    PEFT would try the config's own expression on modules that are no projection, where
    `.*self_attn.*` fails.
    """
    paths = targets(config)
    names = {path[-1] for path in paths}
    alike = {path[:-1] for path in declared(config) if len(path) > 1 and path[-2] in names}
    return sorted(names) if alike == set(paths) else [".".join(path) for path in paths]


def _read_config(file: FilePath) -> LoRA:
    """Return the adapters of an adapter_config.json. Raises DataError for unsupported options."""
    read = read_json(file, "PEFT's save_pretrained")
    if read.get("peft_type") != "LORA":
        raise DataError(f"{file}: peft_type is {read.get('peft_type')!r}; only 'LORA' is supported")
    for key, value in read.items():
        off = value is None or value is False or value in ({}, [], "", "none")
        if key not in _READ | _WITHOUT_EFFECT and not off:
            raise DataError(
                f"{file}: {key} is {value!r}, which is not supported; merge this adapter with "
                "PEFT and load the whole model"
            )
    if read.get("init_lora_weights", True) not in _DRAWS:
        raise DataError(
            f"{file}: init_lora_weights is {read['init_lora_weights']!r}, which changes the base; "
            "save the adapter with PEFT's "
            "path_initial_model_for_weight_conversion"
        )
    missing = [key for key in ("r", "lora_alpha", "target_modules") if not read.get(key)]
    if missing:
        raise DataError(f"{file}: missing {', '.join(missing)}")
    modules = read["target_modules"]
    if isinstance(modules, list):
        # PEFT's meaning of a list: whole paths, or their ends.
        modules = rf"(.*\.)?({'|'.join(re.escape(str(name)) for name in modules)})"
    try:
        return LoRA(read["r"], read["lora_alpha"], modules)
    except (TypeError, UsageError) as error:
        raise DataError(f"{file}: {error}") from None
