"""A call on a thread of its own, which an interrupted program does not wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def in_background(call: Callable[..., Any], *arguments: Any) -> Future:
    """Start `call` and return the future of its result.

    Executors join their threads, at the end of their block and again at the end of the program: Ctrl-C would be obeyed only when a
    hung environment has used up its time limits.
    """
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
