"""Public layouts of agent data, row by row -> episodes. What a row does not say is never guessed.

    eto, agentgym      {"conversations": [{"from": "human" | "gpt", "value": …, "loss": …}, …], "id" | "item_id": …}
    sharegpt           the same with tools: "from" is "function_call", "observation" or "tool" too, or <tool_call> tags in a value
    messages           {"messages": [{"role": "system" | "user" | "assistant" | "tool", "content": …, "weight": …}, …]}, with
                       `tool_calls`, <tool_call> tags, or `reasoning_content`
    alpaca             {"instruction": …, "input": …, "output": …, "history": [[…, …], …], "system": …}
    prompt-response    {"prompt": …, "response": …}, or "completion" or "output" for the response
    verl-agent         a prompt-response or messages row whose prompt is verl-agent's

docs/data.md says how each is read; `cotjax.data.importing.responses` which forms a response may have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from cotjax.data.importing.steps import as_episode
from cotjax.data.importing.tool_calls import call_action, result_text, tagged_action, written_action
from cotjax.data.importing.turns import Episode, Turn, Unmapped
from cotjax.data.importing.verl_agent import as_verl_agent, is_verl_agent
from cotjax.data.json_text import decode
from cotjax.envs.base import TASK_TYPES

_SPEAKERS = {
    "human": "user", "user": "user", "gpt": "agent", "assistant": "agent", "function_call": "agent", "system": "system",
    "developer": "system", "tool": "result", "function": "result", "observation": "result",
}  # fmt: skip
_FLAGS = ("loss", "weight", "train", "trained")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_PROMPTS, _RESPONSES = ("prompt", "instruction"), ("response", "completion", "output")
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_EMPTY = (None, "", [], {})
_ROW_FIELDS = frozenset(
    ("conversations", "messages", *_PROMPTS, "input", *_RESPONSES, "history", "system", "tools", "id", "item_id", "game_file", "gamefile",
     "game", "task_type", "environment", "split", "success", "reward", "score")
)  # fmt: skip
_MESSAGE_FIELDS = frozenset(
    ("from", "value", "role", "content", "tool_calls", "function_call", "tool_call_id", "name", *_FLAGS, *_THOUGHTS)
)  # fmt: skip
# AgentInstruct numbers its rows by environment: os_0, os_1, …
_INSTRUCT = ("alfworld", "db", "kg", "mind2web", "os", "webshop")


def conversation_turns(row: dict) -> list[Turn]:
    """Return the turns of `conversations`. Raises Unmapped."""
    return _row_system(row) + [
        _turn(message, number, "from", "value")
        for number, message in enumerate(_messages(row, "conversations"))
    ]


def message_turns(row: dict) -> list[Turn]:
    """Return the turns of `messages`. Raises Unmapped."""
    return _row_system(row) + [
        _turn(message, number, "role", "content")
        for number, message in enumerate(_messages(row, "messages"))
    ]


def prompt_turns(row: dict) -> list[Turn]:
    """Return the turns of a prompt, its response, and the history before them. Raises Unmapped."""
    names = _PROMPTS if any(row.get(name) is not None for name in _PROMPTS) else ("input",)
    prompt, response = _only(row, names), _only(row, _RESPONSES)
    if isinstance(prompt, list):
        response = (
            [{"role": "assistant", "content": response}] if isinstance(response, str) else response
        )
        if not isinstance(response, list) or row.get("history"):
            raise Unmapped("prompt and response must be texts, or lists of messages")
        return message_turns({"messages": prompt + response, "system": row.get("system")})
    if not isinstance(prompt, str) or not isinstance(response, str):
        raise Unmapped("prompt and response must be texts")
    more = "" if names == ("input",) else row.get("input") or ""
    if not isinstance(more, str):
        raise Unmapped("input must be a text")
    turns = _row_system(row)
    history = row.get("history") or []
    if not isinstance(history, list):
        raise Unmapped("history must be a list of [prompt, response]")
    for pair in [*history, [f"{prompt}\n{more}" if more else prompt, response]]:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(text, str) for text in pair)
        ):
            raise Unmapped("history must be a list of [prompt, response]")
        for speaker, text in zip(("user", "assistant"), pair, strict=True):
            turns.append(_turn({"role": speaker, "content": text}, len(turns), "role", "content"))
    return turns


_TURNS: dict[str, Callable[[dict], list[Turn]]] = {
    "eto": conversation_turns,
    "agentgym": conversation_turns,
    "sharegpt": conversation_turns,
    "messages": message_turns,
    "alpaca": prompt_turns,
    "prompt-response": prompt_turns,
}
LAYOUTS = (*_TURNS, "verl-agent")


def episode_of(row: dict, layout: str = "auto") -> tuple[Episode, str, str | None]:
    """Return a row's episode, the name of its layout, and the environment where the layout names it.

    `layout`: one of `LAYOUTS`, or "auto": the row's fields tell.

    Raises:
      Unmapped: the row is not of this layout, or does not say for sure what a trajectory must hold.
    """
    if any(row.get(name) for name in _MEDIA):
        raise Unmapped("it holds pictures, sound or video")
    if row.get("chosen") or row.get("rejected"):
        raise Unmapped("it holds a preferred and a rejected response, not an episode")
    kind = layout_of(row) if layout in ("auto", "verl-agent") else layout
    turns = _TURNS[kind](row)
    if layout == "verl-agent" or (layout == "auto" and is_verl_agent(turns)):
        episode, environment = as_verl_agent(turns)
        return episode, "verl-agent", environment
    if (
        layout == "auto"
        and kind in ("eto", "agentgym")
        and any(turn.call or turn.who == "result" for turn in turns)
    ):
        kind = "sharegpt"
    episode = as_episode(turns)
    if tools := row.get("tools"):
        text = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
        episode.instructions.append(("lists of tools", text))
    return episode, kind, None


def unread_fields(row: dict) -> list[str]:
    """Return the fields of a row and its messages that no layout has; they are passed over, and counted."""
    found = [
        f"the field {name!r:.60}"
        for name, value in row.items()
        if name not in _ROW_FIELDS and value not in _EMPTY
    ]
    for messages in (row.get("messages"), row.get("conversations"), row.get("prompt")):
        for message in messages if isinstance(messages, list) else ():
            items = message.items() if isinstance(message, dict) else ()
            names = (
                name for name, value in items if name not in _MESSAGE_FIELDS and value not in _EMPTY
            )
            found += [f"the field {name!r:.60} of messages" for name in names]
    return found


def layout_of(row: dict) -> str:
    """Return the layout that a row's fields tell. Raises Unmapped where they tell none, or two."""
    prompted = any(row.get(name) is not None for name in (*_PROMPTS, "input")) and any(
        row.get(name) is not None for name in _RESPONSES
    )
    found = [name for name in ("conversations", "messages") if row.get(name) is not None]
    if len(found) > 1 or (found and prompted):
        raise Unmapped("its fields are those of two layouts; --layout says which to read")
    if found == ["conversations"]:
        turns = row["conversations"]
        flagged = isinstance(turns, list) and any(
            isinstance(turn, dict) and "loss" in turn for turn in turns
        )
        return "agentgym" if flagged else "eto"
    if found:
        return "messages"
    if prompted:
        return "alpaca" if "instruction" in row and "prompt" not in row else "prompt-response"
    raise Unmapped("its fields are none of a known layout")


