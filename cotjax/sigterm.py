"""SIGTERM, which comes before a machine is taken away."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from cotjax.errors import Stopped


@contextlib.contextmanager
def at_sigterm(call: Callable[[], None]) -> Iterator[None]:
    """Call this at SIGTERM while inside; afterwards the signal is again whose it was.

    Only the main thread can listen; in another this does nothing: whoever started it stops it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: call())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop_at_sigterm() -> contextlib.AbstractContextManager[None]:
    """Raise Stopped at SIGTERM, wherever the program is: for what has nothing to save because it writes as it goes. Training
    listens itself while its loop runs.
    """

    def stop() -> None:
        raise Stopped("stopped by SIGTERM; what is finished is kept, the same command goes on from it")

    return at_sigterm(stop)
