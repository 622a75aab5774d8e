"""Being asked to stop: Ctrl-C, and SIGTERM, which comes before a machine is taken away."""

from __future__ import annotations

import contextlib
import signal
import sys
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


@contextlib.contextmanager
def never_unheard() -> Iterator[None]:
    """While inside, send Ctrl-C or SIGTERM again where the interpreter dropped what it raised.

    Python ignores exceptions in a callback of the garbage collector (jax has one, which runs for long) and in `__del__`; a signal
    that comes in there would be lost.
    """
    before = sys.unraisablehook

    def again(unraisable: sys.UnraisableHookArgs) -> None:
        number = {KeyboardInterrupt: signal.SIGINT, Stopped: signal.SIGTERM}.get(unraisable.exc_type)
        if number is None:
            before(unraisable)
        else:  # in a moment, when the callback is over
            sending = threading.Timer(0.02, signal.pthread_kill, (threading.main_thread().ident, number))
            sending.daemon = True
            sending.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def caused_by_interrupt(error: BaseException | None) -> bool:
    """Whether an error is what a library made of Ctrl-C: native code that Python calls back may say something else in its stead."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
