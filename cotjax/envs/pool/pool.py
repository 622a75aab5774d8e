"""Many environments in processes of their own: every slot's request goes out at once, the processes play in parallel.

An environment that crashes, hangs, or answers with what is no answer is replaced, and its game played again up to where it was:
games are deterministic, so the same actions lead to the same state, and a replay that answers otherwise is itself a fault. The
caller sees nothing of it but the time it took and `faults`, until a slot's retries are used up.

Environments are closed when the pool is; what they have started ends with them (`cotjax.envs.pool.descendants`).
"""

from __future__ import annotations

import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from typing import Any

from cotjax.envs.base import Game, Observation, TextEnv
from cotjax.envs.pool.channel import Bell, GarbledError
from cotjax.envs.pool.nursery import Nursery, answered, as_error, close_all
from cotjax.errors import CotjaxError, EnvError, UsageError

_PATIENCE_S = 0.5


@dataclass(frozen=True)
class Limits:
    """Seconds that an environment may take to start (import and make itself), to reset to a game, and to answer a step."""

    start: float = 120.0
    reset: float = 60.0
    step: float = 60.0


class EnvPool:
    """`slots` environments made by `factory()`; slot s lives in process s % workers, so `workers` = `slots` gives each its own.

    `factory` must be picklable and importable, e.g. `functools.partial(AlfworldEnv, max_steps=30)`. `workers` = 0 plays
    in this process, one slot after another, without time limits. `retries`: how often a slot's environment may fail in one
    episode and be replaced; the game is then replayed, action by action, and checked against what was seen before.

    A request that cannot be answered, its retries used up, comes back as an EnvError value that names game and step; the
    slot's later steps do too, until `reset` makes it good again. Other errors of the package (DataError: a broken game
    file) are raised here, after every other answer of the same call has come in.

    One thread asks at a time. `close` may be called by another, and the call that waits then raises UsageError.
    """

    def __init__(
        self,
        factory: Callable[[], TextEnv],
        slots: int,
        workers: int,
        limits: Limits | None = None,
        retries: int = 0,
    ):
        self._limits = limits or Limits()
        if slots < 1 or workers < 0 or retries < 0 or min(asdict(self._limits).values()) <= 0:
            raise UsageError(
                f"a pool needs slots >= 1, workers >= 0, retries >= 0 and time limits > 0: got {slots} slots, {workers} workers, "
                f"{retries} retries, {', '.join(f'{name} {seconds:g} s' for name, seconds in asdict(self._limits).items())}"
            )
        self._slots, self._retries = slots, retries
        self._plays: dict[int, _Play] = {}
        self._workers: list[_Worker] = []
        self._nurseries: list[Nursery] = []
        self._bell, self._asking, self._closed = Bell(), threading.RLock(), False
        self._closer = weakref.finalize(self, _close, self._workers, self._nurseries, self._bell)
        self._local: dict[int, TextEnv] = {}
        if workers == 0:
            self._local = {slot: factory() for slot in range(slots)}
            return
        workers = min(workers, slots)
        self._nurseries.append(Nursery(_pickled(factory), self._limits.start, self._bell))
        self._workers += [
            _Worker(self._nurseries[0], list(range(worker, slots, workers)), self._limits)
            for worker in range(workers)
        ]

    def reset(self, games: dict[int, Game]) -> dict[int, tuple[str, Observation] | EnvError]:
        """Start `games[slot]` in each slot; returns (task instruction, first observation) per slot."""
        for slot, game in games.items():
            if not 0 <= slot < self._slots:
                raise UsageError(f"slot {slot}: the pool has slots 0 to {self._slots - 1}")
            self._plays[slot] = _Play(game, [("reset", game)], retries=self._retries)
        return self._settle(games)

    def step(self, actions: dict[int, str]) -> dict[int, Observation | EnvError]:
        """Send `actions[slot]` to each slot; returns what each slot observes."""
        for slot, action in actions.items():
            if slot not in self._plays:
                raise UsageError(f"slot {slot}: step before reset")
            self._plays[slot].requests.append(("step", action))
        return self._settle(actions)

    def faults(self, slot: int) -> tuple[str, ...]:
        """What the slot's environment did wrong since the slot was last reset, in order; retried or not."""
        return tuple(self._plays[slot].faults) if slot in self._plays else ()

    def pids(self) -> dict[int, int]:
        """slot -> id of the process that it lives in, of those that have been started."""
        return {slot: worker.pid for worker in self._workers if worker.pid for slot in worker.slots}

    def close(self) -> None:
        """Close every environment and end every process. The pool cannot be used afterwards."""
        self._closed = True
        self._bell.ring()
        # An environment of this process may hang in another thread: it cannot be ended, and is not waited for.
        if not self._asking.acquire(timeout=_PATIENCE_S if self._local else -1):
            return
        try:
            self._bell.quiet()
            close_all(self._local.values())
            self._local = {}
            self._closer()
        finally:
            self._asking.release()

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    # Below: answers and retries, by slot.

    def _settle(self, slots: Iterable[int]) -> dict[int, Any]:
        """Have each slot's last request answered, in as many attempts as there are retries."""
        asked = list(slots)
        plays = {slot: self._plays[slot] for slot in asked}
        settled: dict[int, Any] = {
            slot: self._error(slot, _Fault(play.lost)) for slot, play in plays.items() if play.over
        }
        plays = {slot: play for slot, play in plays.items() if not play.over}
        answers: dict[int, Any] = {
            slot: _Fault(play.lost) for slot, play in plays.items() if play.lost
        }
        answers |= self._ask(
            {slot: play.requests[-1] for slot, play in plays.items() if not play.lost}
        )
        wrong: CotjaxError | None = None
        while answers:
            again = []
            for slot, answer in answers.items():
                play = plays[slot]
                if isinstance(answer, _Fault):
                    play.faults.append(answer.what)
                    if play.retries:
                        play.retries -= 1
                        again.append(slot)
                    else:
                        settled[slot] = self._error(slot, answer)
                elif isinstance(answer, CotjaxError):
                    wrong = wrong or answer
                    play.over, play.lost = True, "never started; reset the slot"
                else:
                    play.answers.append(answer)
                    settled[slot] = answer
            answers = self._replay({slot: plays[slot] for slot in again})
        if wrong is not None:
            raise wrong
        return {slot: settled[slot] for slot in asked}

    def _replay(self, plays: dict[int, _Play]) -> dict[int, Any]:
        """Send every request of these slots again, and compare; returns each slot's answer to its last one, or its fault."""
        results: dict[int, Any] = {}
        number = 0
        while going := {slot: play for slot, play in plays.items() if slot not in results}:
            if number:
                results |= {slot: _Fault(play.lost) for slot, play in going.items() if play.lost}
            answers = self._ask(
                {slot: play.requests[number] for slot, play in going.items() if slot not in results}
            )
            for slot, answer in answers.items():
                seen = going[slot].answers
                if (
                    isinstance(answer, _Fault | CotjaxError)
                    or number == len(going[slot].requests) - 1
                ):
                    results[slot] = answer
                elif answer != seen[number]:
                    results[slot] = _Fault(
                        f"replayed after a fault, it answered otherwise at {_where(number)}"
                    )
            number += 1
        return results

    def _error(self, slot: int, fault: _Fault) -> EnvError:
        play = self._plays[slot]
        play.over, play.lost = True, play.lost or f"lost, {fault.what}; reset the slot"
        tried = f" (after {self._retries} retries)" if self._retries else ""
        if fault.own:
            return EnvError(fault.what + tried)
        return EnvError(
            f"{play.game.id}, {_where(len(play.requests) - 1)} (slot {slot}): {fault.what}{tried}"
        )

    # Below: requests to environments, by process.

    def _ask(self, requests: dict[int, tuple[str, Any]]) -> dict[int, Any]:
        """One request a slot -> its answer, a _Fault, or the package's error that is not the environment's."""
        with self._asking:
            return self._ask_open(requests)

    def _ask_open(self, requests: dict[int, tuple[str, Any]]) -> dict[int, Any]:
        if self._closed:
            raise UsageError("the pool is closed")
        for slot, (method, _) in requests.items():
            if method == "reset":
                self._plays[slot].lost = None
        if self._local:
            sent = {
                slot: (method, asdict(argument) if method == "reset" else argument)
                for slot, (method, argument) in requests.items()
            }
            return {
                slot: _read_answer(answered(self._local[slot], *request))
                for slot, request in sent.items()
            }
        try:
            return self._ask_workers(requests)
        except (
            BaseException
        ):  # Ctrl-C, a factory that fails: answers may still be on their way, so nothing can go on
            self.close()
            raise

    def _ask_workers(self, requests: dict[int, tuple[str, Any]]) -> dict[int, Any]:
        answers: dict[int, Any] = {}
        for worker in self._workers:
            try:
                worker.send({slot: requests[slot] for slot in worker.slots if slot in requests})
            except OSError:
                self._replace(worker, answers)
        while owing := [worker for worker in self._workers if worker.owed]:
            first = min(worker.deadline for worker in owing)
            speaking = wait(
                [self._bell, *(worker.channel for worker in owing)],
                max(0.0, first - time.monotonic()),
            )
            if self._bell in speaking:
                raise UsageError("the pool is closed")
            for worker in owing:
                try:
                    if worker.channel in speaking:
                        worker.receive(answers)
                    elif time.monotonic() > worker.deadline:
                        what = f"its worker gave no answer for {worker.limit:g} s and was replaced"
                        self._replace(worker, answers, what)
                except (EOFError, OSError):
                    self._replace(worker, answers)
                except GarbledError as error:
                    self._replace(
                        worker,
                        answers,
                        f"its worker sent what is no answer ({error}) and was replaced",
                    )
        for worker in self._workers:
            # A process of one's own that raised something unforeseen is not trusted to play on; a shared one has other games.
            if (
                len(worker.slots) == 1
                and self._retries
                and isinstance(answers.get(worker.slots[0]), _Fault)
                and worker.pid
            ):
                worker.end(at_once=True)
        return answers

    def _replace(self, worker: _Worker, answers: dict[int, Any], what: str | None = None) -> None:
        """End a process that is dead or to be ended (`what` it did says why), and account for what goes down with it."""
        code = worker.end(at_once=what is not None)
        what = what or f"its worker died (exit code {code})"
        for slot in worker.slots:
            if slot in self._plays:
                self._plays[slot].lost = f"lost, {what}; reset the slot"
        for slot, _ in worker.owed:
            answers[slot] = _Fault(what)
        worker.owed = []


