"""The contract between a text environment and the host-side loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
# The out-of-domain split of arXiv 2606.26935: two task types that CoT training never shows.
OOD_TASKS = ("pick_cool_then_place_in_recep", "pick_two_obj_and_place")
IN_DOMAIN_TASKS = tuple(task for task in TASK_TYPES if task not in OOD_TASKS)


@dataclass(frozen=True)
class Game:
    """One playable game. `id` is stable across machines (ALFWorld: "<task folder>/<trial folder>"); `path` is the game file."""

    id: str
    path: str
    split: str
    task_type: str


@dataclass(frozen=True)
class Observation:
    """What an environment answers to `reset` or `step`.

    Attributes:
      text: the answer, stripped of surrounding whitespace.
      admissible_commands: what the environment would accept now; None where it cannot list that.
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


class TextEnv(Protocol):
    """One slot that plays one game at a time. Every method raises `EnvError`, naming the game and the step, when the
    environment itself fails."""

    def reset(self, game: Game) -> tuple[str, Observation]:
        """Load `game` and return (task instruction, first observation)."""

    def step(self, action: str) -> Observation:
        """Send `action` and return what follows. An action that the environment does not accept is not an error."""

    def close(self) -> None:
        """Free what the slot holds."""
