"""A window of steps under jax's profiler, as the config's `train` section sets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax


class Profiler:
    """Traces `profile_steps` steps from `profile_start` on into `folder`, for XProf or Perfetto."""

    def __init__(self, settings: Any, folder: Path):
        self._first, self._end = (
            settings.profile_start,
            settings.profile_start + settings.profile_steps,
        )
        self._folder = folder
        self._running = False

    def before(self, step: int) -> None:
        """Start the trace if the window begins; call this before each step."""
        if step == self._first and step < self._end:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, metrics: Any) -> None:
        """End the trace if the window ends; call this after dispatching each step."""
        if self._running and step + 1 >= self._end:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """End a running trace, when the run stops within the window."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
