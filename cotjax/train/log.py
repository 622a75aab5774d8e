"""The rows that a run writes, and its end when a number in them is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from cotjax.errors import DataError
from cotjax.runtime.progress import Listener
from cotjax.train.failed import keep_failed
from cotjax.train.metrics import Clock, MetricsFile, all_peak, as_row, step_flops
from cotjax.train.run import Run
from cotjax.train.trackers import Trackers

Batch = Mapping[str, np.ndarray]


class Log:
    """Writes the rows of a run to metrics.jsonl and the trackers, and reports them.

    clock: where the loop's time goes.
    saved: the step of the newest checkpoint; a failed batch is kept with it.
    """

    def __init__(
        self,
        run: Run,
        folder: Path,
        schedule: optax.Schedule,
        file: MetricsFile,
        trackers: Trackers,
        listener: Listener,
        saved: int,
    ):
        self._run, self._folder, self._schedule = run, folder, schedule
        self._file, self._trackers, self._listener = file, trackers, listener
        self._peak = all_peak()
        self.clock = Clock()
        self.saved = saved

    def update(self, step: int, metrics: dict[str, jax.Array], batch: Batch) -> None:
        """Wait for a step's metrics and write their row.

        Raises:
          DataError: the loss or the gradient is not finite; the batch is kept.
        """
        settings = self._run.settings
        metrics = jax.device_get(metrics)
        try:
            row = as_row(
                step,
                metrics,
                learning_rate=float(self._schedule(step - 1)),
                positions=settings.batch * settings.row_length,
            )
        except DataError as error:
            raise self.failed(step, batch, str(error)) from None
        flops = step_flops(self._run.model, metrics)
        row["time"] = self.clock.lap(row["tokens"], flops, self._peak)
        self._write(row)
        self._listener.report(step, settings.steps, row)

    def held_out(self, row: dict[str, Any], batch: Batch | None) -> float:
        """Write the row of a held-out loss and return the loss.

        `batch` is that of the step before it; None before the first step.

        Raises:
          DataError: the loss is not finite; the batch is kept.
        """
        step, loss = row["step"], row["held_out"]["loss"]
        if not math.isfinite(loss):
            error = (
                f"step {step}: the held-out loss after it is {loss}; lower train.learning_rate or "
                "look at the held-out data"
            )
            raise DataError(error) if batch is None else self.failed(step, batch, error)
        self._write(row)
        roles = row["held_out"]["loss_by_role"].items()
        by_role = ", ".join(f"{role} {loss:.3f}" for role, loss in roles)
        self._listener.say(f"step {step}: held-out loss {loss:.4f} ({by_role})")
        return loss

    def failed(self, step: int, batch: Batch, error: str) -> DataError:
        """Keep a batch for `cotjax replay`, and return the error that ends the run."""
        about = self._run.bound() | {"checkpoint": self.saved, "error": error}
        kept = keep_failed(self._folder / "failed", step, batch, about)
        return DataError(f"{error}; its batch is kept: cotjax replay {kept}")

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(row)
        self._trackers.write(row)
