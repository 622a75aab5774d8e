"""Public layouts of agent data: a row -> an episode. Nothing that a row does not say is guessed.

    eto, agentgym    {"conversations": [{"from": "human" | "gpt", "value": …, "loss": …}, …],
                      "id" | "item_id": …}
    sharegpt         the same with tools: "from" is "function_call", "observation" or "tool" too,
                     or a value has <tool_call> tags
    messages         {"messages": [{"role": "system" | "user" | "assistant" | "tool",
                                    "content": …, "weight": …}, …]}
                     with `tool_calls`, <tool_call> tags, or `reasoning_content`
    alpaca           {"instruction": …, "input": …, "output": …, "history": [[…, …], …],
                      "system": …}
    prompt-response  {"prompt": …, "response": …}, or "completion" or "output" for the response
    verl-agent       a prompt-response or messages row whose prompt is verl-agent's
    steps            {"steps": [{"observation": …, "admissible_commands": […], "thought": …,
                                 "action": …, "valid": …}, …], "game_id": …}

docs/data.md describes how each is read; `cotjax.data.importing.responses` reads the responses.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from cotjax.data.importing.facts import FACT_FIELDS
from cotjax.data.importing.messages import MEDIA_FIELDS, MESSAGE_FIELDS, Message, read_message
from cotjax.data.importing.recorded import STEP_FIELDS, STEPS_FIELDS, as_recorded
from cotjax.data.importing.steps import Episode, as_episode
from cotjax.data.importing.unmapped import Unmapped
from cotjax.data.importing.verl_agent import as_verl_agent, is_verl_agent

_PROMPTS, _RESPONSES = ("prompt", "instruction"), ("response", "completion", "output")
_CONTENT_FIELDS = frozenset(
    (
        *("conversations", "messages", "history", "system", "tools"),
        *(*_PROMPTS, "input", *_RESPONSES, *STEPS_FIELDS),
    )
)
_EMPTY: tuple[object, ...] = (None, "", [], {})


def read_conversations(row: dict[str, Any]) -> list[Message]:
    """Return the messages of `conversations`. Raises Unmapped."""
    return _row_system(row) + _read_messages(row, "conversations", "from", "value")


def read_messages(row: dict[str, Any]) -> list[Message]:
    """Return the messages of `messages`. Raises Unmapped."""
    return _row_system(row) + _read_messages(row, "messages", "role", "content")


def read_prompt(row: dict[str, Any]) -> list[Message]:
    """Return the messages of a history, a prompt and its response. Raises Unmapped."""
    names = _PROMPTS if any(row.get(name) is not None for name in _PROMPTS) else ("input",)
    prompt, response = _only(row, names), _only(row, _RESPONSES)
    if isinstance(prompt, list):
        if isinstance(response, str):
            response = [{"role": "assistant", "content": response}]
        if not isinstance(response, list) or row.get("history"):
            raise Unmapped("prompt and response must be strings, or lists of messages")
        return read_messages({"messages": prompt + response, "system": row.get("system")})
    if not isinstance(prompt, str) or not isinstance(response, str):
        raise Unmapped("prompt and response must be strings")
    more = "" if names == ("input",) else row.get("input") or ""
    if not isinstance(more, str):
        raise Unmapped("input must be a string")
    messages = _row_system(row)
    for pair in [*_history(row), [f"{prompt}\n{more}" if more else prompt, response]]:
        for speaker, text in zip(("user", "assistant"), pair, strict=True):
            message = {"role": speaker, "content": text}
            messages.append(read_message(message, len(messages), "role", "content"))
    return messages


_READERS: dict[str, Callable[[dict[str, Any]], list[Message]]] = {
    "eto": read_conversations,
    "agentgym": read_conversations,
    "sharegpt": read_conversations,
    "messages": read_messages,
    "alpaca": read_prompt,
    "prompt-response": read_prompt,
}
LAYOUTS = (*_READERS, "verl-agent", "steps")


def episode_of(row: dict[str, Any], layout: str = "auto") -> tuple[Episode, str, str | None]:
    """Return (a row's episode, the name of its layout, the environment that the layout implies).

    Args:
      layout: one of `LAYOUTS`, or "auto" to choose by the row's fields.

    Raises:
      Unmapped: the row does not have this layout, or lacks something that a trajectory needs.
    """
    if any(row.get(name) for name in MEDIA_FIELDS):
        raise Unmapped("it contains images, audio or video")
    if row.get("chosen") or row.get("rejected"):
        raise Unmapped("it contains a preferred and a rejected response, not an episode")
    name = layout_of(row) if layout in ("auto", "verl-agent") else layout
    if name == "steps":
        return as_recorded(row), name, None
    messages = _READERS[name](row)
    if layout == "verl-agent" or (layout == "auto" and is_verl_agent(messages)):
        episode, environment = as_verl_agent(messages)
        return episode, "verl-agent", environment
    with_tools = any(message.call or message.speaker == "result" for message in messages)
    if layout == "auto" and name in ("eto", "agentgym") and with_tools:
        name = "sharegpt"
    episode = as_episode(messages)
    if tools := row.get("tools"):
        text = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
        episode.instructions.append(("lists of tools", text))
    return episode, name, None


def layout_of(row: dict[str, Any]) -> str:
    """Return the layout that a row's fields match. Raises Unmapped if they match none, or two."""
    prompted = any(row.get(name) is not None for name in (*_PROMPTS, "input")) and any(
        row.get(name) is not None for name in _RESPONSES
    )
    lists = [name for name in ("conversations", "messages", "steps") if row.get(name) is not None]
    if len(lists) > 1 or (lists and prompted):
        raise Unmapped("its fields match two layouts; choose one with --layout")
    if lists == ["conversations"]:
        messages = row["conversations"]
        flagged = isinstance(messages, list) and any(
            isinstance(message, dict) and "loss" in message for message in messages
        )
        return "agentgym" if flagged else "eto"
    if lists:
        return lists[0]
    if prompted:
        return "alpaca" if "instruction" in row and "prompt" not in row else "prompt-response"
    raise Unmapped("its fields match no known layout")


def unread_fields(row: dict[str, Any]) -> list[str]:
    """Return descriptions of the fields of a row and its messages that no layout has."""
    known = _CONTENT_FIELDS | FACT_FIELDS
    unread = [f"the field {name!r:.60}" for name in _unknown(row, known)]
    for kind, known, parts in (
        ("messages", MESSAGE_FIELDS, row.get("messages")),
        ("messages", MESSAGE_FIELDS, row.get("conversations")),
        ("messages", MESSAGE_FIELDS, row.get("prompt")),
        ("steps", STEP_FIELDS, row.get("steps")),
    ):
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                unread += [f"the field {name!r:.60} of {kind}" for name in _unknown(part, known)]
    return unread


def _unknown(fields: dict[str, Any], known: frozenset[str]) -> list[str]:
    return [name for name, value in fields.items() if name not in known and value not in _EMPTY]


def _only(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Return the value of the one field of these that the row has."""
    values = [row[name] for name in names if row.get(name) is not None]
    if len(values) > 1:
        raise Unmapped(f"it has more than one of {', '.join(names)}")
    return values[0] if values else None


def _read_messages(
    row: dict[str, Any], name: str, speaker_field: str, text_field: str
) -> list[Message]:
    messages = row.get(name)
    if not isinstance(messages, list) or not messages:
        raise Unmapped(f"{name} must be a list of messages")
    return [
        read_message(message, number, speaker_field, text_field)
        for number, message in enumerate(messages)
    ]


def _history(row: dict[str, Any]) -> list[list[str]]:
    history = row.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in history
    ):
        raise Unmapped("history must be a list of [prompt, response]")
    return history


def _row_system(row: dict[str, Any]) -> list[Message]:
    system = row.get("system")
    if system and not isinstance(system, str):
        raise Unmapped("its 'system' is not a string")
    return [Message("system", system)] if system else []
