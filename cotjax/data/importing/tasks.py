"""Find the task in a first observation, and the commands at the end of one; never guess."""

from __future__ import annotations

import ast
import re
from typing import NamedTuple

from cotjax.data.importing.unmapped import Unmapped

# Phrases of one public set each. They outrank the others, which may occur in instructions.
_KNOWN = (
    # WebShop
    re.compile(r"Instruction:[ \t]*\[SEP\]\s*(?P<task>[^\n]+?)\s*\[SEP\][ \t]*"),
    # AgentGym's tool worlds
    re.compile(
        r"You should (?:perform actions|use the tools|take actions) to accomplish the goal:[ \t]*"
        r"(?P<task>[^\n]+?)[ \t]*(?=Give me one action\b|\n|$)"
    ),
    # AgentInstruct os
    re.compile(r"(?:^|(?<=\s))(?:Now, )?my problem is:\s*(?P<task>.+?)\s*$", re.I | re.S),
    # AgentInstruct db
    re.compile(r"^(?P<task>[^\n]+)\n(?=The name of this table is )"),
)
# Only at the beginning of a line or a sentence: "The sign says Goal: win." names no task.
_BEGIN = r"(?:^[ \t]*|(?<=[.!?][ \n])[ \t]*)"
_LINE = re.compile(
    _BEGIN + r"(?:Task Description[ \t]*:\s*)?"
    r"(?:Your (?:task|goal|objective) is(?: to)?|Your (?:task|goal|objective)|Task Description"
    r"|Task|Goal|(?:A new )?Question)"
    r"[ \t]*:[ \t]*\n?[ \t]*(?P<task>[^\n]+)",
    re.I | re.M,
)
# "Your task is to: …" is the most certain of them.
_YOURS = re.compile(r"\s*(?:Task Description[ \t]*:\s*)?Your [a-z ]+:", re.I)
_SENTENCE = re.compile(
    _BEGIN + r"(?:Task Description[ \t]*:\s*)?"
    r"Your (?:task|goal|objective) is to (?P<task>[^\s:][^\n]*)",
    re.I | re.M,
)
_ABBREVIATION = re.compile(
    r"mr|mrs|ms|dr|st|no|vs|e\.g|i\.e|etc|approx|ca|fig|fl|oz|u\.s|."  # or a single letter
)
_AVAILABLE = re.compile(r"(?:^|\n)[ \t]*AVAILABLE ACTIONS[ \t]*:(?P<commands>[^\n]*)\s*$", re.I)
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def split_task(text: str, tools: bool) -> tuple[str, str]:
    """Return (task, the first observation without the words that name it).

    A period at the end of the task is left out: prompts add one.

    Args:
      tools: the agent calls tools, so the whole text is the task unless it says "Your task is …".

    Raises:
      Unmapped: no task is named, or more than one.
    """
    mentions = _mentions(text, tools)
    if not mentions:
        if tools and text.strip():
            return text.strip().removesuffix("."), ""
        raise Unmapped("the first observation names no task, as in 'Your task is to: …'")
    if len({mention.task.removesuffix(".") for mention in mentions}) > 1:
        raise Unmapped("the first observation names more than one task")
    first = mentions[0]
    before, after = text[: first.start].rstrip(), re.sub(r"^[ \t]*\n*", "", text[first.end :])
    rest = f"{before}\n{after}" if before and after else before or after
    return first.task.removesuffix("."), rest


def names_task(text: str) -> bool:
    """Return whether the text names a task, or several."""
    return bool(_mentions(text, tools=False))


def split_commands(text: str) -> tuple[str, list[str]]:
    """Return (an observation without the line AVAILABLE ACTIONS at its end, the commands there).

    A line whose commands cannot be separated with certainty stays in the observation.
    """
    line = _AVAILABLE.search(text)
    if not line:
        return text, []
    commands = line["commands"].strip()
    if commands.startswith("["):
        try:
            names = ast.literal_eval(commands)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return text, []
    else:
        names = _split_at_commas(commands)
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name.strip() for name in names
    ):
        return text, []
    return text[: line.start()], names


class _Mention(NamedTuple):
    """A place in a text that names a task."""

    start: int
    end: int
    task: str


def _mentions(text: str, tools: bool) -> list[_Mention]:
    """Return every place that names a task in the most certain way that occurs."""
    for pattern in () if tools else _KNOWN:
        if known := [_Mention(*match.span(), match["task"]) for match in pattern.finditer(text)]:
            return known
    lines = [_Mention(*match.span(), match["task"].strip()) for match in _LINE.finditer(text)]
    if yours := [line for line in lines if _YOURS.match(text, line.start)]:
        return yours
    sentences = [
        _Mention(match.start(), *_sentence(text, match.start("task"), match.end()))
        for match in _SENTENCE.finditer(text)
    ]
    if tools:
        return sentences
    # "Task Description: Your task is to boil water." is one place; the sentence is more exact.
    starts = {sentence.start for sentence in sentences}
    return sentences + [line for line in lines if line.start not in starts]


def _sentence(text: str, start: int, line_end: int) -> tuple[int, str]:
    """Return (the end of the sentence that begins at `start`, its words)."""
    for stop in re.finditer(r"[.!?](?=\s)", text[start:line_end]):
        words = text[start : start + stop.start()]
        rest = text[start + stop.end() : line_end].lstrip()
        word = re.split(r"[\s(]", words)[-1].lower()
        # A period of an abbreviation, or before a lower-case word, does not end the sentence: a
        # task that is too long is better than one that is cut.
        abbreviated = stop[0] == "." and _ABBREVIATION.fullmatch(word)
        if not abbreviated and (not rest or not rest[0].islower()):
            return start + stop.end(), words + stop[0]
    return line_end, text[start:line_end].strip()


def _split_at_commas(text: str) -> list[str] | None:
    """Split at commas outside brackets; return None where brackets do not match."""
    parts: list[str] = []
    closing: list[str] = []
    start = 0
    for index, character in enumerate(text):
        if character in _BRACKETS:
            closing.append(_BRACKETS[character])
        elif closing and character == closing[-1]:
            closing.pop()
        elif character in _BRACKETS.values():
            return None
        elif character == "," and not closing:
            parts.append(text[start:index])
            start = index + 1
    parts.append(text[start:])
    return None if closing else [part.strip() for part in parts if part.strip()]
