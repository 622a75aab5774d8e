"""Ctrl-C and SIGTERM as a request: the loop finishes its step, saves, and ends. What takes a machine away sends SIGTERM first."""

from __future__ import annotations

import contextlib
import os
import signal

import jax
from jax.experimental import multihost_utils

from cotjax.errors import Stopped
from cotjax.runtime.signals import INTERRUPTED, at_interrupt, at_sigterm
from cotjax.runtime.stopping import stop_all

_SAID = "interrupted; this step is finished and saved first (Ctrl-C again stops at once)"


class StopRequest(contextlib.ExitStack):
    """Notes the first Ctrl-C, and SIGTERM, while it is entered as a context. A second Ctrl-C stops at once.

    On several processes jax itself listens to SIGTERM, and has all of them agree on one step: a machine may be told before the
    others are. Ctrl-C in one of them is passed on as SIGTERM.

    stepping: whether there are steps to save; before that Ctrl-C stops at once.
    """

    def __init__(self):
        super().__init__()
        self.stepping = False
        self._terminated = self._interrupted = False
        if jax.process_count() == 1:
            self.enter_context(at_sigterm(self._terminate))
        self.enter_context(
            at_interrupt(self._interrupt, _SAID, lambda: stop_all("interrupted", INTERRUPTED))
        )

    def _terminate(self) -> None:
        if not self.stepping:
            raise Stopped(
                "stopped by SIGTERM; what is finished is kept, the same command goes on from it"
            )
        self._terminated = True

    def _interrupt(self) -> bool:
        if self.stepping and not self._interrupted:
            self._interrupted = True
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)
        return self.stepping

    def at(self, step: int) -> bool:
        """Whether to stop after this step; the same answer in every process. To be asked at each step."""
        if jax.process_count() > 1:
            self._terminated |= multihost_utils.reached_preemption_sync_point(step)
        return self._terminated or (self._interrupted and jax.process_count() == 1)

    def check(self, step: int, steps: int) -> None:
        """Raise what was asked for, when `step` is saved: KeyboardInterrupt for Ctrl-C, Stopped for SIGTERM; return where nothing was."""
        saved = f"after step {step} of {steps}, which is saved; the same command goes on"
        if self._interrupted:
            raise KeyboardInterrupt(f"interrupted {saved}")
        if self._terminated:
            raise Stopped(f"stopped by SIGTERM {saved}")
