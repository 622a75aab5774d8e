"""Being asked to stop: Ctrl-C, and SIGTERM, which comes before a machine is taken away."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from cotjax.errors import Stopped

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
_AT_ONCE_S = 2.0  # how long the main thread may take to end by itself when it is to end at once


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
        raise Stopped(
            "stopped by SIGTERM; what is finished is kept, the same command goes on from it"
        )

    return at_sigterm(stop)


@contextlib.contextmanager
def at_interrupt(note: Callable[[], bool], said: str, end: Callable[[], None]) -> Iterator[None]:
    """Call `note` at the first Ctrl-C while inside, and raise KeyboardInterrupt at a second one, or where `note` returns False.

    Python runs a signal's handler between two of its instructions, and none run while the main thread waits for a device or a
    compiler. So a thread hears the signal too: it prints `said` at once where `note` returned True, and where the process is to
    stop and has not within `_AT_ONCE_S`, it calls `end` and ends the process.

    Only the main thread can listen; in another, or where Ctrl-C is ignored (as in a shell's background), this does nothing.

    Args:
      note: takes the request and returns True, or returns False where there is nothing to wait for. Called in either thread.
      end: what is to be done before the process ends without unwinding.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    heard, over = [0], threading.Event()

    def handle(number: int, frame: object) -> None:
        heard[0] += 1
        if heard[0] > 1 or not note():
            raise KeyboardInterrupt

    def watch() -> None:
        count = 0
        while (byte := os.read(reading, 1)) != b"\0":
            count += byte[0] == signal.SIGINT
            if byte[0] == signal.SIGINT and count == 1 and note():
                os.write(2, f"cotjax: {said}\n".encode())
            elif byte[0] == signal.SIGINT and not over.wait(_AT_ONCE_S):
                os.write(
                    2,
                    b"cotjax: stopped at once; what is saved is kept, the same command goes on from it\n",
                )
                end()
                os._exit(INTERRUPTED)

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    signal.signal(signal.SIGINT, handle)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGINT, before)
        os.write(writing, b"\0")
        watcher.join()
        os.close(reading)
        os.close(writing)


@contextlib.contextmanager
def never_unheard() -> Iterator[None]:
    """While inside, send Ctrl-C or SIGTERM again where the interpreter dropped what it raised.

    Python ignores exceptions in a callback of the garbage collector (jax has one, which runs for long) and in `__del__`; a signal
    that comes in there would be lost.
    """
    before = sys.unraisablehook

    def again(unraisable: sys.UnraisableHookArgs) -> None:
        number = {KeyboardInterrupt: signal.SIGINT, Stopped: signal.SIGTERM}.get(
            unraisable.exc_type
        )
        if number is None:
            before(unraisable)
        else:  # in a moment, when the callback is over
            sending = threading.Timer(
                0.02, signal.pthread_kill, (threading.main_thread().ident, number)
            )
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
