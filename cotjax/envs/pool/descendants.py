"""Processes that environments start: found and ended, even when the process that started them has ended.

On Linux an orphan goes to its nearest ancestor that adopts orphans, so no session and no double fork hides it. Elsewhere process
groups must do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_LONGEST_S = 5.0  # that a killed process may take to end
_PAUSE_S = 0.002
_WATCH_S = 0.5


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with(parent: int) -> None:
    """Have this process killed when its parent ends, even while it hangs or is stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call above
            os._exit(1)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(1)


def children() -> set[int]:
    """Return the ids of this process's children, zombies among them. Linux only: elsewhere the set is empty."""
    mine = str(os.getpid())
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            if stat.read_text(errors="replace").rpartition(")")[2].split()[1] == mine:
                found.add(int(stat.parent.name))
    return found


def end_group(leader: int) -> None:
    """Kill what is left of a process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def end_children(spared: Iterable[int]) -> None:
    """Kill and reap this process's children, and theirs as they are adopted, until none but the `spared` is left."""
    limit = time.monotonic() + _LONGEST_S
    while (left := children() - set(spared)) and time.monotonic() < limit:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def end_marked(variable: str, value: str) -> None:
    """Kill every process that was started with `variable` = `value` in its environment, and those it forked. Linux only."""
    mark = f"\0{variable}={value}\0".encode()
    limit = time.monotonic() + _LONGEST_S
    while (left := _marked(mark)) and time.monotonic() < limit:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)


def _marked(mark: bytes) -> set[int]:
    found = set()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(
            OSError
        ):  # ended meanwhile, or another user's; a zombie's is empty
            if mark in b"\0" + environ.read_bytes() + b"\0":
                found.add(int(environ.parent.name))
    return found - {os.getpid()}
