"""Writes a trained checkpoint as a local Hugging Face folder, or its LoRA adapters as PEFT's."""

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
from cotjax.train.checkpoint import Checkpoints
from cotjax.weights.convert import homes
from cotjax.weights.generation import GENERATION_FILE, generation_config, stopping_at
from cotjax.weights.huggingface import save_hf
from cotjax.weights.peft import save_peft
from cotjax.weights.stored import holds_weights

BASE_FILE = "base.json"


def export(run: Path, arm: str, step: int | None, out: Path, adapter: bool = False) -> int:
    """Write checkpoint `step` (None: the last) of `arm` to `out` with its tokenizer; return the step.

    The model generates as its base did (generation_config.json), and stops at the end of a turn, as it was trained. A run with
    LoRA leaves as a whole model, its adapters merged; with `adapter`, as the adapters alone in PEFT's layout.

    Raises UsageError when the run, the arm or the checkpoint is not there, `out` holds a model already, or adapters are asked for
    and there are none or no base that they could be loaded onto.
    """
    model, checkpoints, step = find_checkpoint(run, arm, step)
    if holds_weights(out) or (out / "adapter_model.safetensors").exists():
        raise UsageError(
            f"{out} holds a model already; choose another folder with --out, or remove it"
        )
    base = _base_name(run, model) if adapter else None
    params = checkpoints.restore_params(step, model, make_mesh())
    if adapter:
        save_peft(out, model, params, base)
    else:
        generation = _generation_of(run)
        save_hf(
            out,
            *(lora.merge(model, params) if model.lora else (model, params)),
            token_ids=generation,
        )
        write_atomic(out / GENERATION_FILE, json.dumps(generation, indent=2) + "\n")
    for file in sorted((run / "tokenizer").iterdir()):
        shutil.copyfile(file, out / file.name)
    return step


def find_checkpoint(run: Path, arm: str, step: int | None) -> tuple[ModelConfig, Checkpoints, int]:
    """(model, the arm's checkpoints, step; the last where it is None). Raises UsageError when the run or the arm is not there."""
    file = run / "model.json"
    if not file.exists():
        raise UsageError(f"{run}: nothing was trained here; give a run's folder, e.g. runs/demo")
    folder = run / "arms" / arm / "checkpoints"
    if not folder.exists():
        raise UsageError(
            f"{run}: no arm {arm!r}; there are {', '.join(sorted(path.name for path in (run / 'arms').iterdir()))}"
        )
    checkpoints = Checkpoints(folder)
    steps = checkpoints.steps()
    if not steps:
        raise UsageError(f"{folder}: no checkpoint in it; run `cotjax train` first")
    return ModelConfig.from_saved(file), checkpoints, steps[-1] if step is None else step


def keep_base(run: Path, base: Path | None, tokenizer: Path, codec: Codec) -> None:
    """Write into a run what an export must know of the base (None: new weights), which may be gone by then: BASE_FILE.

    folder               where the base lies; null where its weights were new
    generation_config    the base's, with the end of a turn, as it was trained, among its eos ids
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
    found = (
        Tokenizer.from_file(str(tokenizer / "tokenizer.json")).token_to_id(token)
        if isinstance(token, str)
        else None
    )
    return () if found is None else (found,)


def _generation_of(run: Path) -> dict[str, Any]:
    """Return the generation config that `keep_base` kept, or would keep of a run that was begun before there was such a file."""
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
    """Return the folder of the base that the run's adapters were trained on."""
    if model.lora is None:
        raise UsageError(
            f"{run}: no adapters were trained here (model.lora_rank is 0); leave out --adapter"
        )
    kept = run / BASE_FILE
    base = read_json(kept, "cotjax")["folder"] if kept.is_file() else _base_of_config(run)
    if base is None:
        raise UsageError(
            f"{run}: its base was drawn at random and is in no folder that adapters could be loaded onto; leave out --adapter"
        )
    return str(base)
