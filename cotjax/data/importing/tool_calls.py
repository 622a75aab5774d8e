"""Tool calls as the text of an action: the JSON of the call, as it is in the file.

    one call         {"name": "get_weather", "arguments": {"city": "Paris"}}
    several calls    [{"name": …, "arguments": …}, {"name": …, "arguments": …}]

Text that is JSON in the row (between <tool_call> tags, the value of a function_call, an `arguments`
string) is kept unchanged, so `json.loads` returns the calls.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from cotjax.data.importing.unmapped import Unmapped
from cotjax.data.json_text import decode

_TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.S)
_RESULT = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.S)
_NO_CALL = 'a tool call must be JSON with a "name" and "arguments"'


def call_action(calls: Any, where: str) -> tuple[str, tuple[str | None, ...]]:
    """Return (action, ids) of OpenAI's `tool_calls`, or of one `function_call`. Raises Unmapped."""
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list):
        raise Unmapped(_NO_CALL, where)
    action = _joined([_call_text(call, where) for call in calls])
    return action, tuple(_id_of(call) for call in calls)


def written_action(text: str, where: str) -> str:
    """Return the action of a call that is given as text. Raises Unmapped."""
    text = text.strip()
    try:
        calls = decode(text)
    except ValueError:
        try:
            calls = ast.literal_eval(text)  # {'name': …}: many Hermes rows are Python literals
            text = json.dumps(calls, ensure_ascii=False)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise Unmapped(_NO_CALL, where) from None
    if not _are_calls(calls):
        raise Unmapped(_NO_CALL, where)
    return text


def tagged_action(text: str, where: str) -> tuple[str, str | None, int]:
    """Split text with <tool_call> tags.

    Return (the text before the calls, the action or None, the number of calls). Raises Unmapped.
    """
    tagged = list(_TAGGED.finditer(text))
    if not tagged:
        if "<tool_call>" in text or "</tool_call>" in text:
            raise Unmapped("a <tool_call> is not closed", where)
        return text, None, 0
    start = tagged[0].start()
    if _TAGGED.sub("", text[start:]).strip():
        raise Unmapped("text after or between the tool calls", where)
    return text[:start], _joined([written_action(call[1], where) for call in tagged]), len(tagged)


def result_text(text: str) -> str | None:
    """Return the content of <tool_response> tags; None where there is other text too, or no tag."""
    results = list(_RESULT.finditer(text))
    if not results or _RESULT.sub("", text).strip():
        return None
    return "\n".join(result[1] for result in results)


def is_call(text: str) -> bool:
    """Return whether `text` reads as the action of a tool call."""
    try:
        return _are_calls(decode(text))
    except ValueError:
        return False


def _are_calls(calls: Any) -> bool:
    """Return whether a JSON value is a call, or a list of calls."""
    return all(map(_is_call, calls)) if isinstance(calls, list) and calls else _is_call(calls)


def _call_text(call: Any, where: str) -> str:
    if isinstance(call, dict) and call.get("type", "function") == "function":
        function = call.get("function", call)
        if _is_call(function) and "arguments" in function:
            arguments = function["arguments"]
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            name = json.dumps(function["name"], ensure_ascii=False)
            return f'{{"name": {name}, "arguments": {arguments.strip()}}}'
    raise Unmapped(_NO_CALL, where)


def _is_call(call: Any) -> bool:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return False
    arguments = call.get("arguments", call.get("parameters"))
    try:
        return isinstance(decode(arguments) if isinstance(arguments, str) else arguments, dict)
    except ValueError:
        return False


def _id_of(call: Any) -> str | None:
    id = call.get("id") if isinstance(call, dict) else None
    return id if isinstance(id, str) else None


def _joined(texts: list[str]) -> str:
    if len(texts) == 1:
        return texts[0]
    if any(text.startswith("[") for text in texts):
        texts = [text[1:-1] if text.startswith("[") else text for text in texts]
    return f"[{', '.join(texts)}]"
