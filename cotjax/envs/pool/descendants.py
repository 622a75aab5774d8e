"""Processes that environments start: they are killed, even when their parent has ended.

On Linux, an orphan goes to its nearest ancestor that adopts orphans, so neither a session of its
own nor a double fork hides it. Elsewhere only process groups are killed.
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

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# For killed processes to end.
_LONGEST_S = 5.0
_PAUSE_S = 0.002
_POLL_S = 0.5


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with(parent: int) -> None:
    """Have this process killed when its parent ends, even while it hangs or is stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it had ended before the call
            os._exit(1)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os._exit(1)


def children() -> set[int]:
    """Return the ids of this process's children, with zombies; none outside Linux."""
    return _children().get(os.getpid(), set())


def descendants() -> set[int]:
    """Return the ids of this process's children, of theirs, and so on; none outside Linux."""
    of = _children()
    found: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        new = of.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def _children() -> dict[int, set[int]]:
    """Return process -> its children."""
    of: dict[int, set[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            of.setdefault(parent, set()).add(int(stat.parent.name))
    return of


def end_group(leader: int) -> None:
    """Kill what is left of a process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def end_children(spared: Iterable[int]) -> None:
    """Kill and reap all children but the `spared`, and their descendants as they are adopted."""
    limit = time.monotonic() + _LONGEST_S
    while (pids := children() - set(spared)) and time.monotonic() < limit:
        _kill(pids)
        time.sleep(_PAUSE_S)
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def end_marked(variable: str, value: str) -> None:
    """Kill every process started with `variable` = `value` in its environment, and its forks.

    Linux only.
    """
    mark = f"\0{variable}={value}\0".encode()
    limit = time.monotonic() + _LONGEST_S
    while (pids := _marked(mark)) and time.monotonic() < limit:
        _kill(pids)
        time.sleep(_PAUSE_S)


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _marked(mark: bytes) -> set[int]:
    pids = set()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        # A process may have ended, or be another user's. A zombie's environment is empty.
        with contextlib.suppress(OSError):
            if mark in b"\0" + environ.read_bytes() + b"\0":
                pids.add(int(environ.parent.name))
    return pids - {os.getpid()}
