"""Optional outputs for metrics rows: TensorBoard event files and Weights & Biases."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from cotjax.errors import UsageError
from cotjax.runtime.settings import flatten


def check_trackers(settings: Any) -> None:
    """Raise UsageError when a config asks for a tracker whose package is not installed."""
    for field, package in (("tensorboard", "tensorboardX"), ("wandb_project", "wandb")):
        if settings[field] and importlib.util.find_spec(package) is None:
            raise UsageError(
                f"train.{field} needs {package}, which is not installed: pip install {package}"
            )


class Trackers:
    """The trackers of one arm. Of several processes the first writes."""

    def __init__(self, settings: Any, folder: Path, about: Mapping[str, Any], resume_step: int):
        first = jax.process_index() == 0
        self._board = _tensorboard(folder, resume_step) if settings.tensorboard and first else None
        self._wandb = (
            _wandb(settings.wandb_project, folder, about)
            if settings.wandb_project and first
            else None
        )

    def write(self, row: dict) -> None:
        """Send one row; its parts are named as `loss_by_role/ACTION`."""
        values = {name: value for name, value in flatten(row, sep="/").items() if value is not None}
        step = values.pop("step")
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(values, step=step)

    def close(self) -> None:
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()


def _tensorboard(folder: Path, resume_step: int) -> Any:
    from tensorboardX import SummaryWriter

    # Rows of repeated steps are then shown once.
    return SummaryWriter(
        str(folder / "tensorboard"), purge_step=resume_step + 1 if resume_step else None
    )


def _wandb(project: str, folder: Path, about: Mapping[str, Any]) -> Any:
    import wandb

    # The same folder is the same run, also after a resume.
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return wandb.init(
        project=project,
        id=name,
        name=folder.name,
        dir=str(folder),
        config=dict(about),
        resume="allow",
    )
