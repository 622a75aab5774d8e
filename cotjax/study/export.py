"""Write a trained checkpoint as a Hugging Face folder, or its LoRA adapters as a PEFT folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cotjax.assets import BASE_FOLDER
from cotjax.data.codec import Codec
from cotjax.errors import UsageError
from cotjax.model import lora
from cotjax.model.config import ModelConfig
from cotjax.model.sharding import make_mesh
from cotjax.runtime.files import read_json, write_atomic
from cotjax.runtime.members import member_folders
from cotjax.train.checkpoint import Checkpoints
from cotjax.weights.convert import homes
from cotjax.weights.generation import GENERATION_FILE, generation_config, stopping_at
from cotjax.weights.huggingface import save_hf
from cotjax.weights.peft import save_peft
from cotjax.weights.stored import holds_weights

BASE_FILE = "base.json"


def export(run: Path, arm: str, step: int | None, out: Path, adapter: bool = False) -> int:
    """Write a checkpoint with its tokenizer to `out`; return its step.

    The model keeps its base's generation_config.json, and also stops at the end of a turn, as it
    was trained to. LoRA adapters are merged into the base.

    Args:
      run, arm, step: the checkpoint; the last if `step` is None. Of an arm with several seeds,
        `arm` is a member, such as "named/seed-0".
      out: the folder to write.
      adapter: write only the LoRA adapters, in PEFT's layout.

    Raises:
      UsageError: there is no such run, arm or checkpoint, `out` holds a model already, or
        `adapter` is set but there are no adapters, or no base to load them onto.
    """
    model, checkpoints, step = find_checkpoint(run, arm, step)
    if holds_weights(out) or (out / "adapter_model.safetensors").exists():
        raise UsageError(
            f"{out} holds a model already; choose another folder with --out, or remove it"
        )
    base = _base_name(run, model) if adapter else None
    params = checkpoints.restore_params(step, model, make_mesh())
    if base is not None:
        save_peft(out, model, params, base)
    else:
        generation = _generation_of(run)
        if model.lora:
            model, params = lora.merge(model, params)
        save_hf(out, model, params, token_ids=generation)
        write_atomic(out / GENERATION_FILE, json.dumps(generation, indent=2) + "\n")
    for file in sorted((run / "tokenizer").iterdir()):
        shutil.copyfile(file, out / file.name)
    return step


def find_checkpoint(run: Path, arm: str, step: int | None) -> tuple[ModelConfig, Checkpoints, int]:
    """Return (model, the arm's checkpoints, step); the last step if `step` is None.

    Raises UsageError when there is no such run or arm.
    """
    file = run / "model.json"
    if not file.exists():
        raise UsageError(f"{run}: nothing was trained here; give a run's folder, e.g. runs/demo")
    arms = member_folders(run / "arms")
    if arm not in arms:
        raise UsageError(f"{run}: no arm {arm!r}; there are {', '.join(arms)}")
    folder = arms[arm] / "checkpoints"
    checkpoints = Checkpoints(folder)
    steps = checkpoints.steps()
    if not steps:
        raise UsageError(f"{folder}: no checkpoint in it; run `cotjax train` first")
    return ModelConfig.from_saved(file), checkpoints, steps[-1] if step is None else step


def keep_base(run: Path, base: Path | None, tokenizer: Path, codec: Codec) -> None:
    """Write BASE_FILE into a run: what an export needs of the base, which may be gone by then.

    folder               the base's folder; null when its weights were new (`base` is None)
    generation_config    the base's, with the end of a turn among its eos ids
    """
    write_atomic(
        run / BASE_FILE, json.dumps(_describe_base(base, tokenizer, codec), indent=2) + "\n"
    )


def _describe_base(base: Path | None, tokenizer: Path, codec: Codec) -> dict[str, Any]:
    generation: dict[str, Any] = {}
    for home in homes(base) if base else ():
        generation = generation_config(home) | generation
    usual = {"bos_token_id": codec.begin_ids, "pad_token_id": _pad_ids(tokenizer)}
    generation |= {
        key: ids[0] for key, ids in usual.items() if len(ids) == 1 and generation.get(key) is None
    }
    return {
        "folder": str(base.resolve()) if base else None,
        "generation_config": stopping_at(generation, codec.end_ids),
    }


def _pad_ids(tokenizer: Path) -> tuple[int, ...]:
    """Return the id of the padding token that tokenizer_config.json names, if it names one."""
    file = tokenizer / "tokenizer_config.json"
    named = read_json(file, "transformers").get("pad_token") if file.is_file() else None
    token = named.get("content") if isinstance(named, dict) else named
    number = (
        Tokenizer.from_file(str(tokenizer / "tokenizer.json")).token_to_id(token)
        if isinstance(token, str)
        else None
    )
    return () if number is None else (number,)


def _generation_of(run: Path) -> dict[str, Any]:
    """Return the generation config that `keep_base` wrote, or would write for an older run."""
    if (run / BASE_FILE).is_file():
        return read_json(run / BASE_FILE, "cotjax")["generation_config"]
    tokenizer, base = run / "tokenizer", _base_of_config(run)
    codec = Codec.load(tokenizer, read_json(run / "config.json", "cotjax")["data"]["template"])
    return _describe_base(base if base and base.is_dir() else None, tokenizer, codec)[
        "generation_config"
    ]


def _base_of_config(run: Path) -> Path | None:
    named = read_json(run / "config.json", "cotjax")["model"]["base"]
    return (
        None if named == "random" else BASE_FOLDER if named == "package" else Path(named).resolve()
    )


def _base_name(run: Path, model: ModelConfig) -> str:
    """Return the folder of the base of the run's adapters. Raises UsageError when there is none."""
    if model.lora is None:
        raise UsageError(
            f"{run}: no adapters were trained here (model.lora_rank is 0); leave out --adapter"
        )
    kept = run / BASE_FILE
    base = read_json(kept, "cotjax")["folder"] if kept.is_file() else _base_of_config(run)
    if base is None:
        raise UsageError(
            f"{run}: its base has random weights and is in no folder, so nothing can load the "
            "adapters; leave out --adapter"
        )
    return str(base)
