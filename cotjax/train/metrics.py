"""The metrics of a run: a JSON line for each step, and where its time went."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from cotjax.data.pipeline import DROPPED
from cotjax.errors import DataError
from cotjax.masking import Role
from cotjax.model.config import ModelConfig
from cotjax.model.flops import attended_flops, peak_flops
from cotjax.runtime.files import disk_errors, write_atomic

# Keys of rows beside those of updates: each such row comes after the row of its step.
HELD_OUT, EVALUATED = "held_out", "evaluated"
# Metrics that every objective's step has; the others are pairs of (sum, weight).
_SHARED = ("loss", "by_role", "grad_norm", "tokens", "seen", "dropped")


class Clock:
    """Where the loop's time goes, in seconds, since the last lap and in total."""

    def __init__(self):
        self._started = self._lap = time.perf_counter()
        self._in_lap = {"input_wait": 0.0, "save_blocked": 0.0}
        self._in_total = dict(self._in_lap)

    @contextmanager
    def waiting(self, kind: str) -> Iterator[None]:
        """Count the block as waiting: "input_wait" for a batch, "save_blocked" for a save."""
        began = time.perf_counter()
        yield
        spent = time.perf_counter() - began
        self._in_lap[kind] += spent
        self._in_total[kind] += spent

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Leave the block out of all figures."""
        began = time.perf_counter()
        yield
        spent = time.perf_counter() - began
        self._lap += spent
        self._started += spent

    def lap(self, tokens: int, flops: float, peak: float | None) -> dict[str, float]:
        """Return the `time` of a row: all since the last lap.

        `flops` of the step and `peak` per second are those of all devices together.
        """
        now = time.perf_counter()
        seconds, self._lap = now - self._lap, now
        waits, self._in_lap = self._in_lap, dict.fromkeys(self._in_lap, 0.0)
        row = {"seconds": seconds, "tokens_per_s": tokens / seconds}
        if peak is not None:
            # A lap may be shorter than its step, when the host was delayed in the one before. So
            # one lap's MFU may exceed 1; their mean cannot.
            row["mfu"] = flops / seconds / peak
        row |= {f"{kind}_s": spent for kind, spent in waits.items()}
        return row | {"input_wait_share": waits["input_wait"] / seconds}

    def summary(self) -> str:
        """Return what the loop waited for, in percent of its time."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        saving, waiting = (
            100 * self._in_total[kind] / seconds for kind in ("save_blocked", "input_wait")
        )
        return (
            f"{seconds:.1f} s in the loop: saving blocked {saving:.1f} % of the time, "
            f"input wait {waiting:.1f} %"
        )


def all_peak() -> float | None:
    """Return the peak FLOP/s of all devices together; None when it is unknown."""
    peak = peak_flops(jax.devices()[0].device_kind)
    return None if peak is None else peak * jax.device_count()


def step_flops(model: ModelConfig, metrics: dict) -> float:
    """Return the FLOPs of a step, counted by `cotjax.model.flops`.

    NaN with LoRA, where the gradients of frozen weights are not computed.
    """
    return (
        math.nan
        if model.lora
        else attended_flops(model, int(metrics["tokens"]), int(metrics["seen"]))
    )


def as_row(step: int, metrics: dict, *, learning_rate: float, positions: int) -> dict:
    """Return the JSON row of a step's metrics, without its `time`.

    Losses are in nats per supervised token; roles without one are left out. A step without any
    supervised token, which a control may produce, has the loss None. Of another objective than the
    supervised one, `loss` is its own, `loss_by_role` the negative log-probability of what is
    trained on, and `objective` holds its other metrics (docs/objectives.md).

    Args:
      positions: positions of the whole batch, padding included.

    Raises:
      DataError: the loss or the gradient's norm is not finite.
    """
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    losses, weights = (np.asarray(totals) for totals in metrics["by_role"])
    for name, value in (("loss", loss), ("gradient's norm", norm)):
        if not math.isfinite(value):
            raise DataError(
                f"step {step}: the {name} is {value}; lower train.learning_rate or look at the "
                "data of this step"
            )
    tokens = int(metrics["tokens"])
    row = {
        "step": step,
        "loss": loss if weights.any() else None,
        "grad_norm": norm,
        "learning_rate": learning_rate,
        "tokens": tokens,
        "padding": 1 - tokens / positions,
        "supervised": {role.name: int(weights[role]) for role in Role if weights[role]},
        "loss_by_role": {
            role.name: float(losses[role] / weights[role]) for role in Role if weights[role]
        },
        "dropped": {
            name: int(count) for name, count in zip(DROPPED, metrics["dropped"], strict=True)
        },
    }
    more = {name: _mean(*metrics[name]) for name in metrics if name not in _SHARED}
    return row | ({"objective": more} if more else {})


