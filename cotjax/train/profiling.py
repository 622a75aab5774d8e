"""A window of steps under jax's profiler, as the config's `train` section asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax


class Profiler:
    """Traces the steps `profile_start` .. `profile_start + profile_steps - 1` into `folder`, for XProf or Perfetto."""

    def __init__(self, settings: Any, folder: Path):
        self._first, self._end = (
            settings.profile_start,
            settings.profile_start + settings.profile_steps,
        )
        self._folder = folder
        self._running = False

    def before(self, step: int) -> None:
        """To be called before each step."""
        if step == self._first and step < self._end:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, metrics: Any) -> None:
        """To be called after each step is dispatched, with what it returns."""
        if self._running and step + 1 >= self._end:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """End a trace that is running, as when the run stops within its window."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
