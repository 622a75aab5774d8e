"""Many environments in a few worker processes: every slot's request goes out at once, the workers play in parallel.

A worker is a fresh interpreter that imports what `factory` needs and nothing of the caller's main module: no jax, and
no fork (unsafe once jax has started its threads). It ignores Ctrl-C, which is the parent's to handle, and ends when
the parent does, however the parent ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from cotjax.envs.base import Game, Observation, TextEnv
from cotjax.errors import CotjaxError, EnvError, UsageError

_START_SECONDS = 120.0  # for an interpreter to start and import an environment, on a busy machine
_BOOTSTRAP = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); import json; "
    "sys.path[:] = json.loads(sys.argv[2]); from cotjax.envs.pool import serve; serve(int(sys.argv[1]))"
)


class EnvPool:
    """`slots` environments made by `factory()`; slot s lives in worker s % workers.

    `factory` must be picklable and importable, e.g. `functools.partial(AlfworldEnv, max_steps=30)`. `workers` = 0 plays
    in this process, one slot after another, without time limits. `timeout`: a worker that owes answers and gives none
    for so many seconds is taken for hung.

    A worker that crashes or hangs is replaced. Requests it had not answered come back as EnvError values that name
    game and step; what its other slots were playing is lost too, and their next `step` returns an EnvError. `reset`
    makes any slot good again. Other errors of the package (DataError: a broken game file) are raised here, after every
    other answer of the same call has come in.
    """

    def __init__(self, factory: Callable[[], TextEnv], slots: int, workers: int, timeout: float = 60.0):
        if slots < 1 or workers < 0 or timeout <= 0:
            raise UsageError(f"a pool needs slots >= 1, workers >= 0 and timeout > 0: got {slots} slots, {workers} workers, {timeout} s")
        self._timeout = timeout
        self._games: dict[int, Game] = {}  # slot -> the game it was last reset to
        self._steps = dict.fromkeys(range(slots), 0)
        self._lost: dict[int, str] = {}  # slot -> why its game is gone
        self._workers: list[_Worker] = []
        self._closer = weakref.finalize(self, _close, self._workers)
        self._local: dict[int, TextEnv] = {}
        if workers == 0:
            self._local = {slot: factory() for slot in range(slots)}
        else:
            workers = min(workers, slots)
            self._workers += [_Worker(_pickled(factory), range(worker, slots, workers)) for worker in range(workers)]

    def reset(self, games: dict[int, Game]) -> dict[int, tuple[str, Observation] | EnvError]:
        """Start `games[slot]` in each slot; returns (task instruction, first observation) per slot."""
        for slot, game in games.items():
            if slot not in self._steps:
                raise UsageError(f"slot {slot}: the pool has slots 0 to {len(self._steps) - 1}")
            self._games[slot] = game
            self._steps[slot] = 0
            self._lost.pop(slot, None)
        return self._ask("reset", games)

    def step(self, actions: dict[int, str]) -> dict[int, Observation | EnvError]:
        """Send `actions[slot]` to each slot; returns what each slot observes."""
        for slot in actions:
            if slot not in self._games:
                raise UsageError(f"slot {slot}: step before reset")
            self._steps[slot] += 1
        lost = {slot: self._error(slot, self._lost[slot]) for slot in actions if slot in self._lost}
        return lost | self._ask("step", {slot: action for slot, action in actions.items() if slot not in lost})

    def close(self) -> None:
        """End every worker. The pool cannot be used afterwards."""
        for env in self._local.values():
            env.close()
        self._local = {}
        self._closer()

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _ask(self, method: str, arguments: dict[int, Any]) -> dict[int, Any]:
        if not self._local and not self._workers:
            raise UsageError("the pool is closed")
        if self._local:
            answers = {slot: _call(self._local[slot], method, argument) for slot, argument in arguments.items()}
        else:
            try:
                answers = self._ask_workers(method, arguments)
            except BaseException:  # Ctrl-C, a factory that fails: answers may still be on their way, so nothing can go on
                self.close()
                raise
        for slot, answer in answers.items():
            if isinstance(answer, _Failure):
                answers[slot] = self._error(slot, answer.what)
            elif isinstance(answer, CotjaxError) and not isinstance(answer, EnvError):
                raise answer
        return answers

    def _ask_workers(self, method: str, arguments: dict[int, Any]) -> dict[int, Any]:
        answers: dict[int, Any] = {}
        for worker in self._workers:
            worker.owed = [slot for slot in worker.slots if slot in arguments]
            if worker.owed:
                try:
                    worker.send([(slot, method, arguments[slot]) for slot in worker.owed], self._timeout)
                except OSError:
                    self._replace(worker, answers)
        while owing := [worker for worker in self._workers if worker.owed]:
            first = min(worker.deadline for worker in owing)
            speaking = wait([worker.connection for worker in owing], max(0.0, first - time.monotonic()))
            for worker in owing:
                if worker.connection in speaking:
                    try:
                        worker.receive(answers, self._timeout)
                    except (EOFError, OSError):
                        self._replace(worker, answers)
                elif time.monotonic() > worker.deadline:
                    self._replace(worker, answers, hung=True)
        return answers

    def _replace(self, worker: _Worker, answers: dict[int, Any], hung: bool = False) -> None:
        """Put a new process in a dead or hung worker's place, and account for what went down with it."""
        code = worker.end(at_once=hung)
        why = f"its worker gave no answer for {self._timeout:g} s and was replaced" if hung else f"its worker died (exit code {code})"
        for slot in worker.slots:
            self._lost[slot] = f"lost, {why}; reset the slot"
        for slot in worker.owed:
            answers[slot] = self._error(slot, why)
        worker.start()

    def _error(self, slot: int, what: str) -> EnvError:
        step = f"step {self._steps[slot]}" if self._steps[slot] else "reset"
        return EnvError(f"{self._games[slot].id}, {step} (slot {slot}): {what}")