@dataclass
class _Play:
    """One slot's episode. `requests`: all of them, the last one perhaps unanswered; `answers`: to the others, in order.

    `retries`: that are left. `lost`: why its environment no longer holds the game; None while it does. `over`: and it is not played
    on, until the slot is reset.
    """

    game: Game
    requests: list[tuple[str, Any]]
    retries: int
    answers: list[Any] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    lost: str | None = None
    over: bool = False


@dataclass(frozen=True)
class _Fault:
    """What an environment did wrong. `own`: in its own words, which name the game and the step."""

    what: str
    own: bool = False


class _Worker:
    """The parent's end of one process, started when it is first needed.

    `owed`: (slot, method) of the answers to come, in order; `limit`: seconds that the first of them may take, until `deadline`
    (monotonic).
    """

    def __init__(self, nursery: Nursery, slots: list[int], limits: Limits):
        self.slots, self.owed, self.pid, self.limit, self.deadline = slots, [], 0, 0.0, 0.0
        self._nursery, self._limits, self._number = nursery, limits, 0

    def send(self, requests: dict[int, tuple[str, Any]]) -> None:
        self.owed = [(slot, method) for slot, (method, _) in requests.items()]
        if not requests:
            return
        if not self.pid:
            self.pid, self.channel = self._nursery.bear(self.slots)
            self.ready = False
        self._answered = self._number
        for slot, (method, argument) in requests.items():
            self._number += 1
            sent = asdict(argument) if method == "reset" else argument
            self.channel.send([self._number, slot, method, sent], getattr(self._limits, method))
        self._wait_for_next()

    def receive(self, answers: dict[int, Any]) -> None:
        """Take what has come. Raises GarbledError for what answers nothing that was asked."""
        for message in self.channel.receive():
            try:
                if not self.ready and "error" in message:
                    raise as_error(message["error"])
                if not self.ready:
                    self.ready = message["ready"]
                else:
                    slot, _ = self.owed[0]
                    if (message["number"], message["slot"]) != (self._answered + 1, slot):
                        raise GarbledError("the answer to another question")
                    answers[slot] = _read_answer(message)
                    self._answered += 1
                    self.owed.pop(0)
            except (KeyError, TypeError, IndexError, ValueError) as error:
                raise GarbledError(f"{type(error).__name__} in {str(message)[:60]!r}") from None
            self._wait_for_next()

    def _wait_for_next(self) -> None:
        if self.owed:
            self.limit = getattr(self._limits, self.owed[0][1] if self.ready else "start")
            self.deadline = time.monotonic() + self.limit

    def end(self, at_once: bool = False) -> int | None:
        """Stop the process, at once or when it has had time to; returns its exit code."""
        if not self.pid:
            return None
        self.channel.close()
        pid, self.pid = self.pid, 0
        return self._nursery.end(pid, at_once)


