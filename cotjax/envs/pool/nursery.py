"""Environment processes, made cheaply: one fresh interpreter imports the environment, and forks a process whenever one is asked for.

The nursery is a fresh interpreter because forking the caller is unsafe once jax has started its threads; its children are forks
because an import takes most of a second and 65 MB, and a fork neither. It ends with the caller, however the caller ends: it reads the
end of its pipe, lets its children close their environments, ends those that take too long, and removes the temporary folder that is
theirs. Should it be killed itself, the kernel kills them.

Each child has a session of its own, and adopts the orphans among its descendants; the nursery adopts what a dead child leaves, and
kills it. What a killed nursery leaves, the caller knows by a variable in its environment, and kills.
"""

from __future__ import annotations

import codecs
import contextlib
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
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from typing import Any

from cotjax import errors
from cotjax.envs.base import Game, Observation, TextEnv
from cotjax.envs.pool.channel import Bell, Channel
from cotjax.envs.pool.descendants import (
    adopt_orphans,
    children,
    die_with,
    end_children,
    end_group,
    end_marked,
)
from cotjax.errors import CotjaxError, EnvError, UsageError
from cotjax.runtime.terminal import visible

_GRACE_S = 2.0  # for a process that closes its environments and ends by itself
_WATCH_S = 0.5  # between two looks at who has ended
_MOST_CHARACTERS = (
    1 << 20
)  # of an observation and its commands; a frame of a channel holds that many, however they are escaped
_MOST_SAID = 1000  # characters of an error's message
_MARK = "COTJAX_ENVIRONMENTS"  # in the environment of all that descends from a nursery: its temporary folder
_BOOTSTRAP = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); import json; "
    "sys.path[:] = json.loads(sys.argv[2]); from cotjax.envs.pool.nursery import tend; tend(int(sys.argv[1]), sys.argv[3])"
)


class Nursery:
    """The caller's end. `factory`: pickled; makes one environment. `seconds`: the most that a start may take.

    `bell`: when another thread rings it, a call that waits gives up.
    """

    def __init__(self, factory: bytes, seconds: float, bell: Bell):
        self._factory, self._seconds, self._bell = factory, seconds, bell
        self._open()

    def bear(self, slots: list[int]) -> tuple[int, Channel]:
        """A new process that makes environments for these slots: its id, and its channel, on which `serve` answers.

        Raises:
          CotjaxError: what the factory raised.
          EnvError: no process can be started.
          UsageError: the bell rang.
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
        raise EnvError(
            f"the process that starts the environments is gone ({problem}); look for what kills it, such as too little memory"
        )

    def end(self, pid: int, at_once: bool) -> int | None:
        """Stop a process, at once or when it has had time to; returns its exit code, None when nobody knows it."""
        with contextlib.suppress(OSError):
            return self._ask({"end": pid, "at_once": at_once})["code"]
        return None

    def close(self) -> None:
        """End every process; those whose channel is closed by now get time to close their environments."""
        with contextlib.suppress(OSError):
            self._control.settimeout(_GRACE_S)
            self._control.sendall(b"{}")
        self._control.close()
        try:
            # One that never answered is still making its first environment, and will not listen until it has.
            self._process.wait(3 * _GRACE_S if self._answered else 0.0)
        except subprocess.TimeoutExpired:
            end_group(self._process.pid)
            self._process.wait()
        if self._process.returncode:
            end_marked(_MARK, self._temporary)
        self._relaying.join(_GRACE_S)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _open(self) -> None:
        self._answered = False
        self._control, theirs = socket.socketpair()
        self._temporary = tempfile.mkdtemp(prefix="cotjax-envs-")
        # One thread of linear algebra a process: environments need no more, and threads do not survive a fork.
        environment = os.environ | {
            "TMPDIR": self._temporary,
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        environment[_MARK] = self._temporary
        said, their_stderr = os.pipe()
        self._relaying = threading.Thread(target=_relay, args=(said,), daemon=True)
        self._relaying.start()
        with theirs, open(their_stderr, "wb") as stderr:
            fd = theirs.fileno()
            command = [
                sys.executable,
                "-c",
                _BOOTSTRAP,
                str(fd),
                json.dumps([str(place) for place in sys.path]),
                self._temporary,
            ]
            # A session of its own: what kills the caller's process group leaves the nursery to clear up.
            self._process = subprocess.Popen(
                command, pass_fds=[fd], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, env=environment,
                start_new_session=True,
            )  # fmt: skip
        with contextlib.suppress(OSError):  # it died at once: `bear` finds out
            self._control.sendall(len(self._factory).to_bytes(8, "big") + self._factory)

    def _ask(self, request: dict[str, Any], passed: socket.socket | None = None) -> dict[str, Any]:
        """One request, one answer; both fit into a socket's buffer, and the nursery never speaks unasked."""
        self._control.settimeout(self._seconds)
        socket.send_fds(
            self._control, [json.dumps(request).encode()], [passed.fileno()] if passed else []
        )
        ready = wait([self._control, self._bell], self._seconds)
        if self._bell in ready:
            raise UsageError("the pool is closed")
        if not ready:
            raise TimeoutError(f"it gave no answer for {self._seconds:g} s")
        answer = self._control.recv(1 << 16)
        if not answer:
            raise ConnectionError("it has died")
        self._answered = True
        return json.loads(answer)


