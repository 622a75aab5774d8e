"""The environment: one entry of BFCL, turn by turn."""

from __future__ import annotations

from pathlib import Path

from cotjax.envs.base import Game, Observation, in_play
from cotjax.envs.bfcl.back_ends import BackEnds, TooLargeError, accepts, prepare
from cotjax.envs.bfcl.calls import Call, CallError, parse_action
from cotjax.envs.bfcl.entries import TASK_TYPES, Entry, data_folder, entries_file, read_entries
from cotjax.errors import DataError, EnvError, UsageError

TURN_STEPS = 20  # actions of one turn; BFCL gives up an entry after so many
MAX_CHARACTERS = 100_000  # of an observation's results; those of the longest answer have 70,500
# What BFCL's user says when functions are added.
_ADDED = "I have updated some more functions you can choose from. What about now?"


class BfclEnv:
    """Plays entries, whose turns are requests of a user.

    The first observation describes the functions, and each turn begins with the user's request. An
    action is a list of calls, which are executed in order, or `done`, which ends the turn. Refused
    are actions that cannot be read, of which nothing is executed, and those whose calls all fail.

    Args:
      max_steps: the episode is done after this many steps.
    """

    def __init__(self, max_steps: int = 30):
        if max_steps < 1:
            raise UsageError(f"max_steps must be at least 1: got {max_steps}")
        # Both raise where BFCL is not installed. Processes forked from this one share what is read.
        prepare()
        for task_type in TASK_TYPES:
            read_entries(entries_file(data_folder(), task_type))
        self._max_steps = max_steps
        self._entry: Entry | None = None
        self._back_ends: BackEnds | None = None
        self._done = False

    def reset(self, game: Game) -> tuple[str, Observation]:
        """Start an entry; return what it is about, and the functions with the first request.

        Raises DataError for an entry that is not in the game's file.
        """
        self.close()
        entry = read_entries(Path(game.path)).get(game.id)
        if entry is None:
            raise DataError(f"{game.path}: no entry {game.id!r} in it; install bfcl-eval again")
        try:
            self._back_ends = BackEnds(entry)
        except Exception as error:
            raise EnvError(
                f"{game.id}, reset: BFCL's back ends failed ({type(error).__name__}: {error})"
            ) from error
        self._entry, self._steps, self._turn_steps, self._done = entry, 0, 0, False
        self._turns: list[list[list[Call]]] = [[]]
        self._held = 0  # turns before the first that the checker rejects
        return entry.task, self._observation(self._request())

    def step(self, action: str) -> Observation:
        """Execute the calls of `action`, or end the turn."""
        entry = in_play(self._entry, self._steps, self._done)
        assert self._back_ends is not None
        self._steps += 1
        self._turn_steps += 1
        try:
            calls = parse_action(action)
            for call in calls:
                self._back_ends.check(call)
        except CallError as error:
            return self._observation(f"Refused: {error}.", accepted=False)
        try:
            return self._run(calls) if calls else self._end_turn(entry)
        except TooLargeError:
            self._done = True
            return self._observation("The file system is too large: the episode is over.")
        except Exception as error:
            raise EnvError(
                f"{entry.id}, step {self._steps}: BFCL failed on {action[:200]!r} "
                f"({type(error).__name__}: {error})"
            ) from error

    def close(self) -> None:
        """Leave the entry, and free its back ends; `reset` starts another one."""
        self._entry = None
        if self._back_ends is not None:
            self._back_ends.close()
            self._back_ends = None

    def _run(self, calls: list[Call]) -> Observation:
        assert self._back_ends is not None
        self._turns[-1].append(calls)
        results = [(call.name, *self._back_ends.run(call)) for call in calls]
        text = "\n".join(f"{name}: {result}" for name, result, _ in results)
        if len(text) > MAX_CHARACTERS:
            text = f"{text[:MAX_CHARACTERS]} ... ({len(text) - MAX_CHARACTERS:,} characters more)"
        return self._observation(text, accepted=any(fine for *_, fine in results))

    def _end_turn(self, entry: Entry) -> Observation:
        # No later turn is accepted once one was not.
        if self._held == len(self._turns) - 1 and accepts(entry, self._turns):
            self._held += 1
        if len(self._turns) == len(entry.requests):
            self._done = True
            return self._observation("The user has no other request.")
        self._turns.append([])
        self._turn_steps = 0
        return self._observation(self._request())

    def _request(self) -> str:
        """Return the functions that the turn adds, and the user's request."""
        assert self._entry is not None
        turn = len(self._turns) - 1
        shown = [self._entry.functions[name] for name in self._entry.shown_at(turn)]
        head = "You can call these functions" + (" too:" if turn else ":")
        request = self._entry.requests[turn] or _ADDED
        return "\n".join([*([head, *shown] if shown else []), f"User: {request}"])

    def _observation(self, text: str, accepted: bool = True) -> Observation:
        assert self._entry is not None
        total = len(self._entry.requests)
        won = self._held == total
        late = self._steps >= self._max_steps or self._turn_steps > TURN_STEPS
        self._done = self._done or late
        return Observation(text, None, won, self._done, accepted, self._held / total)
