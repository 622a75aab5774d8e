"""The contract between a text environment, a scripted agent and the host-side loop."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from cotjax.errors import DataError, EnvError


@dataclass(frozen=True)
class Game:
    """One playable game.

    Attributes:
      id: the same on every machine (ALFWorld: "<task folder>/<trial folder>").
      path: the game's file; "" in a world whose games are not files.
      split: "train" or another split of the world.
      task_type: one of the world's task types.
    """

    id: str
    path: str
    split: str
    task_type: str


@dataclass(frozen=True)
class Play:
    """One play of a game: a game that is sampled several times has several.

    Attributes:
      sample: number of the play among those of its game, from 0. It decides what is drawn at
        random, and nothing else.
    """

    game: Game
    sample: int = 0

    def __str__(self) -> str:
        return f"{self.game.id}, sample {self.sample}" if self.sample else self.game.id


@dataclass(frozen=True)
class Observation:
    """An environment's answer to `reset` or `step`.

    Attributes:
      text: the answer, stripped of surrounding whitespace.
      admissible_commands: the actions that would be accepted now; None if they cannot be listed.
      won: the goal is met.
      done: the episode is over, won or not.
      accepted: the environment carried the action out. A refused action costs a step all the same.
      score: the share of the goal reached so far, 0 to 1; None in a world that knows only `won`.
    """

    text: str
    admissible_commands: tuple[str, ...] | None
    won: bool
    done: bool
    accepted: bool = True
    score: float | None = None


@dataclass
class SearchCounts:
    """What the searches and the answer of an episode were worth (`World.judge_searches`).

    Attributes:
      facts: those that the answer follows from: the hops of a chain. reached: those of them that
        were known or read as they are, up to the first that was not.
      searches: those made, refused ones among them.
      oracle: those of an agent that searches for each fact that it does not know, and finds it.
      needed: searches for a fact that was missing. needless: the others.
      missed: steps without a search, where a fact was missing. settled: those where none was.
      found: needed searches whose results stated the fact.
      repeated: searches in the words of an earlier one.
      refused: searches beyond the limit.
      answered, exact, f1: whether there is an answer, whether it is right, and its F1 over words.
      gold_seen: a right answer occurs in what was shown.
      stated_known, stated_unknown: facts that results stated, of those that a base model may know,
        and of others. right_known, right_unknown: those stated as they are.
      invented: facts that results stated of something that does not exist.
    """

    facts: int = 0
    reached: int = 0
    searches: int = 0
    oracle: int = 0
    needed: int = 0
    needless: int = 0
    missed: int = 0
    settled: int = 0
    found: int = 0
    repeated: int = 0
    refused: int = 0
    answered: int = 0
    exact: int = 0
    f1: float = 0.0
    gold_seen: int = 0
    stated_known: int = 0
    right_known: int = 0
    stated_unknown: int = 0
    right_unknown: int = 0
    invented: int = 0


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


_Loaded = TypeVar("_Loaded", bound=_HasId)


def in_play(loaded: _Loaded | None, steps: int, done: bool) -> _Loaded:
    """Return the game that an environment has loaded, if it can take another step.

    `steps`, `done`: those made, and whether the episode is over. Raises EnvError if it cannot.
    """
    if loaded is None:
        raise EnvError(
            "no game to step: none was loaded, or it was closed; reset the environment first"
        )
    if done:
        raise EnvError(
            f"{loaded.id}, step {steps + 1}: the episode is over; reset the environment to a game"
        )
    return loaded


class TextEnv(Protocol):
    """One slot that plays one game at a time.

    Every method raises EnvError, naming the game and the step, when the environment itself fails.
    """

    def reset(self, game: Game) -> tuple[str, Observation]:
        """Load `game` and return (task instruction, first observation)."""

    def step(self, action: str) -> Observation:
        """Send `action` and return the answer. A refused action is not an error."""

    def close(self) -> None:
        """Free the slot's resources."""


@dataclass(frozen=True)
class Decision:
    """One turn of a scripted agent.

    Attributes:
      thought: written before the action; None for an action without a thought.
      action: the text to send.
      no_op: the agent knows that the environment will refuse this action.
      mistake: not the action that the agent decided on. It has no thought and is not trained on.
    """

    thought: str | None
    action: str
    no_op: bool = False
    mistake: bool = False


class Agent(Protocol):
    """A scripted agent that plays one game at a time and writes its thoughts."""

    def start(self, task: str, observation: Observation) -> None:
        """Begin a game; `act` gets this observation too. Raises EnvError for an unknown task."""

    def act(self, observation: Observation) -> Decision:
        """Return the next action and the thought before it."""


@runtime_checkable
class Successor(Agent, Protocol):
    """A scripted agent that can go on from where another one has come to."""

    def follow(self, action: str, observation: Observation) -> None:
        """Take in a step that another agent made: its action, and the answer to it.

        `start` comes first, with the first observation. `act` comes after, with the last one.
        """


def plays_of(games: Sequence[Game], samples: int = 1) -> tuple[Play, ...]:
    """Return so many plays of each game: every game's first, then every game's second, ..."""
    return tuple(Play(game, sample) for sample in range(samples) for game in games)


def games_hash(games: Iterable[Game]) -> str:
    """Return the SHA-256 over the ids and the files of `games`, in the order of ids.

    Raises DataError for a file that cannot be read.
    """
    digest = hashlib.sha256()
    for game in sorted(games, key=lambda game: game.id):
        content = hashlib.sha256(content_of(game)).hexdigest()
        digest.update(f"{game.id} {content}\n".encode())
    return digest.hexdigest()


def content_of(game: Game) -> bytes:
    """Return the bytes of a game's file; none where it has no file. Raises DataError."""
    if not game.path:
        return b""
    try:
        return Path(game.path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{game.path}: cannot be read ({error.strerror}); make or unpack the game again"
        ) from error
