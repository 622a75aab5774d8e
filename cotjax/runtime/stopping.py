"""Ending every process of a run when one cannot go on.

    stop_all("no such folder", 2)    # every process prints why, and ends

Without it the others would wait for the failed one at the next barrier or collective.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from functools import cache
from typing import Any

import jax

from cotjax.errors import CotjaxError
from cotjax.runtime.distributed import client, count, first, own_process, several
from cotjax.runtime.terminal import visible

_POLL_S = 0.5
_FAREWELL_S = 5.0  # time that process 0 waits for the others to see that the run stops
_STOPPED = "cotjax/stopped"  # folder of keys: one for each process that stops


def stop_all(message: str, exit_code: int) -> None:
    """End every process of the run with this exit code; the others print the message.

    Alone, it does nothing and returns.
    """
    if not several():
        return
    stopped = {
        "message": message,
        "exit_code": exit_code,
        "process": own_process(),
        "host": socket.gethostname(),
    }
    with suppress(jax.errors.JaxRuntimeError):  # the coordinator may be gone already
        client().key_value_set(
            f"{_STOPPED}/{own_process()}", json.dumps(stopped), allow_overwrite=True
        )
        _wait_for_others(client())
    if sys.exception() is not None and not isinstance(sys.exception(), CotjaxError):
        traceback.print_exc()  # an unexpected error: exit_now skips the interpreter's own traceback
    exit_now(exit_code)


@cache
def watch() -> None:
    """Start to watch, once, for a `stop_all` of another process; it then ends this one too."""
    over = threading.Event()
    atexit.register(over.set)
    threading.Thread(target=_watch, args=(over,), daemon=True).start()


def exit_now(code: int) -> None:
    """End the process without the ordinary shutdown, in which jax waits for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _watch(over: threading.Event) -> None:
    process = own_process()
    while not over.wait(_POLL_S):
        try:
            stops = [json.loads(text) for _, text in client().key_value_dir_get(f"{_STOPPED}/")]
            if not stops or any(stop["process"] == process for stop in stops):
                continue
            client().key_value_set(
                f"{_STOPPED}/{process}", json.dumps(stops[0] | {"process": process})
            )
        except jax.errors.JaxRuntimeError:
            return  # the coordinator is gone: jax reports it and ends this process
        print(
            f"cotjax: process {stops[0]['process']} on {stops[0]['host']} stopped: "
            f"{visible(stops[0]['message'])}",
            file=sys.stderr,
            flush=True,
        )
        with suppress(jax.errors.JaxRuntimeError):
            _wait_for_others(client())
        exit_now(stops[0]["exit_code"])


def _wait_for_others(coordinator: Any) -> None:
    """Wait, in process 0, until the others have seen the stop: the coordinator ends with it."""
    until = time.monotonic() + _FAREWELL_S
    while (
        first()
        and len(coordinator.key_value_dir_get(f"{_STOPPED}/")) < count()
        and time.monotonic() < until
    ):
        time.sleep(0.1)
