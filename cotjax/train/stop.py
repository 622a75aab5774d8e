"""SIGTERM as a request: what takes a machine away sends it first, and the loop then saves and ends with `Stopped`."""

from __future__ import annotations

import contextlib

import jax
from jax.experimental import multihost_utils

from cotjax.signals import at_sigterm


class StopRequest(contextlib.ExitStack):
    """Notes SIGTERM while it is entered as a context.

    On several processes jax itself listens, and has all of them agree on one step: a machine may be told before the others are.
    """

    def __init__(self):
        super().__init__()
        self._noted = False
        if jax.process_count() == 1:
            self.enter_context(at_sigterm(self._note))

    def _note(self) -> None:
        self._noted = True

    def at(self, step: int) -> bool:
        """Whether to stop after this step; the same answer in every process. To be asked at each step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noted
