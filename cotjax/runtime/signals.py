"""Stop requests: Ctrl-C, and SIGTERM, which is sent before a machine is preempted."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from cotjax.errors import Stopped

INTERRUPTED = 130  # exit code after Ctrl-C, as in shells
_AT_ONCE_S = 2.0  # time that the main thread has to unwind after a second Ctrl-C


@contextlib.contextmanager
def at_sigterm(call: Callable[[], None]) -> Iterator[None]:
    """Call this at SIGTERM inside the block; the previous handler is restored afterwards.

    Only the main thread can set a handler; in another thread this does nothing.
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
    """Raise Stopped at SIGTERM inside the block.

    This suits work that writes its results as it goes. The training loop has its own handler.
    """

    def stop() -> None:
        raise Stopped("stopped by SIGTERM; finished work is kept, and the same command resumes")

    return at_sigterm(stop)


@contextlib.contextmanager
def at_interrupt(note: Callable[[], bool], notice: str, end: Callable[[], None]) -> Iterator[None]:
    """Call `note` at the first Ctrl-C inside the block; raise KeyboardInterrupt at the second.

    Python runs a signal handler between two of its instructions, so none runs while the main thread
    waits for a device or a compiler. A second thread therefore receives the signal too. It prints
    `notice` at once when `note` returns True. When the process is to stop and has not after
    `_AT_ONCE_S`, it calls `end` and exits.

    Only the main thread can set a handler; in another thread, or where Ctrl-C is ignored (in a
    shell's background), this does nothing.

    Args:
      note: records the request and returns True; or returns False when there is nothing to wait
        for, and the first Ctrl-C then raises KeyboardInterrupt. Called in either thread.
      notice: line for the user.
      end: called before the process exits without unwinding.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    interrupts = 0
    over = threading.Event()

    def handle(number: int, frame: object) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1 or not note():
            raise KeyboardInterrupt

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watcher = threading.Thread(target=_watch, args=(reading, over, note, notice, end), daemon=True)
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


def _watch(
    reading: int,
    over: threading.Event,
    note: Callable[[], bool],
    notice: str,
    end: Callable[[], None],
) -> None:
    """Read signal numbers from a wakeup pipe until a 0, and act as `at_interrupt` says."""
    interrupts = 0
    while (byte := os.read(reading, 1)) != b"\0":
        if byte[0] != signal.SIGINT:
            continue
        interrupts += 1
        if interrupts == 1 and note():
            os.write(2, f"cotjax: {notice}\n".encode())
        elif not over.wait(_AT_ONCE_S):
            os.write(
                2,
                b"cotjax: stopped at once; saved work is kept, and the same command resumes\n",
            )
            end()
            os._exit(INTERRUPTED)


@contextlib.contextmanager
def resend_swallowed_signals() -> Iterator[None]:
    """Re-deliver Ctrl-C or SIGTERM when the interpreter swallowed the exception it raised.

    Python ignores exceptions in garbage-collector callbacks (jax has one, which runs for long) and
    in `__del__`, so a signal that arrives in one would be lost.
    """
    before = sys.unraisablehook
    main = threading.main_thread().ident
    assert main is not None

    def resend(unraisable: sys.UnraisableHookArgs) -> None:
        numbers: dict[type, signal.Signals] = {
            KeyboardInterrupt: signal.SIGINT,
            Stopped: signal.SIGTERM,
        }
        number = numbers.get(unraisable.exc_type)
        if number is None:
            before(unraisable)
            return
        # After a moment, when the callback has returned.
        timer = threading.Timer(0.02, signal.pthread_kill, (main, number))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = resend
    try:
        yield
    finally:
        sys.unraisablehook = before


def caused_by_interrupt(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused an error: native code may replace it by an error of its own."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
