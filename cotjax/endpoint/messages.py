"""Prompts of an endpoint: chat messages, with their characters as ids.

The loop works with ids, an endpoint with text. So a `MessageCodec` takes the code point of each
character as its id, and ids above all code points as the marks between messages. Nothing is lost
on the way, and `to_messages` gives back the messages. Lengths of such prompts are characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cotjax import formats
from cotjax.errors import UsageError
from cotjax.formats import Example, Prompt, TurnTemplate

# Ids that are no characters: the beginning of a message of each role, and the end of any.
SYSTEM, USER, ASSISTANT, END = range(0x110000, 0x110004)
_ROLES = {SYSTEM: "system", USER: "user", ASSISTANT: "assistant"}
# The endpoint's server has the model's chat template; here messages have no marks of their own.
MESSAGES = TurnTemplate(
    name="messages",
    turn_open="",
    response_open="",
    response_end="",
    turn_gap="",
    system_open="",
    system_close="",
)
Message = dict[str, str]


class _Characters(Sequence[str]):
    """The text of each id: its character; for a mark, the role of the message that it begins."""

    def __len__(self) -> int:
        return END + 1

    def __getitem__(self, id: Any) -> Any:
        if id < SYSTEM:
            return chr(id)
        return f"\n[{_ROLES[id]}]\n" if id in _ROLES else ""


class MessageCodec:
    """Encodes episodes as messages (see the module), in the words of a prompt.

    It is the `cotjax.rollout.contracts.Codec` of a model of which only an endpoint is known. Any
    text is content; half of a surrogate pair becomes U+FFFD.

    Raises UsageError where the prompt asks for the system message of a chat template, or is one
    growing text.
    """

    template = MESSAGES
    pieces = _Characters()
    stop_texts = (formats.ACTION_CLOSE,)
    think_close = formats.THINK_CLOSE
    growing = None  # an endpoint goes on with messages, not within one

    def __init__(self, prompt: Prompt):
        if prompt.growing is not None:
            raise UsageError(
                "data.layout is 'growing', but an endpoint's model answers whole messages; set it "
                "to 'trajectory'"
            )
        if prompt.system == formats.TEMPLATE_SYSTEM:
            raise UsageError(
                "prompt.system is 'template', but an endpoint's chat template is not known here; "
                "set it to '', and the endpoint adds its own, or to a text"
            )
        self.prompt = prompt
        self.action_prefix = self.encode(formats.ACTION_OPEN)
        self.stop = (self.encode(formats.ACTION_CLOSE),)
        self.response_open = [END, ASSISTANT]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text: its code points."""
        return [0xFFFD if 0xD800 <= (point := ord(c)) < 0xE000 else point for c in text]

    def encode_plain(self, text: str, what: str, *, lenient: bool = False) -> list[int]:
        """Return the ids of content, as of any text."""
        return self.encode(text)

    def prefill(self, text: str) -> list[int]:
        """Return the ids of a text that is prefilled before a response."""
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; that of a prompt names the role of each message."""
        return "".join(map(self.pieces.__getitem__, ids))

    def encodable(self, text: str) -> bool:
        """Whether an action with this text may be executed: any may."""
        return True

    def first_prompt(
        self, task: str, observation: str, admissible: Sequence[str] | None = None, key: str = ""
    ) -> list[int]:
        """Return the ids of an episode's first prompt, as `cotjax.data.codec.Codec` does.

        Raises UsageError where the prompt lists actions, and there are none to list.
        """
        prompt = self.prompt
        ids = [SYSTEM, *self.encode(prompt.system), END] if prompt.system else []
        opening = f"{prompt.instruction}\n" if prompt.instruction else ""
        for example in prompt.examples:
            ids += self._example(example, opening)
            opening = ""
        seen = self._seen(observation, admissible, key)
        return [*ids, *self._asked(opening + prompt.task_line(task) + seen)]

    def next_prompt(
        self,
        action: str | Sequence[int],
        observation: str,
        admissible: Sequence[str] | None = None,
        key: str = "",
    ) -> list[int]:
        """Return the ids to append: the executed action as a past response, what followed it."""
        acted = self.encode(action) if isinstance(action, str) else list(action)
        seen = self._seen(observation, admissible, key)
        return [*self.action_prefix, *acted, *self.stop[0], END, *self._asked(seen)]

    def _asked(self, text: str) -> list[int]:
        return [USER, *self.encode(text), *self.response_open]

    def _seen(self, observation: str, admissible: Sequence[str] | None, key: str) -> str:
        """Return the observation, and the actions that the prompt lists."""
        if not self.prompt.lists_actions:
            return observation
        self.prompt.check_listed(admissible)
        line = self.prompt.actions_line(admissible or (), key)
        return "\n".join(filter(None, (observation, line)))

    def _example(self, example: Example, opening: str) -> list[int]:
        """Return the ids of an example episode, whose responses keep their thoughts."""
        ids: list[int] = []
        opening += self.prompt.task_line(example.task)
        for number, step in enumerate(example.steps):
            key = formats.state_key(example.game, number)
            seen = self._seen(step.observation, step.admissible_commands, key)
            thought = (
                ""
                if step.thought is None
                else f"{formats.THINK_OPEN}{step.thought}{formats.THINK_CLOSE}"
            )
            response = f"{thought}{formats.ACTION_OPEN}{step.action}{formats.ACTION_CLOSE}"
            ids += [*self._asked(opening + seen), *self.encode(response), END]
            opening = ""
        return ids


def to_messages(ids: Sequence[int]) -> list[Message]:
    """Return the messages of a prompt.

    The last one is the assistant's, which the model is to write; it holds what is prefilled.
    """
    messages: list[Message] = []
    for id in ids:
        if id in _ROLES:
            messages.append({"role": _ROLES[id], "content": ""})
        elif id != END:
            messages[-1]["content"] += chr(id)
    return messages