class _Worker:
    """The parent's end of one worker process. `owed`: slots it has yet to answer for. `deadline`: monotonic seconds."""

    def __init__(self, factory: bytes, slots: range):
        self.slots = slots
        self._factory = factory
        self.owed: list[int] = []
        self.start()

    def start(self) -> None:
        self.owed = []
        self.ready = False
        self.deadline = time.monotonic() + _START_SECONDS
        self.connection, theirs = Pipe()
        with theirs:
            fd = theirs.fileno()
            command = [sys.executable, "-c", _BOOTSTRAP, str(fd), json.dumps([str(place) for place in sys.path])]
            self._process = subprocess.Popen(command, pass_fds=[fd], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.connection.send((self._factory, list(self.slots)))

    def send(self, requests: list[tuple[int, str, Any]], timeout: float) -> None:
        if self.ready:
            self.deadline = time.monotonic() + timeout
        self.connection.send(requests)

    def receive(self, answers: dict[int, Any], timeout: float) -> None:
        """Take one message: (slot, answer), or at the start (None, what kept the environments from being made or None)."""
        slot, answer = self.connection.recv()
        self.deadline = time.monotonic() + timeout
        if slot is not None:
            answers[slot] = answer
            self.owed.remove(slot)
        elif answer is None:
            self.ready = True
        else:
            raise answer

    def end(self, at_once: bool = False) -> int:
        """Stop the process, at once or when it has finished what it is at; returns its exit code."""
        self.connection.close()
        try:
            self._process.wait(timeout=0 if at_once else 2)
        except subprocess.TimeoutExpired:
            self._process.kill()
        return self._process.wait()


def _close(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()  # all at once: each ends by itself when it sees the pipe close
    while workers:
        workers.pop().end()


@dataclass(frozen=True)
class _Failure:
    """An exception that is not the package's own: its text, since not every exception can be sent between processes."""

    what: str


def _call(env: TextEnv, method: str, argument: Any) -> Any:
    """What the environment answers, or what it raised."""
    try:
        return getattr(env, method)(argument)
    except CotjaxError as error:
        return error
    except Exception as error:
        return _Failure(f"the environment failed ({type(error).__name__}: {error})")


def _pickled(factory: Callable[[], TextEnv]) -> bytes:
    try:
        return pickle.dumps(factory)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(f"a pool's factory must be picklable, such as functools.partial(AlfworldEnv): {error}") from error


def _made(pickled_factory: bytes, slots: list[int]) -> dict[int, TextEnv] | CotjaxError:
    try:
        factory = pickle.loads(pickled_factory)
        return {slot: factory() for slot in slots}
    except CotjaxError as error:
        return error
    except Exception as error:
        return UsageError(f"a pool worker could not make its environments ({type(error).__name__}: {error})")


def serve(fd: int) -> None:
    """A worker's life: make the environments, answer lists of (slot, method, argument), end when the pipe closes."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(EOFError, OSError), Connection(fd) as connection:
        envs = _made(*connection.recv())
        if isinstance(envs, CotjaxError):
            connection.send((None, envs))
            return
        connection.send((None, None))
        while True:
            for slot, method, argument in connection.recv():
                connection.send((slot, _call(envs[slot], method, argument)))


def _end_with_parent(parent: int) -> None:
    """A worker that hangs in an environment does not see its pipe close; it sees that its parent has changed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
