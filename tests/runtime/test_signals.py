"""Being asked to stop while the interpreter is where it ignores what is raised."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from cotjax.errors import Stopped
from cotjax.runtime.signals import (
    at_interrupt,
    caused_by_interrupt,
    resend_swallowed_signals,
    stop_at_sigterm,
)


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)]
)
def test_a_signal_in_a_garbage_collection_is_heard(number, raised):
    def collecting(phase, info):
        gc.callbacks.remove(collecting)
        signal.raise_signal(number)
        sum(range(10))  # the signal's handler runs between two instructions

    with contextlib.ExitStack() as inside:
        inside.enter_context(resend_swallowed_signals())
        inside.enter_context(stop_at_sigterm())
        inside.enter_context(pytest.raises(raised))
        gc.callbacks.append(collecting)
        gc.collect()
        time.sleep(20)
        pytest.fail("nothing was raised")


def test_other_errors_that_nobody_can_catch_go_where_they_went(monkeypatch):
    told = []
    monkeypatch.setattr("sys.unraisablehook", told.append)

    class Broken:
        def __del__(self):
            raise ValueError("broken")

    with resend_swallowed_signals():
        Broken()
    assert [unraisable.exc_type for unraisable in told] == [ValueError]


def test_what_a_library_makes_of_an_interrupt_is_one():
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise SystemError("returned a result with an exception set") from interrupt
    except SystemError as error:
        assert caused_by_interrupt(error)
    assert not caused_by_interrupt(ValueError()) and not caused_by_interrupt(None)


DEADLOCK = """
import ctypes
from cotjax.runtime.signals import at_interrupt
with at_interrupt(lambda: {patient}, "the step is finished first",
                  lambda: print("the others are told", flush=True)):
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    print("ready", flush=True)
    lock(mutex)
"""


@pytest.mark.parametrize("patient", [True, False])
def test_an_interrupt_is_heard_while_native_code_holds_the_main_thread(patient):
    """Twice when the first asks to finish a step, else once; no Python handler ever runs."""
    command = [sys.executable, "-c", DEADLOCK.format(patient=patient)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)  # until the main thread waits for the lock
        process.send_signal(signal.SIGINT)
        if patient:
            assert process.stderr.readline() == "cotjax: the step is finished first\n"
            process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "the others are told\n"
    assert said == "cotjax: stopped at once; saved work is kept, and the same command resumes\n"


def test_the_first_interrupt_is_noted_and_the_second_raised(capfd):
    before = signal.getsignal(signal.SIGINT)
    noted = []
    with (
        pytest.raises(KeyboardInterrupt),
        at_interrupt(lambda: not noted.append(1), "first", lambda: None),
    ):
        os.kill(os.getpid(), signal.SIGINT)
        assert noted
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
    assert signal.getsignal(signal.SIGINT) is before and signal.set_wakeup_fd(-1) == -1
    assert capfd.readouterr().err.count("cotjax: first\n") == 1
    with pytest.raises(KeyboardInterrupt), at_interrupt(lambda: False, "never said", lambda: None):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
    assert "never said" not in capfd.readouterr().err


def test_where_interrupts_are_not_to_be_heard_they_are_not():
    """In a shell's background, and in another thread than the main one, which alone can listen."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with at_interrupt(lambda: pytest.fail("heard"), "", lambda: None):
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    entered = []

    def enter():
        with at_interrupt(lambda: True, "", lambda: None):
            entered.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [before]
