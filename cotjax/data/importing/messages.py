"""A message of a conversation: a JSON object of a public layout -> `Message`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cotjax.data.importing.tool_calls import call_action, result_text, tagged_action, written_action
from cotjax.data.importing.unmapped import Unmapped
from cotjax.data.json_text import decode

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "agent",
    "assistant": "agent",
    "function_call": "agent",
    "system": "system",
    "developer": "system",
    "tool": "result",
    "function": "result",
    "observation": "result",
}
FLAGS = ("loss", "weight", "train", "trained")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_CALLS = ("tool_calls", "function_call", "tool_call_id", "name")
MESSAGE_FIELDS = frozenset(("from", "value", "role", "content", *_CALLS, *FLAGS, *_THOUGHTS))
MEDIA_FIELDS = ("images", "image", "videos", "video", "audios", "audio")


@dataclass(frozen=True)
class Message:
    """One message, whatever layout it comes from.

    speaker: "user", "agent", "result" (of a tool or an environment) or "system"
    text: the content; where the agent calls tools, the text next to the calls
    trained: False where the row marks the message as not trained on
    thought: reasoning in a field of its own
    call: the tool calls as one action (see `cotjax.data.importing.tool_calls`)
    ids: of the calls, or of the call that this is the result of; None where the row has none
    """

    speaker: str
    text: str
    trained: bool = True
    thought: str | None = None
    call: str | None = None
    ids: tuple[str | None, ...] = ()


def read_message(message: Any, number: int, speaker_field: str, text_field: str) -> Message:
    """Return a message of a row.

    Args:
      number: its index in the conversation, for error messages.
      speaker_field, text_field: the names of its fields in this layout.

    Raises:
      Unmapped: it is not a message, or says two things.
    """
    where = f"message {number}"
    if not isinstance(message, dict) or not isinstance(message.get(speaker_field), str):
        raise Unmapped(f"a message needs {speaker_field!r} and {text_field!r}", where)
    name = message[speaker_field]
    if any(message.get(kind) for kind in MEDIA_FIELDS):
        raise Unmapped("it contains images, audio or video", where)
    speaker = _SPEAKERS.get(name)
    if speaker is None:
        raise Unmapped(
            "it comes neither from the user nor from the agent", f"{where}, from {name!r:.40}"
        )
    calls = message.get("tool_calls") or message.get("function_call")
    content = message.get(text_field)
    text = _text("" if calls and content is None else content, where)
    trained = read_flags(message, where)
    if speaker == "agent":
        return _agent_message(message, name, text, calls, trained, where)
    if calls:
        raise Unmapped("tool calls that are not the agent's", where)
    result = result_text(text) if speaker in ("user", "result") else None
    call_id = message.get("tool_call_id")
    ids = (call_id if isinstance(call_id, str) else None,)
    if result is not None:
        return Message("result", result, ids=ids)
    return Message(speaker, text, ids=ids)


def read_flags(fields: dict[str, Any], where: str) -> bool:
    """Return whether the flags of a message or step allow training on it; without any, they do."""
    flags = {bool(fields[name]) for name in FLAGS if fields.get(name) is not None}
    for name in FLAGS:
        if fields.get(name) not in (None, False, True):  # 0 and 1 equal these
            raise Unmapped(f"its {name!r} must be true or false", where)
    if len(flags) > 1:
        raise Unmapped("its flags contradict each other", where)
    return flags != {False}


def _agent_message(
    message: dict[str, Any], name: str, text: str, calls: Any, trained: bool, where: str
) -> Message:
    given = [message[field] for field in _THOUGHTS if message.get(field) is not None]
    if not all(isinstance(thought, str) for thought in given):
        raise Unmapped("its thought is not a string", where)
    thoughts = {thought.strip() for thought in given} - {""}
    if len(thoughts) > 1:
        raise Unmapped("it has two thoughts", where)
    thought = next(iter(thoughts), None)
    if name == "function_call":
        before, tag, rest = text.rpartition("</think>")
        action = written_action(rest, where)
        return Message("agent", before + tag, trained, thought, action, _unnamed_ids(action))
    if calls:
        action, ids = call_action(calls, where)
        return Message("agent", text, trained, thought, action, ids)
    text, tagged, count = tagged_action(text, where)
    return Message("agent", text, trained, thought, tagged, (None,) * count)


def _unnamed_ids(action: str) -> tuple[None, ...]:
    calls = decode(action)
    return (None,) * (len(calls) if isinstance(calls, list) else 1)


def _text(content: Any, where: str) -> str:
    """Return a message's text, which may be a list of text parts."""
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise Unmapped("its content is not a string", where)
    return content
