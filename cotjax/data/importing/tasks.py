"""The task that a first observation names, and the commands at its end. Nothing is guessed."""

from __future__ import annotations

import ast
import re

from cotjax.data.importing.turns import Unmapped

# Phrases of one public set each. They outrank the others, which may stand in instructions.
_KNOWN = (
    re.compile(r"Instruction:[ \t]*\[SEP\]\s*(?P<task>[^\n]+?)\s*\[SEP\][ \t]*"),  # WebShop
    re.compile(
        r"You should (?:perform actions|use the tools|take actions) to accomplish the goal:[ \t]*"  # AgentGym's tool worlds
        r"(?P<task>[^\n]+?)[ \t]*(?=Give me one action\b|\n|$)"
    ),
    re.compile(
        r"(?:^|(?<=\s))(?:Now, )?my problem is:\s*(?P<task>.+?)\s*$", re.I | re.S
    ),  # AgentInstruct os
    re.compile(r"^(?P<task>[^\n]+)\n(?=The name of this table is )"),  # AgentInstruct db
)
# At the beginning of a line or a sentence alone: "The sign says Goal: win." names no task.
_BEGIN = r"(?:^[ \t]*|(?<=[.!?][ \n])[ \t]*)"
_LINE = re.compile(
    _BEGIN + r"(?:Task Description[ \t]*:\s*)?"
    r"(?:Your (?:task|goal|objective) is(?: to)?|Your (?:task|goal|objective)|Task Description|Task|Goal|(?:A new )?Question)"
    r"[ \t]*:[ \t]*\n?[ \t]*(?P<task>[^\n]+)",
    re.I | re.M,
)
_YOURS = re.compile(
    r"\s*(?:Task Description[ \t]*:\s*)?Your [a-z ]+:", re.I
)  # "Your task is to: …", the surest of them
_SENTENCE = re.compile(
    _BEGIN
    + r"(?:Task Description[ \t]*:\s*)?Your (?:task|goal|objective) is to (?P<task>[^\s:][^\n]*)",
    re.I | re.M,
)
_ABBREVIATIONS = frozenset(
    (
        "mr",
        "mrs",
        "ms",
        "dr",
        "st",
        "no",
        "vs",
        "e.g",
        "i.e",
        "etc",
        "approx",
        "ca",
        "fig",
        "fl",
        "oz",
        "u.s",
    )
)
_AVAILABLE = re.compile(r"(?:^|\n)[ \t]*AVAILABLE ACTIONS[ \t]*:(?P<commands>[^\n]*)\s*$", re.I)
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def split_task(text: str, tools: bool) -> tuple[str, str]:
    """Return (task, the first observation without the words that name it).

    A period at the end of the task is left out: prompts put one there.
    `tools`: the agent calls tools, so the whole text is the task unless it says "Your task is …".

    Raises:
      Unmapped: no task is named, or more than one.
    """
    found = _named(text, tools)
    if not found:
        if tools and text.strip():
            return text.strip().removesuffix("."), ""
        raise Unmapped("the first observation names no task, as in 'Your task is to: …'")
    if len({task.removesuffix(".") for _, _, task in found}) > 1:
        raise Unmapped("the first observation names more than one task")
    start, end, task = found[0]
    before, after = text[:start].rstrip(), re.sub(r"^[ \t]*\n*", "", text[end:])
    return task.removesuffix("."), f"{before}\n{after}" if before and after else before or after


def names_task(text: str) -> bool:
    """Return whether the text names a task, or several."""
    return bool(_named(text, False))


def split_commands(text: str) -> tuple[str, list[str]]:
    """Return (an observation without the line AVAILABLE ACTIONS at its end, the commands there).

    A line whose commands cannot be told apart for sure stays in the observation.
    """
    found = _AVAILABLE.search(text)
    if not found:
        return text, []
    commands = found["commands"].strip()
    if commands.startswith("["):
        try:
            named = ast.literal_eval(commands)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return text, []
    else:
        named = _at_commas(commands)
    if not isinstance(named, list) or not all(
        isinstance(command, str) and command.strip() for command in named
    ):
        return text, []
    return text[: found.start()], named


def _named(text: str, tools: bool) -> list[tuple[int, int, str]]:
    """(start, end, task) of every place that names a task, of the surest kind that there is."""
    for pattern in () if tools else _KNOWN:
        if found := [
            (match.start(), match.end(), match["task"]) for match in pattern.finditer(text)
        ]:
            return found
    lines = [(match.start(), match.end(), match["task"].strip()) for match in _LINE.finditer(text)]
    if plain := [line for line in lines if _YOURS.match(text, line[0])]:
        return plain
    sentences = [
        (match.start(), *_sentence(text, match.start("task"), match.end()))
        for match in _SENTENCE.finditer(text)
    ]
    if tools:
        return sentences
    # "Task Description: Your task is to boil water." is one place, and the sentence says it best.
    return sentences + [
        line for line in lines if line[0] not in {start for start, _, _ in sentences}
    ]


def _sentence(text: str, start: int, line_end: int) -> tuple[int, str]:
    """Where the sentence that begins at `start` ends, and its words."""
    for stop in re.finditer(r"[.!?](?=\s)", text[start:line_end]):
        words, rest = (
            text[start : start + stop.start()],
            text[start + stop.end() : line_end].lstrip(),
        )
        word = re.split(r"[\s(]", words)[-1].lower()
        # A period that may belong to its word, or that no new sentence follows, ends nothing:
        # a task that is too long is whole.
        cut = stop[0] == "." and (word in _ABBREVIATIONS or len(word) == 1)
        if not cut and (not rest or not rest[0].islower()):
            return start + stop.end(), words + stop[0]
    return line_end, text[start:line_end].strip()


def _at_commas(text: str) -> list[str] | None:
    """The parts between commas outside brackets; None where brackets do not close."""
    parts, closing, start = [], [], 0
    for place, character in enumerate(text):
        if character in _BRACKETS:
            closing.append(_BRACKETS[character])
        elif closing and character == closing[-1]:
            closing.pop()
        elif character in _BRACKETS.values():
            return None
        elif character == "," and not closing:
            parts.append(text[start:place])
            start = place + 1
    parts.append(text[start:])
    return None if closing else [part.strip() for part in parts if part.strip()]
