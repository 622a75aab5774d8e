"""Writes a trained checkpoint as a local Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from cotjax.errors import UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.sharding import make_mesh
from cotjax.model.weights import holds_weights, save_hf
from cotjax.train.checkpoint import Checkpoints


def export(run: Path, arm: str, step: int | None, out: Path) -> int:
    """Write checkpoint `step` (None: the last) of `arm` to `out` with its tokenizer; return the step.

    Raises UsageError when the run, the arm or the checkpoint is not there, or `out` holds a model already.
    """
    file = run / "model.json"
    if not file.exists():
        raise UsageError(f"{run}: nothing was trained here; give a run's folder, e.g. runs/demo")
    folder = run / "arms" / arm / "checkpoints"
    if not folder.exists():
        raise UsageError(f"{run}: no arm {arm!r}; there are {', '.join(sorted(path.name for path in (run / 'arms').iterdir()))}")
    if holds_weights(out):
        raise UsageError(f"{out} holds a model already; choose another folder with --out, or remove it")
    model = ModelConfig(**json.loads(file.read_text()))
    checkpoints = Checkpoints(folder)
    step = checkpoints.steps()[-1] if step is None else step
    save_hf(out, model, checkpoints.restore_params(step, model, make_mesh()))
    for file in sorted((run / "tokenizer").iterdir()):
        shutil.copyfile(file, out / file.name)
    return step
