"""SIGTERM as a request: what takes a machine away sends it first, and the loop then saves and ends with `Stopped`."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Notes SIGTERM while it is entered as a context, and afterwards leaves the signal to whom it was.

    On several processes jax itself listens, and has all of them agree on one step: a machine may be told before the others are.
    """

    def __init__(self):
        self._noted = False
        self._before = None

    def __enter__(self) -> StopRequest:
        # Only the main thread may listen; where train runs in another, whoever started it stops it.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exc_info) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True

    def at(self, step: int) -> bool:
        """Whether to stop after this step; the same answer in every process. To be asked at each step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noted
