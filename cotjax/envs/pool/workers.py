"""The caller's end of all worker processes: requests go out at once, answers come in parallel."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from typing import Any

from cotjax.envs.base import Game
from cotjax.envs.pool.answers import (
    Fault,
    Request,
    Result,
    request_to_message,
    result_from_message,
)
from cotjax.envs.pool.messages import (
    Channel,
    MalformedMessageError,
    Wakeup,
    error_from_message,
)
from cotjax.envs.pool.processes import ForkServer
from cotjax.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """Time limits of an environment, in seconds.

    Attributes:
      start: to import and make itself.
      reset, step: to answer one such request.
    """

    start: float = 120.0
    reset: float = 60.0
    step: float = 60.0

    def of(self, request: Request) -> float:
        """Return the limit of a request."""
        return self.reset if isinstance(request, Game) else self.step

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:g} s" for name, seconds in asdict(self).items())


class Workers:
    """`count` worker processes for `slots` slots; slot s lives in worker s % count.

    Args:
      factory: pickled; makes one environment.
      restart_failed: whether a worker of one slot is ended after its environment has raised
        something unforeseen, so that the next request starts a fresh one. Workers of several slots
        have other games, and go on.
      wakeup: set by another thread to make a waiting `ask` raise UsageError.

    Attributes:
      lost: slot -> why its environment no longer holds its game; empty for slots that do.
    """

    def __init__(
        self,
        factory: bytes,
        slots: int,
        count: int,
        limits: Limits,
        restart_failed: bool,
        wakeup: Wakeup,
    ):
        self.lost: dict[int, str] = {}
        self._restart_failed, self._wakeup = restart_failed, wakeup
        self._server: ForkServer | None = ForkServer(factory, limits.start, wakeup)
        count = min(count, slots)
        self._workers = [
            _Worker(self._server, list(range(first, slots, count)), limits)
            for first in range(count)
        ]

    def ask(self, requests: Mapping[int, Request]) -> dict[int, Result]:
        """Return the results of one request a slot.

        A worker that dies, sends a malformed message or exceeds a time limit is ended; its slots
        are `lost` until they are reset. Any exception leaves answers on their way: close then.

        Raises:
          CotjaxError: the factory has failed.
          EnvError: no process can be started.
          UsageError: `wakeup` was set.
        """
        for slot, request in requests.items():
            if isinstance(request, Game):
                self.lost.pop(slot, None)
        results: dict[int, Result] = {}
        for worker in self._workers:
            try:
                worker.send({slot: requests[slot] for slot in worker.slots if slot in requests})
            except OSError:
                self._end(worker, results)
        while owing := [worker for worker in self._workers if worker.owed]:
            self._receive(owing, results)
        if self._restart_failed:
            for worker in self._workers:
                if len(worker.slots) == 1 and isinstance(results.get(worker.slots[0]), Fault):
                    worker.end(at_once=True)
        return results

    def _receive(self, owing: list[_Worker], results: dict[int, Result]) -> None:
        """Wait for the first answer or the first time limit, and handle all that is there."""
        first = min(worker.deadline for worker in owing)
        channels = [worker.channel.socket for worker in owing]
        ready = wait([self._wakeup.fileno(), *channels], timeout=max(0.0, first - time.monotonic()))
        if self._wakeup.fileno() in ready:
            raise UsageError("the pool is closed")
        for worker in owing:
            try:
                if worker.channel.socket in ready:
                    worker.receive(results)
                elif time.monotonic() > worker.deadline:
                    what = f"its worker gave no answer for {worker.limit:g} s and was restarted"
                    self._end(worker, results, what)
            except (EOFError, OSError):
                self._end(worker, results)
            except MalformedMessageError as error:
                what = f"its worker sent a malformed message ({error}) and was restarted"
                self._end(worker, results, what)

    def _end(self, worker: _Worker, results: dict[int, Result], what: str | None = None) -> None:
        """End a worker that is dead, or that did `what`; what it owes becomes faults."""
        code = worker.end(at_once=what is not None)
        what = what or f"its worker died (exit code {code})"
        self.lost |= dict.fromkeys(worker.slots, f"lost, {what}; reset the slot")
        results |= {slot: Fault(what) for slot, _ in worker.owed}
        worker.owed = []

    def pids(self) -> dict[int, int]:
        """Return the process id by slot, of workers that have been started."""
        return {slot: worker.pid for worker in self._workers if worker.pid for slot in worker.slots}

    def close(self) -> None:
        """Close the environments, and end the processes with all that they have started."""
        for worker in self._workers:
            if worker.owed:
                worker.end(at_once=True)  # it may hang, and nobody waits for its answer any more
            elif worker.pid:
                worker.channel.close()  # on which it ends by itself, as all others at the same time
        self._workers = []
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self._wakeup.close()


class _Worker:
    """The caller's end of one process, which is started when it is first needed.

    Attributes:
      pid: 0 while there is no process.
      channel: to the process, while there is one.
      owed: (slot, request) of the answers to come, in order.
      limit, deadline: seconds for the first of them, and when they are over (monotonic).
    """

    channel: Channel

    def __init__(self, server: ForkServer, slots: list[int], limits: Limits):
        self.slots, self.pid, self.limit, self.deadline = slots, 0, 0.0, 0.0
        self.owed: list[tuple[int, Request]] = []
        self._server, self._limits = server, limits
        self._ready = False
        # Numbers of the last request and of the last answer.
        self._asked = self._answered = 0

    def send(self, requests: Mapping[int, Request]) -> None:
        """Send all requests. Raises OSError, and what `ForkServer.spawn` raises."""
        self.owed = list(requests.items())
        if not requests:
            return
        if not self.pid:
            self.pid, self.channel = self._server.spawn(self.slots)
            self._ready = False
        self._answered = self._asked
        for slot, request in requests.items():
            self._asked += 1
            message = {"number": self._asked, "slot": slot, **request_to_message(request)}
            self.channel.send(message, timeout_s=self._limits.of(request))
        self._start_clock()

    def receive(self, results: dict[int, Result]) -> None:
        """Add the answers that have arrived to `results`.

        Raises MalformedMessageError for a message that answers no request of ours.
        """
        for message in self.channel.receive():
            try:
                self._handle(message, results)
            except (KeyError, TypeError, IndexError, ValueError) as error:
                what = f"{type(error).__name__} in {str(message)[:60]!r}"
                raise MalformedMessageError(what) from None
            self._start_clock()

    def _handle(self, message: dict[str, Any], results: dict[int, Result]) -> None:
        if not self._ready:
            if "error" in message:
                raise error_from_message(message["error"])
            self._ready = message["ready"]
            return
        slot, _ = self.owed[0]
        if (message["number"], message["slot"]) != (self._answered + 1, slot):
            raise MalformedMessageError("the answer to another request")
        results[slot] = result_from_message(message)
        self._answered += 1
        self.owed.pop(0)

    def _start_clock(self) -> None:
        if self.owed:
            _, request = self.owed[0]
            self.limit = self._limits.of(request) if self._ready else self._limits.start
            self.deadline = time.monotonic() + self.limit

    def end(self, at_once: bool) -> int | None:
        """End the process, at once or after time to close; returns its exit code if known."""
        if not self.pid:
            return None
        self.channel.close()
        pid, self.pid = self.pid, 0
        return self._server.end(pid, at_once)