def _only(row: dict, names: tuple[str, ...]) -> Any:
    """The value of the one field of these that the row has."""
    found = [row[name] for name in names if row.get(name) is not None]
    if len(found) > 1:
        raise Unmapped(f"it has more than one of {', '.join(names)}")
    return found[0] if found else None


def _messages(row: dict, name: str) -> list:
    if not isinstance(row.get(name), list) or not row[name]:
        raise Unmapped(f"{name} must be a list of messages")
    return row[name]


def _row_system(row: dict) -> list[Turn]:
    if row.get("system") and not isinstance(row["system"], str):
        raise Unmapped("its 'system' is no text")
    return [Turn("system", row["system"])] if row.get("system") else []


def _turn(message: Any, number: int, speaker: str, content: str) -> Turn:
    where = f"message {number}"
    if not isinstance(message, dict) or not isinstance(message.get(speaker), str):
        raise Unmapped(f"a message needs {speaker!r} and {content!r}", where)
    name = message[speaker]
    if any(message.get(kind) for kind in _MEDIA):
        raise Unmapped("it holds pictures, sound or video", where)
    who = _SPEAKERS.get(name)
    if who is None:
        raise Unmapped(
            "it comes neither from the user nor from the agent", f"{where}, from {name!r:.40}"
        )
    calls = message.get("tool_calls") or message.get("function_call")
    text = _text("" if calls and message.get(content) is None else message.get(content), where)
    trained = _trained(message, where)
    if who == "agent":
        return _agent_turn(message, name, text, calls, trained, where)
    if calls:
        raise Unmapped("tool calls that are not the agent's", where)
    result = result_text(text) if who in ("user", "result") else None
    who = "result" if result is not None else who
    ids = (
        (message.get("tool_call_id"),) if isinstance(message.get("tool_call_id"), str) else (None,)
    )
    return Turn(who, text if result is None else result, ids=ids)