def _relay(fd: int) -> None:
    """Print what the environments write to their stderr, until the last of them has ended."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while piece := os.read(fd, 1 << 12):
        with contextlib.suppress(OSError, ValueError):  # the caller's own stderr is gone
            sys.stderr.write(visible(decoder.decode(piece)))
            sys.stderr.flush()
    os.close(fd)


def tend(fd: int, temporary: str) -> None:
    """The nursery's life: import what `factory` needs by making one environment, then fork and end processes as asked.

    `temporary`: the folder for temporary files, which goes with it.
    """
    parent = os.getppid()
    adopt_orphans()
    control = socket.socket(fileno=fd)
    brood = None
    try:
        with _watched(parent, temporary):
            problem, factory = _rehearsed(control)
        brood = _Brood()
        gc.collect()
        gc.freeze()  # the collector of a fork then leaves these objects' pages shared
        while True:
            brood.reap()
            if not select.select([control], [], [], _WATCH_S)[0]:
                if os.getppid() != parent:
                    return
                continue
            message, fds, *_ = socket.recv_fds(control, 1 << 16, 1)
            request = json.loads(message or b"{}")
            if "slots" in request and problem is None:
                answer = {"pid": brood.fork(control, fds[0], factory, request["slots"])}
            elif "slots" in request:
                answer = {"error": as_message(problem)}
            elif "end" in request:
                answer = {"code": brood.end(request["end"], _GRACE_S * (not request["at_once"]))}
            else:
                return
            for passed in fds:
                os.close(passed)
            control.sendall(json.dumps(answer).encode())
    finally:
        if brood:
            brood.end_all(_GRACE_S)
        _leave(temporary)


@contextlib.contextmanager
def _watched(parent: int, temporary: str) -> Iterator[None]:
    """While the first environment is made, which may hang, end with the caller. No thread is left to be forked."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_WATCH_S):
            if os.getppid() != parent:
                _leave(temporary, 1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _leave(temporary: str, code: int = 0) -> None:
    end_children(spared=())
    # By its name, never by tempfile.gettempdir(), which names the machine's own folder once this one is gone.
    shutil.rmtree(temporary, ignore_errors=True)
    os._exit(code)


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
        return UsageError(
            f"a pool worker could not make its environments ({type(error).__name__}: {error})"
        ), None


def _read(end: socket.socket, count: int) -> bytes:
    come = b""
    while len(come) < count:
        piece = end.recv(count - len(come))
        if not piece:
            raise EOFError
        come += piece
    return come


class _Brood:
    """The nursery's processes. Those of an environment end with the process that the environment was in."""

    def __init__(self):
        self._alive: set[int] = set()
        self._codes: dict[int, int] = {}
        self._own = (
            children()
        )  # what importing the environment started, such as a server that all of them share

    def fork(
        self, control: socket.socket, fd: int, factory: Callable[[], TextEnv], slots: list[int]
    ) -> int:
        nursery = os.getpid()
        pid = os.fork()
        if pid:
            self._alive.add(pid)
            return pid
        try:
            control.close()
            os.setsid()
            adopt_orphans()
            die_with(nursery)
            serve(Channel(socket.socket(fileno=fd)), factory, slots)
        finally:
            os._exit(0)

    def reap(self) -> None:
        """Let no process that has ended stay a zombie, nor leave any of its own; its exit code is kept until it is asked for."""
        for pid in list(self._alive):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._alive.remove(pid)
                self._codes[pid] = os.waitstatus_to_exitcode(status)
                end_group(pid)
                end_children(spared=self._alive | self._own)

    def end(self, pid: int, seconds: float) -> int | None:
        """Give a process `seconds` to end by itself, then kill it; returns its exit code, None when nobody knows it."""
        limit = time.monotonic() + seconds
        self._wait(pid, limit)
        if pid in self._alive:
            os.kill(pid, signal.SIGKILL)
            self._wait(pid, time.monotonic() + _GRACE_S)
        return self._codes.pop(pid, None)

    def end_all(self, seconds: float) -> None:
        limit = time.monotonic() + seconds
        for pid in list(self._alive):
            self._wait(pid, limit)
        for pid in list(self._alive):
            self.end(pid, 0.0)

    def _wait(self, pid: int, limit: float) -> None:
        while pid in self._alive and time.monotonic() < limit:
            self.reap()
            time.sleep(0.002)


def serve(channel: Channel, factory: Callable[[], TextEnv], slots: list[int]) -> None:
    """A process's life: make the environments, answer [number, slot, method, argument] one by one, close them when the channel closes.

    It first says {"ready": true}, or {"error": …}. An answer is {"number", "slot"} and one of "seen" (with "task" after a reset),
    "error" (the environment raised one of the package's errors) or "failure" (it raised something else: its text).
    """
    envs: dict[int, TextEnv] = {}
    try:
        with contextlib.suppress(EOFError, OSError):
            try:
                envs.update((slot, factory()) for slot in slots)
            except Exception as error:
                known = (
                    error
                    if isinstance(error, CotjaxError)
                    else UsageError(f"an environment could not be made ({error!r})")
                )
                channel.send({"error": as_message(known)})
                return
            channel.send({"ready": True})
            while True:
                for number, slot, method, argument in channel.receive():
                    channel.send(
                        {"number": number, "slot": slot} | answered(envs[slot], method, argument)
                    )
    finally:
        close_all(envs.values())


def close_all(envs: Iterable[TextEnv]) -> None:
    """Close every environment, whatever the closing of another one raises."""
    for env in envs:
        with contextlib.suppress(Exception):
            env.close()


def answered(env: TextEnv, method: str, argument: Any) -> dict[str, Any]:
    """What the environment answers, or what it raised, as a message."""
    try:
        if method == "reset":
            task, seen = env.reset(Game(**argument))
            return {"task": _checked_text(task, "task"), "seen": _checked(seen)}
        return {"seen": _checked(env.step(argument))}
    except (Exception, SystemExit) as error:
        # Only a reset can find that the game or the installation is broken; what a step raises is the environment's own.
        if isinstance(error, EnvError) or (isinstance(error, CotjaxError) and method == "reset"):
            return {"error": as_message(error)}
        return {"failure": f"the environment failed ({type(error).__name__}: {_said(error)})"}


def _checked(seen: Observation) -> dict[str, Any]:
    """The observation as a message. Raises TypeError or ValueError where it is none."""
    if not isinstance(seen, Observation):
        raise TypeError(f"it answered with {type(seen).__name__}, not an Observation")
    for name in ("won", "done", "accepted"):
        if getattr(seen, name) not in (True, False):
            raise TypeError(f"its {name} is {getattr(seen, name)!r}, neither true nor false")
    if seen.score is not None and not 0 <= seen.score <= 1:
        raise ValueError(f"its score is {seen.score!r}; it must be 0 to 1, or None")
    text = _checked_text(seen.text, "text")
    commands = seen.admissible_commands
    if commands is not None:
        commands = [_checked_text(one, "admissible command") for one in commands]
    if (length := len(text) + sum(map(len, commands or ()))) > _MOST_CHARACTERS:
        raise ValueError(f"it said {length:,} characters; at most {_MOST_CHARACTERS:,} are taken")
    return {
        "text": text,
        "admissible_commands": commands,
        "won": bool(seen.won),
        "done": bool(seen.done),
        "accepted": bool(seen.accepted),
        "score": None if seen.score is None else float(seen.score),
    }


def _checked_text(text: Any, what: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"its {what} is {type(text).__name__}, not str")
    return _clean(text)


def _clean(text: str) -> str:
    """The text, with U+FFFD for half surrogates, which no file and no tokenizer takes."""
    return (
        text
        if text.isascii()
        else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )


def as_message(error: CotjaxError) -> list[str]:
    return [type(error).__name__, _said(error)]


def _said(error: BaseException) -> str:
    return _clean(str(error))[:_MOST_SAID]


def as_error(message: list[str]) -> CotjaxError:
    """The error that was sent as a message; a class that cotjax.errors does not know becomes its base class."""
    name, text = message
    kind = getattr(errors, str(name), CotjaxError)
    return kind(str(text))
