"""Ctrl-C and SIGTERM as requests: the loop finishes its step, saves, and ends.

SIGTERM is sent before a machine is preempted.
"""

from __future__ import annotations

import contextlib
import os
import signal

import jax
from jax.experimental import multihost_utils

from cotjax.errors import Stopped
from cotjax.runtime.signals import INTERRUPTED, at_interrupt, at_sigterm
from cotjax.runtime.stopping import stop_all

_NOTICE = "interrupted; this step is finished and saved first (Ctrl-C again stops at once)"


class StopRequest(contextlib.ExitStack):
    """Notes the first Ctrl-C, and SIGTERM, inside its block. A second Ctrl-C stops at once.

    With several processes jax handles SIGTERM, and makes all of them agree on one step, because
    machines may be preempted at different times. Ctrl-C in one of them is passed on as SIGTERM.

    stepping: whether there are steps to save; before that Ctrl-C stops at once.
    """

    def __init__(self):
        super().__init__()
        self.stepping = False
        self._terminated = self._interrupted = False
        if jax.process_count() == 1:
            self.enter_context(at_sigterm(self._terminate))
        self.enter_context(
            at_interrupt(self._interrupt, _NOTICE, lambda: stop_all("interrupted", INTERRUPTED))
        )

    def _terminate(self) -> None:
        if not self.stepping:
            raise Stopped("stopped by SIGTERM; finished work is kept, and the same command resumes")
        self._terminated = True

    def _interrupt(self) -> bool:
        if self.stepping and not self._interrupted:
            self._interrupted = True
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)
        return self.stepping

    def at(self, step: int) -> bool:
        """Return whether to stop after this step, the same in every process. Call it every step."""
        if jax.process_count() > 1:
            self._terminated |= multihost_utils.reached_preemption_sync_point(step)
        return self._terminated or (self._interrupted and jax.process_count() == 1)

    def check(self, step: int, steps: int) -> None:
        """Raise KeyboardInterrupt for Ctrl-C, or Stopped for SIGTERM, after `step` is saved."""
        saved = f"after step {step} of {steps}, which is saved; the same command resumes"
        if self._interrupted:
            raise KeyboardInterrupt(f"interrupted {saved}")
        if self._terminated:
            raise Stopped(f"stopped by SIGTERM {saved}")
