"""Split a response into thought and action; reject one that can be read in two ways."""

from __future__ import annotations

import re

from cotjax import formats
from cotjax.data.importing import tool_calls
from cotjax.data.importing.messages import Message
from cotjax.data.importing.unmapped import Unmapped
from cotjax.data.json_text import decode

_THINK = re.compile(
    rf"\s*{formats.THINK_OPEN}(?P<thought>.*?){formats.THINK_CLOSE}(?P<rest>.*)", re.S
)
_THOUGHT = re.compile(r"\s*(?:Thought|Think)[ \t]*:", re.I)
# "Action:" anywhere; in upper or lower case at the beginning of a line.
_ACTION = re.compile(r"(?:^[ \t]*(?i:Action|Act)|\b(?:Action|Act))[ \t]*:", re.M)
_OTHERS = re.compile(r"^[ \t]*(?:Thought|Think|Observation)[ \t]*:", re.I | re.M)
_INSIDE_ACTION = re.compile(r"\b(?:Thought|Think|Action|Act|Observation)[ \t]*:")
_FINAL = re.compile(r"^[ \t]*Final Answer[ \t]*:", re.M)
_FENCED = re.compile(r"(?P<name>[^\n`]*\n\s*)?```[^\n`]*\n(?P<code>.*?)\n?```", re.S)
_INPUT = re.compile(r"[^\n]+\n+[ \t]*Action Input[ \t]*:(?P<input>.*)", re.S)
_SQL_ANSWER = re.compile(r"Answer\s*\nFinal Answer:[^\n]*")  # AgentInstruct db
_SQL = re.compile(rf"Operation\s*\n```|{_SQL_ANSWER.pattern}$")
_TAG = re.compile("|".join(map(re.escape, formats.TAGS)))


def acts(text: str) -> bool:
    """Return whether a text has marks of a thought, an action or a tool call."""
    return "<tool_call>" in text or any(
        mark.search(text) for mark in (_ACTION, _OTHERS, _FINAL, _TAG)
    )


def split_response(message: Message, where: str, tools: bool) -> tuple[str | None, str]:
    """Return (thought or None, action) of a message of the agent; the action keeps its text.

    Args:
      where: the place of the message, for errors.
      tools: the agent calls tools in this episode, so a message without a call is an answer, whose
        text is the action.

    Raises:
      Unmapped: the message has none of the known forms, or could have two.
    """
    if message.call is not None:
        thought, rest = _split_next_to_call(message.text, where)
        if rest.strip():
            raise Unmapped(
                "text next to the tool call is neither a thought nor part of the call", where
            )
        return _one_thought(message.thought, thought, where), message.call
    if tools:
        return _answer(message, where)
    thought, action = _split_text(message.text, where)
    return _one_thought(message.thought, thought, where), action


def _split_text(text: str, where: str) -> tuple[str | None, str]:
    unbalanced = text.count(formats.THINK_OPEN) != text.count(formats.THINK_CLOSE)
    if formats.ACTION_OPEN in text or unbalanced:
        response = formats.parse_response(text, prefilled=False)
        if response.problem:
            raise Unmapped(f"the response has {response.problem}", where)
        # The parser's action has its whitespace normalised; this one keeps it.
        action = text.partition(formats.ACTION_OPEN)[2].partition(formats.ACTION_CLOSE)[0].strip()
        return response.thought or None, action
    if match := _THINK.fullmatch(text):
        thought, action = _split_named(match["rest"], where)
        return _one_thought(match["thought"], thought, where), action
    return _split_named(text, where)


def _split_named(text: str, where: str) -> tuple[str | None, str]:
    """Split `Thought: … Action: …`, an action alone, or other forms of public sets."""
    actions = list(_ACTION.finditer(text))
    finals = list(_FINAL.finditer(text))
    if not actions and len(finals) == 1:  # AgentInstruct kg: "Thought: … Final Answer: #3"
        head, action = text[: finals[0].start()], text[finals[0].start() :].strip()
        known = "\n" not in action
    elif actions:
        head, action = text[: actions[0].start()], text[actions[0].end() :].strip()
        known = _known_action(action)
    else:
        raise Unmapped(
            "the response is neither 'Thought: … Action: …' nor <action>…</action>", where
        )
    labelled = _THOUGHT.match(head)
    thought = head[labelled.end() :] if labelled else head
    # AgentInstruct db does not label its thoughts: "Let me look. Action: Operation …"
    unnamed = thought.strip() and not labelled and not _SQL.match(action)
    if unnamed:
        raise Unmapped("text before the action is not marked as a thought", where)
    if not action or action.rstrip(":").strip().lower() == "final answer":
        raise Unmapped("the response has an empty action", where)
    if (
        len(actions) > 1
        or not known
        or _OTHERS.search(thought)
        or (_INSIDE_ACTION.search(action) and not _FENCED.fullmatch(action))
    ):
        raise Unmapped("the response contains more than one thought and one action", where)
    return thought.strip() or None, action


def _known_action(action: str) -> bool:
    """Return whether an action has one line, or several in a form that marks its end."""
    if "\n" not in action or _SQL_ANSWER.fullmatch(action):
        return True
    if fenced := _FENCED.fullmatch(action):
        return "```" not in fenced["code"]
    if match := _INPUT.fullmatch(action):  # ToolBench, LangChain
        try:
            decode(match["input"].strip())
        except ValueError:
            return False
        return True
    return False


def _split_next_to_call(text: str, where: str) -> tuple[str | None, str]:
    """Return (thought or None, the rest) of the text next to a tool call."""
    if formats.THINK_OPEN in text or formats.THINK_CLOSE in text:
        match = _THINK.fullmatch(text)
        if not match:
            raise Unmapped("the response has no complete <think>…</think>", where)
        return match["thought"], match["rest"]
    if (label := _THOUGHT.match(text)) and not acts(text[label.end() :]):
        return text[label.end() :], ""
    return None, text


def _answer(message: Message, where: str) -> tuple[str | None, str]:
    thought, text = _split_next_to_call(message.text, where)
    if not text.strip():
        raise Unmapped("the response has an empty action", where)
    if acts(text) or tool_calls.is_call(text.strip()):
        raise Unmapped("an answer that could be an action, in a row with tool calls", where)
    return _one_thought(message.thought, thought, where), text.strip()


def _one_thought(field: str | None, inside: str | None, where: str) -> str | None:
    """Return the thought in another field, or inside the text; they must not differ."""
    thoughts = [thought.strip() for thought in (field, inside) if thought and thought.strip()]
    if len(set(thoughts)) > 1:
        raise Unmapped(
            "the response has two thoughts, one in its text and one in another field", where
        )
    return thoughts[0] if thoughts else None
