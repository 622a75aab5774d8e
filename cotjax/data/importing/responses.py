"""The thought and the action of a response. A response that can be read in two ways is refused."""

from __future__ import annotations

import re

from cotjax import formats
from cotjax.data.importing import tool_calls
from cotjax.data.importing.turns import Turn, Unmapped
from cotjax.data.json_text import decode

_THINK = re.compile(
    rf"\s*{formats.THINK_OPEN}(?P<thought>.*?){formats.THINK_CLOSE}(?P<rest>.*)", re.S
)
_THOUGHT = re.compile(r"\s*(?:Thought|Think)[ \t]*:", re.I)
# "Action:" anywhere, and in any case at the beginning of a line.
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
    """Return whether a text has the outer marks of a thought, an action or a tool call."""
    return "<tool_call>" in text or any(
        mark.search(text) for mark in (_ACTION, _OTHERS, _FINAL, _TAG)
    )


def split_response(turn: Turn, where: str, tools: bool) -> tuple[str | None, str]:
    """Return (thought or None, action) of a message of the agent.

    The action keeps its text. `tools`: the agent calls tools in this episode, so a message without a
    call is an answer, and its text the action.

    Raises:
      Unmapped: the message is none of the known forms, or could be two.
    """
    if turn.call is not None:
        thought, rest = _beside_call(turn.text, where)
        if rest.strip():
            raise Unmapped("text beside the tool call is neither a thought nor part of it", where)
        return _one_thought(turn.thought, thought, where), turn.call
    if tools:
        return _answer(turn, where)
    thought, action = _split_text(turn.text, where)
    return _one_thought(turn.thought, thought, where), action


def _split_text(text: str, where: str) -> tuple[str | None, str]:
    if formats.ACTION_OPEN in text or text.count(formats.THINK_OPEN) != text.count(
        formats.THINK_CLOSE
    ):
        response = formats.parse_response(text, prefilled=False)
        if response.problem:
            raise Unmapped(f"the response has {response.problem}", where)
        # Not the parser's action, whose spaces are made one.
        return response.thought or None, text.partition(formats.ACTION_OPEN)[2].partition(
            formats.ACTION_CLOSE
        )[0].strip()
    if found := _THINK.fullmatch(text):
        thought, action = _split_named(found["rest"], where)
        return _one_thought(found["thought"], thought, where), action
    return _split_named(text, where)


def _split_named(text: str, where: str) -> tuple[str | None, str]:
    """Read `Thought: … Action: …`, an action alone, or the forms that public sets have beside it."""
    places = list(_ACTION.finditer(text))
    finals = list(_FINAL.finditer(text))
    if not places and len(finals) == 1:  # AgentInstruct kg: "Thought: … Final Answer: #3"
        head, action = text[: finals[0].start()], text[finals[0].start() :].strip()
        known = "\n" not in action
    elif places:
        head, action = text[: places[0].start()], text[places[0].end() :].strip()
        known = _known_action(action)
    else:
        raise Unmapped(
            "the response is neither 'Thought: … Action: …' nor <action>…</action>", where
        )
    labelled = _THOUGHT.match(head)
    thought = head[labelled.end() :] if labelled else head
    # Before AgentInstruct db's actions the thought has no name: "Let me look. Action: Operation …"
    unnamed = thought.strip() and not labelled and not _SQL.match(action)
    if unnamed:
        raise Unmapped("text stands before the action that is not marked as a thought", where)
    if not action or action.rstrip(":").strip().lower() == "final answer":
        raise Unmapped("the response has an empty action", where)
    if (
        len(places) > 1
        or not known
        or _OTHERS.search(thought)
        or (_INSIDE_ACTION.search(action) and not _FENCED.fullmatch(action))
    ):
        raise Unmapped("the response holds more than one thought and one action", where)
    return thought.strip() or None, action


def _known_action(action: str) -> bool:
    """Whether an action is of one line, or of several in a form that says where it ends."""
    if "\n" not in action or _SQL_ANSWER.fullmatch(action):
        return True
    if fenced := _FENCED.fullmatch(action):
        return "```" not in fenced["code"]
    if given := _INPUT.fullmatch(action):  # ToolBench, LangChain
        try:
            decode(given["input"].strip())
        except ValueError:
            return False
        return True
    return False


def _beside_call(text: str, where: str) -> tuple[str | None, str]:
    if formats.THINK_OPEN in text or formats.THINK_CLOSE in text:
        found = _THINK.fullmatch(text)
        if not found:
            raise Unmapped("the response has no whole <think>…</think>", where)
        return found["thought"], found["rest"]
    if (found := _THOUGHT.match(text)) and not acts(text[found.end() :]):
        return text[found.end() :], ""
    return None, text


def _answer(turn: Turn, where: str) -> tuple[str | None, str]:
    thought, text = _beside_call(turn.text, where)
    if not text.strip():
        raise Unmapped("the response has an empty action", where)
    if acts(text) or tool_calls.is_call(text.strip()):
        raise Unmapped("an answer that could be an action, in a row with tool calls", where)
    return _one_thought(turn.thought, thought, where), text.strip()


def _one_thought(apart: str | None, inside: str | None, where: str) -> str | None:
    apart, inside = ((thought or "").strip() for thought in (apart, inside))
    if apart and inside and apart != inside:
        raise Unmapped(
            "the response has two thoughts, one in its text and one in a field of its own", where
        )
    return apart or inside or None