def _mean(total: np.ndarray, weight: np.ndarray) -> float | dict[str, float] | None:
    """Return a metric's sum over its weight, by role if it has that shape; None without weight."""
    if np.ndim(total):
        return {role.name: float(total[role] / weight[role]) for role in Role if weight[role]}
    return float(total / weight) if weight else None


class MetricsFile:
    """Appends rows to a JSONL file; on a resume the rows of steps to be repeated are removed first.

    There are rows of updates, and rows of held-out losses (`held_out`) and of episodes that were
    played (`evaluated`), each after the row of its step. Of several processes all read the file, so
    that they agree on its content, and the first writes.

    losses: step -> loss of each update, nats; None where nothing was supervised.
    held_out: step -> held-out loss, nats, of the rows that were there at the resume.
    evaluated: steps whose row of episodes was there at the resume.

    Raises:
      DataError: a row up to the resumed step is missing, or the disk is full.
    """

    def __init__(self, path: str | Path, resume_step: int, held_out_at: Collection[int] = ()):
        """Open the file for a run that resumes after `resume_step` updates (-1: starts again).

        `held_out_at`: steps that have a held-out loss.
        """
        self._path = Path(path)
        rows = _all_rows(self._path) if self._path.exists() else []
        kept = [row for row in rows if row["step"] <= resume_step]
        updates = [row["step"] for row in kept if _of_update(row)]
        self.losses = {row["step"]: row["loss"] for row in kept if _of_update(row)}
        self.held_out = {row["step"]: row[HELD_OUT]["loss"] for row in kept if HELD_OUT in row}
        self.evaluated = {row["step"] for row in kept if EVALUATED in row}
        missing = {step for step in held_out_at if step <= resume_step} - self.held_out.keys()
        complete = updates == list(range(1, resume_step + 1))
        if not complete or missing:
            what = (
                f"the held-out loss of step {min(missing)}"
                if complete
                else f"the rows of steps 1 to {resume_step}, one each"
            )
            raise DataError(
                f"{self._path}: does not hold {what}, though there is a checkpoint of step "
                f"{resume_step}; restore the file, or move its folder away to train from the start"
            )
        self._out = None
        if jax.process_index() > 0:
            return
        text = "".join(json.dumps(row) + "\n" for row in kept)
        if not self._path.exists() or self._path.read_text() != text:
            write_atomic(self._path, text)
        self._out = self._path.open("a", buffering=1)

    def write(self, row: dict) -> None:
        """Append a row."""
        if _of_update(row):
            self.losses[row["step"]] = row["loss"]
        if self._out is None:
            return
        with disk_errors(self._path):
            self._out.write(json.dumps(row) + "\n")

    def sync(self) -> None:
        """Sync the rows to the disk; before a checkpoint is saved, so that none lacks its rows."""
        if self._out is None:
            return
        with disk_errors(self._path):
            os.fsync(self._out.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._out is not None:
            self._out.close()


def read_metrics(path: str | Path) -> list[dict]:
    """Return the rows of updates, without a last line that a kill cut short."""
    return [row for row in _all_rows(path) if _of_update(row)]


def read_held_out(path: str | Path) -> list[dict]:
    """Return the rows of held-out losses, without a last line that a kill cut short.

    {"step", "held_out": {"loss", "loss_by_role", "supervised", "examples"}, "time"}
    """
    return [row for row in _all_rows(path) if HELD_OUT in row]


def _of_update(row: dict) -> bool:
    return HELD_OUT not in row and EVALUATED not in row


def _all_rows(path: str | Path) -> list[dict]:
    rows = []
    for line in Path(path).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
