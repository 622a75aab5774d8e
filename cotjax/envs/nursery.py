"""Environment processes, made cheaply: one fresh interpreter imports the environment, and forks a process whenever one is asked for.

The nursery is a fresh interpreter because forking the caller is unsafe once jax has started its threads; its children are forks
because an import takes most of a second and 65 MB, and a fork neither. It ends with the caller, however the caller ends: it reads the
end of its pipe, ends its children, and removes the temporary folder that is theirs. Should it be killed itself, the kernel kills them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import pickle
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from cotjax import errors
from cotjax.envs.base import Game, TextEnv
from cotjax.envs.channel import Channel
from cotjax.errors import CotjaxError, EnvError, UsageError

_GRACE_S = 2.0  # for a process that ends by itself
_WATCH_S = 0.5  # between two looks at who has ended
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_BOOTSTRAP = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); import json; "
    "sys.path[:] = json.loads(sys.argv[2]); from cotjax.envs.nursery import tend; tend(int(sys.argv[1]))"
)


class Nursery:
    """The caller's end. `factory`: pickled; makes one environment. `seconds`: the most that a start may take."""

    def __init__(self, factory: bytes, seconds: float):
        self._factory, self._seconds = factory, seconds
        self._open()

    def bear(self, slots: list[int]) -> tuple[int, Channel]:
        """A new process that makes environments for these slots: its id, and its channel, on which `serve` answers.

        Raises:
          CotjaxError: what the factory raised.
          EnvError: no process can be started.
        """
        problem: OSError | None = None
        for _ in range(2):  # a nursery that was killed is opened again, once
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    answer = self._ask({"slots": slots}, theirs)
            except OSError as error:
                ours.close()
                problem = error
                self.close()
                self._open()
                continue
            if "error" in answer:
                ours.close()
                raise as_error(answer["error"])
            return answer["pid"], Channel(ours)
        raise EnvError(f"the process that starts the environments is gone ({problem}); look for what kills it, such as too little memory")

    def end(self, pid: int, at_once: bool) -> int | None:
        """Stop a process, at once or when it has had time to; returns its exit code, None when nobody knows it."""
        with contextlib.suppress(OSError):
            return self._ask({"end": pid, "at_once": at_once})["code"]
        return None

    def close(self) -> None:
        """End every process; idle ones whose channel is closed by now end by themselves."""
        with contextlib.suppress(OSError):
            self._control.settimeout(_GRACE_S)
            self._control.sendall(b"{}")
        self._control.close()
        try:
            self._process.wait(3 * _GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _open(self) -> None:
        self._control, theirs = socket.socketpair()
        self._temporary = tempfile.mkdtemp(prefix="cotjax-envs-")
        # One thread of linear algebra a process: environments need no more, and threads do not survive a fork.
        environment = os.environ | {"TMPDIR": self._temporary, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with theirs:
            fd = theirs.fileno()
            command = [sys.executable, "-c", _BOOTSTRAP, str(fd), json.dumps([str(place) for place in sys.path])]
            self._process = subprocess.Popen(command, pass_fds=[fd], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
        with contextlib.suppress(OSError):  # it died at once: `bear` finds out
            self._control.sendall(len(self._factory).to_bytes(8, "big") + self._factory)

    def _ask(self, request: dict[str, Any], passed: socket.socket | None = None) -> dict[str, Any]:
        """One request, one answer; both fit into a socket's buffer, and the nursery never speaks unasked."""
        self._control.settimeout(self._seconds)
        socket.send_fds(self._control, [json.dumps(request).encode()], [passed.fileno()] if passed else [])
        answer = self._control.recv(1 << 16)
        if not answer:
            raise ConnectionError("it has died")
        return json.loads(answer)


def tend(fd: int) -> None:
    """The nursery's life: import what `factory` needs by making one environment, then fork and end processes as asked."""
    parent, alive, codes = os.getppid(), set(), {}
    control = socket.socket(fileno=fd)
    try:
        problem, factory = _rehearsed(control)
        gc.collect()
        gc.freeze()  # the collector of a fork then leaves these objects' pages shared
        while True:
            _reap(alive, codes)
            if not select.select([control], [], [], _WATCH_S)[0]:
                if os.getppid() != parent:
                    return
                continue
            message, fds, *_ = socket.recv_fds(control, 1 << 16, 1)
            request = json.loads(message or b"{}")
            if "slots" in request and problem is None:
                pid = _fork(control, fds[0], factory, request["slots"])
                alive.add(pid)
                answer = {"pid": pid}
            elif "slots" in request:
                answer = {"error": as_message(problem)}
            elif "end" in request:
                answer = {"code": _ended(request["end"], request["at_once"], alive, codes)}
            else:
                return
            for passed in fds:
                os.close(passed)
            control.sendall(json.dumps(answer).encode())
    finally:
        limit = time.monotonic() + _GRACE_S
        while alive and time.monotonic() < limit and os.getppid() == parent:
            _reap(alive, codes)
            time.sleep(0.01)
        for pid in list(alive):
            _ended(pid, True, alive, codes)
        shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)
        os._exit(0)


def _rehearsed(control: socket.socket) -> tuple[CotjaxError | None, Callable[[], TextEnv] | None]:
    """(what keeps environments from being made, the factory)."""
    expected = int.from_bytes(_read(control, 8), "big")
    try:
        factory = pickle.loads(_read(control, expected))
        factory().close()
        return None, factory
    except CotjaxError as error:
        return error, None
    except Exception as error:
        return UsageError(f"a pool worker could not make its environments ({type(error).__name__}: {error})"), None


def _read(end: socket.socket, count: int) -> bytes:
    come = b""
    while len(come) < count:
        piece = end.recv(count - len(come))
        if not piece:
            raise EOFError
        come += piece
    return come


def _fork(control: socket.socket, fd: int, factory: Callable[[], TextEnv], slots: list[int]) -> int:
    nursery = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        control.close()
        _die_with(nursery)
        serve(Channel(socket.socket(fileno=fd)), factory, slots)
    finally:
        os._exit(0)


def _die_with(parent: int) -> None:
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


def _reap(alive: set[int], codes: dict[int, int]) -> None:
    """Let no process that has ended stay a zombie; its exit code is kept until it is asked for."""
    for pid in list(alive):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            alive.remove(pid)
            codes[pid] = os.waitstatus_to_exitcode(status)


def _ended(pid: int, at_once: bool, alive: set[int], codes: dict[int, int]) -> int | None:
    limit = time.monotonic() + (0 if at_once else _GRACE_S)
    while pid in alive and time.monotonic() < limit:
        _reap(alive, codes)
        time.sleep(0.002)
    if pid in alive:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        alive.remove(pid)
        codes[pid] = os.waitstatus_to_exitcode(status)
    return codes.pop(pid, None)


def serve(channel: Channel, factory: Callable[[], TextEnv], slots: list[int]) -> None:
    """A process's life: make the environments, answer [number, slot, method, argument] one by one, end when the channel closes.

    It first says {"ready": true}, or {"error": …}. An answer is {"number", "slot"} and one of "seen" (with "task" after a reset),
    "error" (the environment raised one of the package's errors) or "failure" (it raised something else: its text).
    """
    with contextlib.suppress(EOFError, OSError):
        try:
            envs = {slot: factory() for slot in slots}
        except Exception as error:
            known = error if isinstance(error, CotjaxError) else UsageError(f"an environment could not be made ({error!r})")
            channel.send({"error": as_message(known)})
            return
        channel.send({"ready": True})
        while True:
            for number, slot, method, argument in channel.receive():
                channel.send({"number": number, "slot": slot} | answered(envs[slot], method, argument))


def answered(env: TextEnv, method: str, argument: Any) -> dict[str, Any]:
    """What the environment answers, or what it raised, as a message."""
    try:
        if method == "reset":
            task, seen = env.reset(Game(**argument))
            return {"task": task, "seen": vars(seen)}
        return {"seen": vars(env.step(argument))}
    except CotjaxError as error:
        return {"error": as_message(error)}
    except Exception as error:
        return {"failure": f"the environment failed ({type(error).__name__}: {error})"}


def as_message(error: CotjaxError) -> list[str]:
    return [type(error).__name__, str(error)]


def as_error(message: list[str]) -> CotjaxError:
    """The error that was sent as a message; a class that cotjax.errors does not know becomes its base class."""
    name, text = message
    kind = getattr(errors, str(name), CotjaxError)
    return kind(str(text))
