"""Many environments at once, each in a process of its own.

A worker that crashes, hangs or sends a malformed message is restarted, and its game is replayed to
the same step. Games are deterministic: the same actions lead to the same state, and a replay with
another observation is itself a fault. The caller notices nothing but the time and `faults`, until
the retries of a slot are used up.
"""

from __future__ import annotations

import pickle
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field

from cotjax.envs.base import Game, Observation, TextEnv
from cotjax.envs.pool.answers import (
    Answer,
    Fault,
    Request,
    Result,
    ask,
    close_all,
    result_from_message,
)
from cotjax.envs.pool.messages import Wakeup
from cotjax.envs.pool.workers import Limits, Workers
from cotjax.errors import CotjaxError, EnvError, UsageError

# For another thread's request to an environment of this process, which cannot be interrupted.
_PATIENCE_S = 0.5


class EnvPool:
    """`slots` environments made by `factory()`; slot s lives in worker process s % workers.

    A request that cannot be answered, its retries used up, comes back as an EnvError value that
    names game and step. So do the slot's later steps, until it is reset. Other errors of the
    package (DataError: a broken game file) are raised, after all other answers of the same call
    have arrived.

    Only one thread may ask at a time. Another may call `close`; the call that waits then raises
    UsageError.

    Args:
      factory: picklable and importable, e.g. `functools.partial(AlfworldEnv, max_steps=30)`.
      workers: processes; `slots` gives each slot its own. 0: play in this process, one slot after
        another, without time limits.
      retries: how often a slot's environment may fail in one episode and be restarted.
    """

    def __init__(
        self,
        factory: Callable[[], TextEnv],
        slots: int,
        workers: int,
        limits: Limits | None = None,
        retries: int = 0,
    ):
        limits = limits or Limits()
        if slots < 1 or workers < 0 or retries < 0 or min(asdict(limits).values()) <= 0:
            raise UsageError(
                "a pool needs slots >= 1, workers >= 0, retries >= 0 and time limits > 0: got "
                f"{slots} slots, {workers} workers, {retries} retries, {limits}"
            )
        self._slots, self._retries = slots, retries
        self._plays: dict[int, _Play] = {}
        self._asking, self._closed = threading.RLock(), False
        self._local: dict[int, TextEnv] = {}
        self._workers: Workers | None = None
        if workers == 0:
            self._local = {slot: factory() for slot in range(slots)}
            self._wakeup = Wakeup()
            self._finalizer = weakref.finalize(self, self._wakeup.close)
        else:
            pickled = _pickled(factory)
            self._wakeup = Wakeup()
            self._workers = Workers(pickled, slots, workers, limits, retries > 0, self._wakeup)
            self._finalizer = weakref.finalize(self, self._workers.close)

    def reset(self, games: dict[int, Game]) -> dict[int, tuple[str, Observation] | EnvError]:
        """Start `games[slot]` in each slot; returns (task, first observation) by slot."""
        for slot, game in games.items():
            if not 0 <= slot < self._slots:
                raise UsageError(f"slot {slot}: the pool has slots 0 to {self._slots - 1}")
            self._plays[slot] = _Play(game, [game], retries=self._retries)
        return {
            slot: answer if isinstance(answer, EnvError) else (str(answer.task), answer.seen)
            for slot, answer in self._settle(games).items()
        }

    def step(self, actions: dict[int, str]) -> dict[int, Observation | EnvError]:
        """Send `actions[slot]` to each slot; returns what each slot observes."""
        for slot, action in actions.items():
            if slot not in self._plays:
                raise UsageError(f"slot {slot}: step before reset")
            self._plays[slot].requests.append(action)
        return {
            slot: answer if isinstance(answer, EnvError) else answer.seen
            for slot, answer in self._settle(actions).items()
        }

    def faults(self, slot: int) -> tuple[str, ...]:
        """Return what the slot's environment did wrong since its reset, retried or not."""
        return tuple(self._plays[slot].faults) if slot in self._plays else ()

    def pids(self) -> dict[int, int]:
        """Return the id of the worker process by slot, of those that have been started."""
        return self._workers.pids() if self._workers else {}

    def close(self) -> None:
        """Close every environment and end every process. The pool cannot be used afterwards."""
        self._closed = True
        self._wakeup.set()
        if not self._asking.acquire(timeout=_PATIENCE_S if self._local else -1):
            return
        try:
            self._wakeup.clear()
            close_all(self._local.values())
            self._local = {}
            self._finalizer()
        finally:
            self._asking.release()

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _settle(self, slots: Iterable[int]) -> dict[int, Answer | EnvError]:
        """Return the answer to each slot's last request, in as many attempts as it has retries."""
        plays = {slot: self._plays[slot] for slot in slots}
        settled: dict[int, Answer | EnvError] = {}
        results: dict[int, Result] = {}
        for slot, play in plays.items():
            if play.over:
                settled[slot] = self._error(slot, Fault(play.over))
            elif len(play.requests) > 1 and (lost := self._lost(slot)):
                results[slot] = Fault(lost)
        asked = plays.keys() - settled.keys() - results.keys()
        results |= self._ask({slot: plays[slot].requests[-1] for slot in plays if slot in asked})
        error: CotjaxError | None = None
        while results:
            again = []
            for slot, result in results.items():
                play = plays[slot]
                if isinstance(result, Fault):
                    play.faults.append(result.text)
                    if play.retries:
                        play.retries -= 1
                        again.append(slot)
                    else:
                        settled[slot] = self._error(slot, result)
                elif isinstance(result, CotjaxError):
                    error = error or result
                    play.over = "never started; reset the slot"
                else:
                    play.answers.append(result)
                    settled[slot] = result
            results = self._replay({slot: plays[slot] for slot in again})
        if error is not None:
            raise error
        return {slot: settled[slot] for slot in plays}

    def _replay(self, plays: Mapping[int, _Play]) -> dict[int, Result]:
        """Send every request of these slots again, and compare the answers with the first ones.

        Returns each slot's result of its last request, or its fault.
        """
        results: dict[int, Result] = {}
        number = 0
        while going := {slot: play for slot, play in plays.items() if slot not in results}:
            if number:
                lost = {slot: self._lost(slot) for slot in going}
                results |= {slot: Fault(text) for slot, text in lost.items() if text}
            requests = {
                slot: play.requests[number] for slot, play in going.items() if slot not in results
            }
            for slot, result in self._ask(requests).items():
                play = going[slot]
                last = number == len(play.requests) - 1
                if last or not isinstance(result, Answer):
                    results[slot] = result
                elif result != play.answers[number]:
                    results[slot] = Fault(
                        f"replayed after a fault, it answered otherwise at {_where(number)}"
                    )
            number += 1
        return results

    def _lost(self, slot: int) -> str | None:
        return self._workers.lost.get(slot) if self._workers else None

    def _error(self, slot: int, fault: Fault) -> EnvError:
        """Return the slot's error, and give up its episode."""
        play = self._plays[slot]
        play.over = play.over or self._lost(slot) or f"lost, {fault.text}; reset the slot"
        tried = f" (after {self._retries} retries)" if self._retries else ""
        if fault.own:
            return EnvError(fault.text + tried)
        where = f"{play.game.id}, {_where(len(play.requests) - 1)} (slot {slot})"
        return EnvError(f"{where}: {fault.text}{tried}")

    def _ask(self, requests: Mapping[int, Request]) -> dict[int, Result]:
        with self._asking:
            if self._closed:
                raise UsageError("the pool is closed")
            if self._workers is None:
                return {
                    slot: result_from_message(ask(self._local[slot], request))
                    for slot, request in requests.items()
                }
            try:
                return self._workers.ask(requests)
            except BaseException:
                # Ctrl-C, or a factory that fails: answers may still be on their way.
                self.close()
                raise


@dataclass
class _Play:
    """One slot's episode.

    Attributes:
      game: what the slot was reset to.
      requests: all of them; the last one may be unanswered.
      retries: how many are left.
      answers: to the requests, in order.
      faults: what its environment did wrong.
      over: why the episode was given up, until the slot is reset; empty while it goes on.
    """

    game: Game
    requests: list[Request]
    retries: int
    answers: list[Answer] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    over: str = ""


def _where(number: int) -> str:
    return f"step {number}" if number else "reset"


def _pickled(factory: Callable[[], TextEnv]) -> bytes:
    try:
        return pickle.dumps(factory)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"a pool's factory must be picklable, such as functools.partial(AlfworldEnv): {error}"
        ) from error