def _agent_turn(message: dict, name: str, text: str, calls: Any, trained: bool, where: str) -> Turn:
    thoughts = [message[field] for field in _THOUGHTS if message.get(field) is not None]
    if not all(isinstance(thought, str) for thought in thoughts):
        raise Unmapped("its thought is no text", where)
    thoughts = {thought.strip() for thought in thoughts} - {""}
    if len(thoughts) > 1:
        raise Unmapped("it has two thoughts", where)
    thought = next(iter(thoughts), None)
    if name == "function_call":
        before, closed, rest = text.rpartition("</think>")
        call = written_action(rest, where)
        return Turn("agent", before + closed, trained, thought, call, _unnamed(call))
    if calls:
        call, ids = call_action(calls, where)
        return Turn("agent", text, trained, thought, call, ids)
    text, call, count = tagged_action(text, where)
    return Turn("agent", text, trained, thought, call, (None,) * count)


def _unnamed(call: str) -> tuple[None, ...]:
    called = decode(call)
    return (None,) * (len(called) if isinstance(called, list) else 1)


def _trained(message: dict, where: str) -> bool:
    """Whether the message's flags say that it is trained on; none says nothing, and that is yes."""
    said = {bool(message[name]) for name in _FLAGS if message.get(name) is not None}
    for name in _FLAGS:
        if message.get(name) not in (None, False, True):  # 0 and 1 are equal to these
            raise Unmapped(f"its {name!r} must be true or false", where)
    if len(said) > 1:
        raise Unmapped("its flags contradict each other", where)
    return said != {False}


def _text(content: Any, where: str) -> str:
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise Unmapped("its content is no text", where)
    return content


# ---- what else a row says


def facts_of(row: dict, environment: str | None, defaults: dict[str, str]) -> dict[str, Any]:
    """Return the fields of a trajectory beside id, task and steps.

    Args:
      environment: as the layout names it.
      defaults: environment and split of rows that name none.

    Raises:
      Unmapped: a field is there but is not what it must be.
    """
    task_type, game = _task_type_of(row)
    success, reward = _outcome_of(row)
    return {
        "environment": _name(row, "environment")
        or environment
        or _environment_of(row)
        or defaults["environment"],
        "split": _name(row, "split") or defaults["split"],
        "task_type": task_type,
        "game": game,
        "success": success,
        "reward": reward,
    }


def id_of(row: dict, number: int) -> str:
    """Return the row's own id, or its number."""
    for name in ("id", "item_id"):
        found = row.get(name)
        if found is not None and (isinstance(found, bool) or not isinstance(found, str | int)):
            raise Unmapped(f"its {name!r} is neither a text nor a number")
        if found is not None and str(found).strip():
            return str(found)
    return str(number)


def _name(row: dict, field: str) -> str | None:
    found = row.get(field)
    if found is not None and not isinstance(found, str):
        raise Unmapped(f"its {field!r} is no text")
    return found if found and found.strip() else None


def _task_type_of(row: dict) -> tuple[str, str]:
    """(task type, game) where the row names them, or an ALFWorld game file; else "unknown"."""
    game = _name(row, "game_file") or _name(row, "gamefile") or _name(row, "game") or "unknown"
    parts = game.replace("\\", "/").split("/")
    for number, part in enumerate(parts):
        if part.split("-")[0] in TASK_TYPES:
            return part.split("-")[0], "/".join(parts[number : number + 2])
    return _name(row, "task_type") or "unknown", game


def _environment_of(row: dict) -> str | None:
    """AgentGym's item ids begin with it, `alfworld_12`, and AgentInstruct's ids."""
    found = re.fullmatch(r"([a-z_]+)_\d+", str(row.get("item_id")))
    if (
        found is None
        and (found := re.fullmatch(r"([a-z0-9]+)_\d+", str(row.get("id"))))
        and found[1] not in _INSTRUCT
    ):
        return None
    return found[1] if found else None


def _outcome_of(row: dict) -> tuple[bool | None, float | None]:
    """(success, reward) as the row says; None where it says nothing."""
    success = row.get("success")
    if success is not None and not isinstance(success, bool):
        raise Unmapped("its 'success' must be true or false")
    said = {
        name: _number(row[name], name) for name in ("reward", "score") if row.get(name) is not None
    }
    if len(set(said.values())) > 1:
        raise Unmapped("its reward and its score differ")
    return success, next(iter(said.values()), None)


def _number(value: Any, name: str) -> float:
    if isinstance(value, str):
        try:
            value = decode(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unmapped(f"its {name!r} is no number")
    return value