def _close(workers: list[_Worker], nurseries: list[Nursery], bell: Bell) -> None:
    for worker in workers:
        if worker.owed:
            worker.end(at_once=True)  # it may hang, and nobody waits for its answer any more
        elif worker.pid:
            worker.channel.close()  # all at once: each ends by itself when it sees this
    workers.clear()
    while nurseries:
        nurseries.pop().close()
    bell.close()


def _read_answer(message: dict[str, Any]) -> Any:
    """An answer as `answered` gives it -> what reset or step returns, a _Fault, or another error of the package."""
    if "failure" in message:
        return _Fault(str(message["failure"]))
    if "error" in message:
        error = as_error(message["error"])
        return _Fault(str(error), own=True) if isinstance(error, EnvError) else error
    seen = dict(message["seen"])
    commands = seen["admissible_commands"]
    observation = Observation(
        text=str(seen["text"]),
        admissible_commands=tuple(map(str, commands)) if commands is not None else None,
        won=bool(seen["won"]),
        done=bool(seen["done"]),
        accepted=bool(seen["accepted"]),
        score=None if seen["score"] is None else float(seen["score"]),
    )
    return (str(message["task"]), observation) if "task" in message else observation


def _where(number: int) -> str:
    return f"step {number}" if number else "reset"


def _pickled(factory: Callable[[], TextEnv]) -> bytes:
    try:
        return pickle.dumps(factory)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"a pool's factory must be picklable, such as functools.partial(AlfworldEnv): {error}"
        ) from error
