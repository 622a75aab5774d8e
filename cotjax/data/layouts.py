"""Public layouts of agent data, row by row -> the fields of a trajectory. What a row does not say is never guessed.

    eto, agentgym      {"conversations": [{"from": "human" | "gpt", "value": …, "loss": …}, …], "id" | "item_id": …}
    messages           {"messages": [{"role": "system" | "user" | "assistant", "content": …, "weight": …}, …]}
    prompt-response    {"prompt": …, "response": …}, or "completion" or "output" for the response, "instruction" for the prompt

A response is `Thought: … Action: …`, or `<think>…</think><action>…</action>`, or an action alone of either kind.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cotjax import formats
from cotjax.envs.base import TASK_TYPES

IMPORTED_BEFORE = "imported, before the action"


class Unmapped(Exception):
    """A row that is no trajectory; the message says why, and `kind` is the same for all rows with that fault."""

    def __init__(self, kind: str, where: str = ""):
        super().__init__(f"{where}: {kind}" if where else kind)
        self.kind = kind


@dataclass(frozen=True)
class Turn:
    """One message. `who`: "user" or "agent". `trained`: false where the row says that it is not trained on."""

    who: str
    text: str
    trained: bool = True


_SPEAKERS = {"human": "user", "user": "user", "gpt": "agent", "assistant": "agent", "system": "system"}
_PROMPTS, _RESPONSES = ("prompt", "instruction"), ("response", "completion", "output")


def conversation_turns(row: dict) -> list[Turn]:
    return [_turn(message, number, "from", "value", "loss") for number, message in enumerate(_messages(row, "conversations"))]


def message_turns(row: dict) -> list[Turn]:
    return [_turn(message, number, "role", "content", "weight") for number, message in enumerate(_messages(row, "messages"))]


def prompt_turns(row: dict) -> list[Turn]:
    prompt, response = (next((row[name] for name in names if name in row), None) for names in (_PROMPTS, _RESPONSES))
    if isinstance(prompt, list) and isinstance(response, list):
        return message_turns({"messages": prompt + response})
    if not isinstance(prompt, str) or not isinstance(response, str):
        raise Unmapped("prompt and response must be texts")
    more = row.get("input") or ""
    if not isinstance(more, str):
        raise Unmapped("input must be a text")
    return [Turn("user", f"{prompt}\n{more}" if more else prompt), Turn("agent", response)]


LAYOUTS: dict[str, Callable[[dict], list[Turn]]] = {
    "eto": conversation_turns,
    "agentgym": conversation_turns,
    "messages": message_turns,
    "prompt-response": prompt_turns,
}


def layout_of(row: dict) -> str:
    """The layout that a row's fields tell. Raises Unmapped where they tell none."""
    if "conversations" in row:
        turns = row["conversations"]
        flagged = isinstance(turns, list) and any(isinstance(turn, dict) and "loss" in turn for turn in turns)
        return "agentgym" if flagged else "eto"
    if "messages" in row:
        return "messages"
    if any(name in row for name in _PROMPTS) and any(name in row for name in _RESPONSES):
        return "prompt-response"
    raise Unmapped("its fields are none of a known layout")


def _messages(row: dict, name: str) -> list:
    if not isinstance(row.get(name), list) or not row[name]:
        raise Unmapped(f"{name} must be a list of messages")
    return row[name]


def _turn(message: Any, number: int, speaker: str, text: str, flag: str) -> Turn:
    where = f"message {number}"
    if not isinstance(message, dict) or not isinstance(message.get(speaker), str):
        raise Unmapped(f"a message needs {speaker!r} and {text!r}", where)
    if message.get("tool_calls") or message.get("function_call"):
        raise Unmapped("tool calls are not actions in text", where)
    who = _SPEAKERS.get(message[speaker])
    if who is None:
        raise Unmapped("it comes neither from the user nor from the agent", f"{where}, from {message[speaker]!r:.40}")
    return Turn(who, _text(message.get(text), where), message.get(flag) != 0)


def _text(content: Any, where: str) -> str:
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise Unmapped("its content is no text", where)
    return content


# ---- turns -> task and steps

_THOUGHT_ACTION = re.compile(r"\s*(?:Thought|Think)[ \t]*:(?P<thought>.*?)(?<![^\s])Action[ \t]*:(?P<action>.*)", re.I | re.S)
_ACTION = re.compile(r"\s*Action[ \t]*:(?P<action>.*)", re.I | re.S)
_MARK = re.compile(r"^[ \t]*(?:Thought|Think|Action|Observation)[ \t]*:", re.I | re.M)
_TAG = re.compile("|".join(map(re.escape, formats.TAGS)))
_OK = re.compile(r"\s*(?:ok|okay|sure|understood|got it)\b", re.I)
_OBSERVATION = re.compile(r"\s*Observation[ \t]*:", re.I)
_AVAILABLE = re.compile(r"\n[ \t]*AVAILABLE ACTIONS[ \t]*:(?P<commands>[^\n]*)\s*$", re.I)
# Each names the task on a line of its own, or to the end of its sentence.
_TASK = re.compile(
    r"(?:^|(?<=[\s.]))(?:(?:Task Description[ \t]*:\s*)?Your (?:task|goal) is to (?P<sentence>[^\n.]+)"
    r"|(?:Your task is to|Your goal is to|Your task is|Your goal is|Your goal|Task Description|Task|Goal)[ \t]*:[ \t]*(?P<line>[^\n]+))",
    re.I,
)


