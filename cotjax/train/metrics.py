"""What a run says of itself: one JSON line a logged step."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from cotjax.errors import DataError
from cotjax.masking import Role


def as_row(step: int, metrics: dict, learning_rate: float, seconds: float) -> dict:
    """Device metrics of one step -> a JSON row. Losses are nats a supervised token; roles without one are left out.

    Raises:
      DataError: the loss is not finite, or nothing was supervised.
    """
    loss = float(metrics["loss"])
    weights = np.asarray(metrics["weight_by_role"])
    if weights.sum() == 0:
        raise DataError(f"step {step}: the batch holds no supervised token; check masking.supervised and the data's roles")
    if not math.isfinite(loss):
        raise DataError(f"step {step}: the loss is {loss}; lower train.learning_rate or look at the data of this step")
    losses = np.asarray(metrics["loss_by_role"])
    tokens = int(metrics["tokens"])
    return {
        "step": step,
        "loss": loss,
        "grad_norm": float(metrics["grad_norm"]),
        "learning_rate": learning_rate,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds if seconds > 0 else None,
        "supervised": {role.name: int(weights[role]) for role in Role if weights[role]},
        "loss_by_role": {role.name: float(losses[role] / weights[role]) for role in Role if weights[role]},
    }


class MetricsFile:
    """Appends rows to a JSONL file. On a resume, rows of steps that will be made again are cut off first."""

    def __init__(self, path: str | Path, resume_step: int):
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(self._path) if row["step"] <= resume_step] if self._path.exists() else []
        self._path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._out = self._path.open("a", buffering=1)

    def write(self, row: dict) -> None:
        self._out.write(json.dumps(row) + "\n")

    def close(self) -> None:
        self._out.close()


def read_metrics(path: str | Path) -> list[dict]:
    """The file's whole rows; a last line that was cut short by a kill is left out."""
    rows = []
    for line in Path(path).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
