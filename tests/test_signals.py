"""Being asked to stop while the interpreter is where it ignores what is raised."""

import contextlib
import gc
import signal
import time

import pytest

from cotjax.errors import Stopped
from cotjax.signals import caused_by_interrupt, never_unheard, stop_at_sigterm


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)])
def test_a_signal_in_a_garbage_collection_is_heard(number, raised):
    def collecting(phase, info):
        gc.callbacks.remove(collecting)
        signal.raise_signal(number)
        sum(range(10))  # the signal's handler runs between two instructions

    with contextlib.ExitStack() as inside:
        inside.enter_context(never_unheard())
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

    with never_unheard():
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
