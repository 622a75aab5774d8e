"""The fork server's process: it makes one environment, then forks a worker per request.

Each worker has its own session and adopts the orphans among its descendants. The server adopts
what a dead worker leaves behind, and kills it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import select
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from cotjax.envs.base import TextEnv
from cotjax.envs.pool.descendants import (
    adopt_orphans,
    children,
    die_with,
    end_children,
    end_group,
)
from cotjax.envs.pool.messages import Channel, error_to_message
from cotjax.envs.pool.worker import as_package_error, serve
from cotjax.errors import CotjaxError

Factory: TypeAlias = Callable[[], TextEnv]

# For a worker that closes its environments and ends by itself.
GRACE_S = 2.0
# Between two looks at which processes have ended.
_POLL_S = 0.5
_PAUSE_S = 0.002


def run(fd: int, folder: str) -> None:
    """Serve requests on the socket `fd` until it closes; then end all workers.

    A request is a JSON object: {"slots": [...]}, with a worker's end of its channel passed along,
    answered by {"pid": ...} or {"error": ...}; {"end": pid, "at_once": bool}, answered by
    {"code": ...}; or {}, which ends the server.

    Args:
      fd: connected to the caller.
      folder: for temporary files; removed at the end.
    """
    parent = os.getppid()
    adopt_orphans()
    control = socket.socket(fileno=fd)
    workers = None
    try:
        with _ending_with(parent, folder):
            factory = _load_factory(control)
        workers = _Workers()
        # The garbage collector of a fork then leaves the pages of these objects shared.
        gc.collect()
        gc.freeze()
        while True:
            workers.reap()
            if select.select([control], [], [], _POLL_S)[0]:
                if not _answer(control, workers, factory):
                    return
            elif os.getppid() != parent:
                return
    finally:
        if workers:
            workers.end_all(GRACE_S)
        _exit(folder)


def _answer(control: socket.socket, workers: _Workers, factory: Factory | CotjaxError) -> bool:
    """Answer one request; returns whether to go on."""
    message, fds, *_ = socket.recv_fds(control, 1 << 16, 1)
    request: dict[str, Any] = json.loads(message or b"{}")
    answer: dict[str, Any]
    if "slots" in request:
        if isinstance(factory, CotjaxError):
            answer = {"error": error_to_message(factory)}
        else:
            answer = {"pid": workers.fork(control, fds[0], factory, request["slots"])}
    elif "end" in request:
        answer = {"code": workers.end(request["end"], 0.0 if request["at_once"] else GRACE_S)}
    else:
        return False
    for fd in fds:
        os.close(fd)
    control.sendall(json.dumps(answer).encode())
    return True


@contextlib.contextmanager
def _ending_with(parent: int, folder: str) -> Iterator[None]:
    """While the first environment is made, which may hang, exit when the parent ends.

    The watching thread ends with the block, so that none is left at a fork.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_S):
            if os.getppid() != parent:
                _exit(folder, 1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _exit(folder: str, code: int = 0) -> None:
    end_children(spared=())
    # Only the folder that the caller made, by its name. tempfile.gettempdir() names the machine's
    # own folder once this one is gone.
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(code)


def _load_factory(control: socket.socket) -> Factory | CotjaxError:
    """Read the factory and make one environment, which imports what environments need.

    Returns the factory, or the error that prevents environments.
    """
    size = int.from_bytes(_read(control, 8), "big")
    try:
        factory: Factory = pickle.loads(_read(control, size))
        factory().close()
        return factory
    except Exception as error:
        return as_package_error(error)


def _read(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = end.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


class _Workers:
    """The server's children. A worker's own descendants end with it."""

    def __init__(self) -> None:
        self._alive: set[int] = set()
        self._codes: dict[int, int] = {}
        # What the import of the environment has started, such as a process that all workers share.
        self._shared = children()

    def fork(self, control: socket.socket, fd: int, factory: Factory, slots: list[int]) -> int:
        """Start a worker on its end of a channel; returns its process id."""
        server = os.getpid()
        pid = os.fork()
        if pid:
            self._alive.add(pid)
            return pid
        try:
            control.close()
            os.setsid()
            adopt_orphans()
            die_with(server)
            serve(Channel(socket.socket(fileno=fd)), factory, slots)
        finally:
            os._exit(0)

    def reap(self) -> None:
        """Reap workers that have ended, keep their exit codes, and kill what they left behind."""
        for pid in list(self._alive):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._alive.remove(pid)
                self._codes[pid] = os.waitstatus_to_exitcode(status)
                end_group(pid)
                end_children(spared=self._alive | self._shared)

    def end(self, pid: int, seconds: float) -> int | None:
        """Give a worker `seconds` to end, then kill it; returns its exit code if known."""
        self._wait(pid, time.monotonic() + seconds)
        if pid in self._alive:
            os.kill(pid, signal.SIGKILL)
            self._wait(pid, time.monotonic() + GRACE_S)
        return self._codes.pop(pid, None)

    def end_all(self, seconds: float) -> None:
        """Give all workers together `seconds` to end by themselves, then kill them."""
        limit = time.monotonic() + seconds
        for pid in list(self._alive):
            self._wait(pid, limit)
        for pid in list(self._alive):
            self.end(pid, 0.0)

    def _wait(self, pid: int, limit: float) -> None:
        while pid in self._alive and time.monotonic() < limit:
            self.reap()
            time.sleep(_PAUSE_S)
