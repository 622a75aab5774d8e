"""What an environment answers to a request, and its form as a message.

A request is a `Game` (reset to it) or a command (step). An answer's message holds "seen", the
observation (with "task" after a reset), or "error" (the environment raised an error of the
package), or "failure" (it raised something else, or its answer is not an observation).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from cotjax.envs.base import Game, Observation, TextEnv
from cotjax.envs.pool.messages import clean, error_from_message, error_text, error_to_message
from cotjax.errors import CotjaxError, EnvError

# Characters of an observation and its admissible commands together.
_MOST_CHARACTERS = 1 << 20

Request: TypeAlias = Game | str


@dataclass(frozen=True)
class Answer:
    """What an environment returned; `task`: the task instruction, after a reset."""

    seen: Observation
    task: str | None = None


@dataclass(frozen=True)
class Fault:
    """What an environment did wrong; `own`: in its own words, which name the game and the step."""

    text: str
    own: bool = False


# An error is one of the package that is not the environment's fault, such as a broken game file.
Result: TypeAlias = Answer | Fault | CotjaxError


def request_to_message(request: Request) -> dict[str, Any]:
    """Return a request as JSON."""
    return {"step": request} if isinstance(request, str) else {"reset": asdict(request)}


def request_from_message(message: dict[str, Any]) -> Request:
    """Return the request that was sent."""
    return message["step"] if "step" in message else Game(**message["reset"])


def ask(env: TextEnv, request: Request) -> dict[str, Any]:
    """Return the environment's answer, or what it raised, as a message."""
    try:
        if isinstance(request, Game):
            task, seen = env.reset(request)
            return {"task": _checked_text(task, "task"), "seen": _checked(seen)}
        return {"seen": _checked(env.step(request))}
    except (Exception, SystemExit) as error:
        # A reset can find that the game or the installation is broken, which is nobody's fault
        # here. Whatever a step raises is the environment's.
        in_reset = isinstance(request, Game)
        if isinstance(error, EnvError) or (in_reset and isinstance(error, CotjaxError)):
            return {"error": error_to_message(error)}
        return {"failure": f"the environment failed ({type(error).__name__}: {error_text(error)})"}


def _checked(seen: Observation) -> dict[str, Any]:
    """Return the observation as JSON. Raises TypeError or ValueError where it is not valid."""
    if not isinstance(seen, Observation):
        raise TypeError(f"it answered with {type(seen).__name__}, not an Observation")
    for name in ("won", "done", "accepted"):
        if getattr(seen, name) not in (True, False):
            raise TypeError(f"its {name} is {getattr(seen, name)!r}, neither true nor false")
    if seen.score is not None and not 0 <= seen.score <= 1:
        raise ValueError(f"its score is {seen.score!r}; it must be 0 to 1, or None")
    text = _checked_text(seen.text, "text")
    commands = None
    if seen.admissible_commands is not None:
        commands = [_checked_text(one, "admissible command") for one in seen.admissible_commands]
    if (length := len(text) + sum(map(len, commands or ()))) > _MOST_CHARACTERS:
        raise ValueError(
            f"its answer has {length:,} characters; at most {_MOST_CHARACTERS:,} are allowed"
        )
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
    return clean(text)


def result_from_message(message: dict[str, Any]) -> Result:
    """Return what an answer's message holds.

    Raises KeyError, TypeError or ValueError where it is not an answer.
    """
    if "failure" in message:
        return Fault(str(message["failure"]))
    if "error" in message:
        error = error_from_message(message["error"])
        return Fault(str(error), own=True) if isinstance(error, EnvError) else error
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
    return Answer(observation, str(message["task"]) if "task" in message else None)


def close_all(envs: Iterable[TextEnv]) -> None:
    """Close every environment, even where closing another one raises."""
    for env in envs:
        with contextlib.suppress(Exception):
            env.close()
