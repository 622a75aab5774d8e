"""SIGTERM, which comes before a machine is taken away, as an exception."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from cotjax.errors import Stopped


@contextlib.contextmanager
def stop_at_sigterm() -> Iterator[None]:
    """Raise Stopped at SIGTERM, wherever the program is: for what has nothing to save because it writes as it goes.

    Training listens itself while its loop runs. Only the main thread can; in another this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped("stopped by SIGTERM; what is finished is kept, the same command goes on from it")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