def as_steps(turns: list[Turn]) -> tuple[str, list[dict]]:
    """Turns -> (task, steps as the schema has them). Raises Unmapped."""
    turns = [turn for turn in turns if turn.who != "system"]
    while turns and turns[-1].who == "user":
        turns = turns[:-1]  # what the environment said last: nobody answers it
    if not turns:
        raise Unmapped("the agent never speaks")
    for number, turn in enumerate(turns):
        if turn.who != ("user", "agent")[number % 2]:
            raise Unmapped("user and agent do not take turns", f"turn {number}")
    if len(turns) > 2 and _acknowledges(turns[1]):
        turns = turns[2:]  # the instruction and its "OK": then comes the first observation
    task, first = _split_task(turns[0].text)
    steps = []
    for number in range(0, len(turns), 2):
        observation, commands = _split_commands(turns[number].text if number else first)
        thought, action = _split_response(turns[number + 1].text, f"step {number // 2}")
        steps.append(
            {
                "observation": _OBSERVATION.sub("", observation, count=1).strip(),
                "thought": thought,
                "action": action,
                "provenance": IMPORTED_BEFORE if thought is not None else None,
                "admissible_commands": commands,
                "trained": turns[number + 1].trained,
            }
        )
    return task, steps


def _acknowledges(turn: Turn) -> bool:
    """Whether the agent only says that it has understood: an "OK", or what the row does not train on, without an action."""
    return not _MARK.search(turn.text) and not _TAG.search(turn.text) and (not turn.trained or bool(_OK.match(turn.text)))


def _split_task(text: str) -> tuple[str, str]:
    """The first observation -> (task, the observation without the line that names it)."""
    found = list(_TASK.finditer(text))
    if not found:
        raise Unmapped("the first observation names no task, as in 'Your task is to: …'")
    last = found[-1]  # behind examples, should there be any
    task = (last["line"] or last["sentence"]).strip().rstrip(".").strip()
    return task, f"{text[: last.start()].rstrip()}\n{text[last.end() :].lstrip(' .').strip()}".strip()


def _split_commands(text: str) -> tuple[str, list[str]]:
    found = _AVAILABLE.search(text)
    commands = found["commands"].strip() if found else ""
    if commands.startswith("["):
        try:
            named = ast.literal_eval(commands)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return text, []
        if not all(isinstance(command, str) for command in named):
            return text, []
    else:
        named = commands.split(",")
    return text[: found.start()] if found else text, [command.strip() for command in named if command.strip()]


def _split_response(text: str, where: str) -> tuple[str | None, str]:
    if formats.ACTION_OPEN in text or formats.THINK_OPEN in text:
        response = formats.parse_response(text, prefilled=False)
        if response.problem:
            raise Unmapped(f"the response has {response.problem}", where)
        return response.thought or None, response.action
    found = _THOUGHT_ACTION.fullmatch(text) or _ACTION.fullmatch(text)
    if not found:
        raise Unmapped("the response is neither 'Thought: … Action: …' nor <action>…</action>", where)
    thought, action = found.groupdict().get("thought"), found["action"].strip()
    if not action:
        raise Unmapped("the response has an empty action", where)
    if "\n" in action or _MARK.search(action) or (thought and _MARK.search(thought)):
        raise Unmapped("the response holds more than one thought and one action", where)
    return (thought or "").strip() or None, formats.normalize_action(action)


# ---- what else a row says


def task_type_of(row: dict) -> tuple[str, str]:
    """(task type, game) where the row names them, or an ALFWorld game file; else "unknown"."""
    game = row.get("game_file") or row.get("gamefile") or row.get("game")
    game = game if isinstance(game, str) else "unknown"
    parts = game.replace("\\", "/").split("/")
    for number, part in enumerate(parts):
        if part.split("-")[0] in TASK_TYPES:
            return part.split("-")[0], "/".join(parts[number : number + 2])
    kind = row.get("task_type")
    return kind if isinstance(kind, str) else "unknown", game


def environment_of(row: dict) -> str | None:
    """AgentGym's item ids begin with it: `alfworld_12`."""
    found = re.fullmatch(r"([a-z_]+)_\d+", str(row.get("item_id")))
    return found[1] if found else None


def id_of(row: dict, number: int) -> str:
    found = next((row[name] for name in ("id", "item_id") if isinstance(row.get(name), str | int)), None)
    return str(number) if found is None or not str(found).strip() else str(found)


def outcome_of(row: dict) -> tuple[bool | None, float | None]:
    """(success, reward) as the row says; None where it says nothing."""
    success = row.get("success")
    reward = next((row[name] for name in ("reward", "score") if isinstance(row.get(name), int | float)), None)
    return success if isinstance(success, bool) else None, None if isinstance(reward, bool) else reward
