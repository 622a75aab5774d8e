"""The parts of a response in a chat: calls with text before them, or an answer without calls.

    <think> why </think> I look it up. <tool_call> a </tool_call> <tool_call> b </tool_call> <end>
    REASONING ------------------------ OPEN        ACTION CLOSE   OPEN        ACTION CLOSE   END

    <think> why </think> It is sunny. <end>
    REASONING ---------- ACTION ----- END

The action is what leaves the conversation: the calls, or else the answer. If a template marks calls
with no tag of `Tags`, all that it writes of them after the reasoning and the text is the action;
the control tokens around it open and close it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from cotjax.masking.roles import Role
from cotjax.masking.text import Malformed, Part, Span, Tags, end_parts, is_quoted, one_of

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")


def written_texts(message: Mapping[str, Any]) -> list[str]:
    """Return the texts of the content of a message, one for each part; none for None."""
    content = message.get("content")
    if content is None:
        return []
    return (
        [content]
        if isinstance(content, str)
        else [part["text"] for part in content if part.get("type", "text") == "text"]
    )


def visible_texts(message: Mapping[str, Any], tags: Tags) -> list[str]:
    """Return the texts after the thought of a response, cut at the tags.

    A template must write these, whatever it does with past reasoning.
    """
    return _pieces("".join(written_texts(message)).rpartition(tags.think_close)[2], tags)


def content_spans(
    text: str, start: int, end: int, message: Mapping[str, Any], tags: Tags
) -> list[tuple[str, Span | None]]:
    """Locate the pieces of a response in `text[start:end]`, in order.

    The pieces are its reasoning field, then its content, cut at the tags. Returns (piece, its span,
    or None where it is missing).
    """
    pieces = [_reasoning(message)] if _reasoning(message) else []
    spans: list[tuple[str, Span | None]] = []
    at = start
    for piece in pieces + _pieces("".join(written_texts(message)), tags):
        here = text.find(piece, at, end)
        spans.append((piece, None if here < 0 else (here, here + len(piece))))
        at = at if here < 0 else here + len(piece)
    return spans


def missing_call(text: str, message: Mapping[str, Any]) -> str | None:
    """Return the first name or plain argument of a call that is not in `text`, or None."""
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        for value in (function.get("name"), *_leaves(function.get("arguments"))):
            if value is not None and str(value) not in text:
                return str(value)
    return None


def chat_parts(
    text: str,
    start: int,
    end: int,
    message: Mapping[str, Any],
    tags: Tags,
    ends: tuple[str, ...],
    pieces: Sequence[Span],
) -> list[Part]:
    """Return the parts of a response, in order and without gaps up to its end-of-turn token.

    `pieces`: the spans of its reasoning field and of the pieces of its content.

    Raises:
      Malformed: a call is not closed, text follows the calls, or there is neither a call nor an
        answer.
    """
    response = text[start:end]
    matches = [
        match
        for match in re.finditer(one_of(astuple(tags)), response)
        if not is_quoted(response, match, tags)
    ]
    closes = [start + match.end() for match in matches if match[0] == tags.think_close]
    if not closes and any(match[0] == tags.think_open for match in matches):
        raise Malformed(
            f"{tags.think_open} is not closed by {tags.think_close}; the response begins", start
        )
    reasoned = closes[0] if closes else pieces[0][1] if _reasoning(message) else start
    calls = [
        match
        for match in matches
        if match[0] in (tags.action_open, tags.action_close) and start + match.start() >= reasoned
    ]
    if calls:
        return _tagged(text, start, end, calls, tags, ends)
    answers = [piece for piece in pieces if piece[0] >= reasoned]
    if message.get("tool_calls"):
        return _untagged(text, start, answers[-1][1] if answers else reasoned, end, message, ends)
    if not answers:
        raise Malformed("neither a call nor an answer in the response that begins", start)
    begin, stop = answers[0][0], answers[-1][1]
    return [
        (start, begin, Role.REASONING),
        (begin, stop, Role.ACTION),
        *end_parts(text, stop, end, ends),
    ]


def _tagged(
    text: str, start: int, end: int, calls: Sequence[re.Match], tags: Tags, ends: tuple[str, ...]
) -> list[Part]:
    parts: list[Part] = []
    at = start
    for number, match in enumerate(calls):
        first, last = start + match.start(), start + match.end()
        closes = number % 2 == 1
        if match[0] != (tags.action_close if closes else tags.action_open):
            raise Malformed(
                f"{match[0]} where {tags.action_close if closes else tags.action_open} is expected",
                first,
            )
        if closes:
            if not text[at:first].strip():
                raise Malformed("the action is empty", at)
            parts += [(at, first, Role.ACTION), (first, last, Role.ACTION_CLOSE)]
        else:
            # The space between two calls announces another call, as its tag does.
            between = Role.ACTION_OPEN if number and not text[at:first].strip() else Role.REASONING
            parts += [(at, first, between), (first, last, Role.ACTION_OPEN)]
        at = last
    if len(calls) % 2:
        raise Malformed(
            f"{tags.action_open} is not closed by {tags.action_close}",
            start + calls[-1].start(),
        )
    return parts + end_parts(text, at, end, ends)


def _untagged(
    text: str, start: int, begin: int, end: int, message: Mapping[str, Any], ends: tuple[str, ...]
) -> list[Part]:
    """Return the parts of a response whose calls, from `begin`, are marked by no tag.

    The last control token ends the turn.
    """
    if missing_call(text[begin:end], message) is not None:
        raise Malformed("the template does not write the calls after the text", begin)
    token = rf"\s*(?:{one_of(ends)})"
    calls = re.compile(
        rf"(?P<open>(?:{token})*)(?P<calls>.*?)(?P<close>(?:{token})*?)(?P<end>{token})?\s*",
        re.DOTALL,
    ).fullmatch(text, begin, end)
    assert calls is not None, "the expression matches any text"
    roles = (Role.ACTION_OPEN, Role.ACTION, Role.ACTION_CLOSE, Role.END)
    parts: list[Part] = [(start, begin, Role.REASONING)]
    for piece, role in zip(calls.groups(""), roles, strict=True):
        if piece:
            parts.append((parts[-1][1], parts[-1][1] + len(piece), role))
    return parts


def _reasoning(message: Mapping[str, Any]) -> str:
    """Return the reasoning of a message that has a field for it; else ""."""
    return next(
        (
            message[field].strip()
            for field in REASONING_FIELDS
            if isinstance(message.get(field), str)
        ),
        "",
    )


def _pieces(text: str, tags: Tags) -> list[str]:
    return [piece.strip() for piece in re.split(one_of(astuple(tags)), text) if piece.strip()]


def _leaves(arguments: Any) -> Iterator[str | int]:
    """Yield the plain words and integers of a call's arguments, which templates write unchanged."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return
    for value in (
        arguments.values()
        if isinstance(arguments, Mapping)
        else arguments
        if isinstance(arguments, list)
        else ()
    ):
        if isinstance(value, Mapping | list):
            yield from _leaves(value)
        elif type(value) is int or (
            isinstance(value, str) and re.fullmatch(r"\w+", value, re.ASCII)
        ):
            yield value
