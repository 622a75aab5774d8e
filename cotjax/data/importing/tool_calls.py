"""Tool calls as action text, in one form: the JSON of the call, as it stands in the file.

    one call         {"name": "get_weather", "arguments": {"city": "Paris"}}
    several at once  [{"name": …, "arguments": …}, {"name": …, "arguments": …}]

Text that is JSON in the row (between <tool_call> tags, the value of a function_call, an `arguments`
string) is kept character for character, so `json.loads` gives the calls back.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from cotjax.data.importing.turns import Unmapped
from cotjax.data.json_text import decode

_TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.S)
_RESULT = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.S)
_NO_CALL = 'a tool call must be JSON with a "name" and "arguments"'


def call_action(calls: Any, where: str) -> tuple[str, tuple[str | None, ...]]:
    """Return (action, ids) of OpenAI's `tool_calls`, or of one `function_call`. Raises Unmapped."""
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list):
        raise Unmapped(_NO_CALL, where)
    return _joined([_call_text(call, where) for call in calls]), tuple(
        _id_of(call) for call in calls
    )


def written_action(text: str, where: str) -> str:
    """Return the action of a call that is written as text. Raises Unmapped."""
    text = text.strip()
    try:
        called = decode(text)
    except ValueError:
        try:
            called = ast.literal_eval(text)  # {'name': …}, as many Hermes rows have it
            text = json.dumps(called, ensure_ascii=False)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise Unmapped(_NO_CALL, where) from None
    if not all(map(_is_call, called if isinstance(called, list) and called else [called])):
        raise Unmapped(_NO_CALL, where)
    return text


def tagged_action(text: str, where: str) -> tuple[str, str | None, int]:
    """Return (text before, action or None, number of calls) of text with <tool_call> tags. Raises Unmapped."""
    found = list(_TAGGED.finditer(text))
    if not found:
        if "<tool_call>" in text or "</tool_call>" in text:
            raise Unmapped("a <tool_call> is not closed", where)
        return text, None, 0
    before, after = text[: found[0].start()], _TAGGED.sub("", text[found[0].start() :])
    if after.strip():
        raise Unmapped("text stands behind or between the tool calls", where)
    return before, _joined([written_action(call[1], where) for call in found]), len(found)


def result_text(text: str) -> str | None:
    """Return what stands in <tool_response> tags; None where the text is anything else too."""
    found = list(_RESULT.finditer(text))
    return (
        None
        if not found or _RESULT.sub("", text).strip()
        else "\n".join(result[1] for result in found)
    )


def is_call(text: str) -> bool:
    """Return whether `text` reads as the action of a tool call."""
    try:
        called = decode(text)
    except ValueError:
        return False
    return all(map(_is_call, called)) if isinstance(called, list) and called else _is_call(called)


def _call_text(call: Any, where: str) -> str:
    if isinstance(call, dict) and call.get("type", "function") == "function":
        function = call.get("function", call)
        if _is_call(function) and "arguments" in function:
            arguments = function["arguments"]
            text = (
                arguments
                if isinstance(arguments, str)
                else json.dumps(arguments, ensure_ascii=False)
            )
            return f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": {text.strip()}}}'
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
    found = call.get("id") if isinstance(call, dict) else None
    return found if isinstance(found, str) else None


def _joined(texts: list[str]) -> str:
    if len(texts) == 1:
        return texts[0]
    if any(text.startswith("[") for text in texts):
        texts = [text[1:-1] if text.startswith("[") else text for text in texts]
    return f"[{', '.join(texts)}]"
