"""What a prompt says beside the episode: system message, instruction, actions, examples.

The user turns of a prompt are, with everything switched on:

    [instruction]  Your task is to: {task}.  {first observation}  [Admissible actions: …]
    {next observation}  [Admissible actions: …]

The instruction stands once, in the first user turn. Before the episode there may be whole example
episodes, as earlier turns whose responses keep their thoughts. Everything but the episode itself is
the same for every state, and the actions listed in a state depend on that state alone. So one state
has one prompt, in training and in playing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cotjax.errors import UsageError
from cotjax.formats.search import Growing

TASK = "Your task is to: {task}."
ADMISSIBLE = "Admissible actions: {actions}."
# An instruction that fits any world.
INSTRUCTION = (
    "Solve the task step by step. In each turn, read the observation, reason about what to do next "
    "between <think> and </think>, then give exactly one action between <action> and </action>, "
    "and write nothing else:\n"
    "<think> your reasoning </think><action> your action </action>"
)
NO_SYSTEM, TEMPLATE_SYSTEM = "", "template"
NO_INSTRUCTION, WORLD_INSTRUCTION = "", "world"
# Which admissible actions a user turn lists.
ADMISSIBLE_KINDS = ("none", "all", "sampled")


class Wording(Protocol):
    """How a world words its prompts (`cotjax.envs.worlds.World` is one)."""

    @property
    def name(self) -> str:
        """The world's name."""

    @property
    def growing(self) -> Growing | None:
        """How its actions are written in one growing text; None where they cannot be."""

    @property
    def task_text(self) -> str:
        """The line that names the task, with `{task}`."""

    @property
    def instruction(self) -> str:
        """What the agent should do, and the response format."""

    @property
    def admissible_text(self) -> str:
        """The line that lists actions, with `{actions}`."""


@dataclass(frozen=True)
class ExampleStep:
    """One step of an example episode."""

    observation: str
    thought: str | None
    action: str
    admissible_commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Example:
    """An episode that every prompt shows before its own.

    `id`: the trajectory's; `game`: the game's, from which the listed actions are drawn.
    """

    id: str
    game: str
    task: str
    steps: tuple[ExampleStep, ...]


@dataclass(frozen=True)
class Prompt:
    """What a prompt says beside the episode; the default is the task and the episode alone.

    Attributes:
      system: a system message before the first user turn; "" for none, "template" for the default
        one of the tokenizer's chat template.
      instruction: text before the task; "" for none. The response's tags in it are tags.
      admissible: "all" lists the admissible actions at the end of each user turn, "sampled" at most
        `admissible_count` of them, "none" no actions.
      admissible_count: actions listed with "sampled".
      examples: episodes shown before the first turn.
      task_text: the line that names the task, with `{task}`.
      admissible_text: the line that lists actions, with `{actions}`.
      growing: writes an episode as one growing text (`cotjax.formats.search`), whose prompt ends
        with `<think>`; None for turns.

    Raises:
      UsageError: an impossible value.
    """

    system: str = NO_SYSTEM
    instruction: str = NO_INSTRUCTION
    admissible: str = "none"
    admissible_count: int = 20
    examples: tuple[Example, ...] = ()
    task_text: str = TASK
    admissible_text: str = ADMISSIBLE
    growing: Growing | None = None

    def __post_init__(self):
        if self.admissible not in ADMISSIBLE_KINDS:
            raise UsageError(
                f"prompt.admissible is {self.admissible!r}; it must be one of "
                f"{', '.join(ADMISSIBLE_KINDS)}"
            )
        if self.admissible_count < 1:
            raise UsageError(
                f"prompt.admissible_count is {self.admissible_count}; it must be at least 1"
            )

    @classmethod
    def of(
        cls,
        settings: Any,
        wording: Wording,
        examples: Sequence[Example] = (),
        *,
        growing: bool = False,
    ) -> Prompt:
        """Return the prompt of a config's `prompt` section, in a world's words.

        Args:
          settings: has system, instruction, admissible and admissible_count.
          wording: the world, whose instruction `instruction="world"` takes.
          examples: the episodes that were drawn for `settings.examples`.
          growing: whether an episode is one growing text.

        Raises UsageError where it is, but the world has no such format.
        """
        text = wording.growing if growing else None
        if growing and text is None:
            raise UsageError(
                f"world {wording.name!r} does not write its episodes as one growing text; set "
                "data.layout to 'trajectory' or 'step'"
            )
        own = settings.instruction == WORLD_INSTRUCTION
        return cls(
            system=settings.system,
            instruction=(text or wording).instruction if own else settings.instruction,
            admissible=settings.admissible,
            admissible_count=settings.admissible_count,
            examples=tuple(examples),
            task_text=wording.task_text,
            admissible_text=wording.admissible_text,
            growing=text,
        )

    @property
    def lists_actions(self) -> bool:
        """Whether user turns list admissible actions."""
        return self.admissible != "none"

    def check_listed(self, commands: Sequence[str] | None) -> None:
        """Raise UsageError where actions are to be listed, and the world lists none (None)."""
        if commands is None and self.lists_actions:
            raise UsageError(
                f"prompt.admissible is {self.admissible!r}, but the world does not list "
                "its admissible actions; set it to 'none'"
            )

    def task_line(self, task: str) -> str:
        """Return the line that names the task, with its line break."""
        return f"{self.task_text.format(task=task)}\n"

    def actions_line(self, commands: Sequence[str], key: str) -> str:
        """Return the line that lists the admissible actions of a state.

        Args:
          commands: all admissible actions of the state, in any order.
          key: "<game id>/<turn>", from which "sampled" draws: the same actions in training and in
            playing, whatever the expert or the model does next.
        """
        # Sorted, so that the order in which a world or a file lists them does not matter.
        listed = sorted(set(commands))
        if self.admissible == "sampled" and len(listed) > self.admissible_count:
            drawn = sorted(listed, key=lambda command: _rank(key, command))
            listed = sorted(drawn[: self.admissible_count])
        return self.admissible_text.format(actions=", ".join(listed))


def _rank(key: str, command: str) -> bytes:
    text = f"{key}/{command}".encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=8).digest()


def state_key(game: str, turn: int) -> str:
    """Return the name of a state, from which its sampled actions are drawn."""
    return f"{game}/{turn}"


def first_turn(task: str, observation: str, wording: str = TASK) -> str:
    """Return the plain first user turn. `wording`: its first line, with `{task}` for the task."""
    return f"{wording.format(task=task)}\n{observation}"
