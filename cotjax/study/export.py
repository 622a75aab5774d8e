"""Writes a trained checkpoint as a local Hugging Face folder, or its LoRA adapters as PEFT's."""

from __future__ import annotations

import shutil
from pathlib import Path

from cotjax.assets import BASE_FOLDER
from cotjax.errors import UsageError
from cotjax.files import read_json
from cotjax.model import lora
from cotjax.model.config import ModelConfig
from cotjax.model.sharding import make_mesh
from cotjax.model.stored import holds_weights
from cotjax.model.weights import save_hf
from cotjax.train.checkpoint import Checkpoints


def export(run: Path, arm: str, step: int | None, out: Path, adapter: bool = False) -> int:
    """Write checkpoint `step` (None: the last) of `arm` to `out` with its tokenizer; return the step.

    A run with LoRA leaves as a whole model, its adapters merged; with `adapter`, as the adapters alone in PEFT's layout.

    Raises UsageError when the run, the arm or the checkpoint is not there, `out` holds a model already, or adapters are asked for
    and there are none or no base that they could be loaded onto.
    """
    model, checkpoints, step = find_checkpoint(run, arm, step)
    if holds_weights(out) or (out / "adapter_model.safetensors").exists():
        raise UsageError(f"{out} holds a model already; choose another folder with --out, or remove it")
    base = _base_name(run, model) if adapter else None
    params = checkpoints.restore_params(step, model, make_mesh())
    if adapter:
        lora.save_peft(out, model, params, base)
    else:
        save_hf(out, *(lora.merge(model, params) if model.lora else (model, params)))
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
        raise UsageError(f"{run}: no arm {arm!r}; there are {', '.join(sorted(path.name for path in (run / 'arms').iterdir()))}")
    checkpoints = Checkpoints(folder)
    steps = checkpoints.steps()
    if not steps:
        raise UsageError(f"{folder}: no checkpoint in it; run `cotjax train` first")
    return ModelConfig.from_saved(file), checkpoints, steps[-1] if step is None else step


def _base_name(run: Path, model: ModelConfig) -> str:
    """The folder of the base that the run's adapters were trained on."""
    if model.lora is None:
        raise UsageError(f"{run}: no adapters were trained here (model.lora_rank is 0); leave out --adapter")
    base = read_json(run / "config.json", "cotjax")["model"]["base"]
    if base == "random":
        raise UsageError(f"{run}: its base was drawn at random and is in no folder that adapters could be loaded onto; leave out --adapter")
    return str(BASE_FOLDER if base == "package" else base)
