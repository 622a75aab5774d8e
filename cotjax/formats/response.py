"""The response format: `<think>` … `</think><action>` … `</action>`, or the action alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cotjax.formats.turns import TEMPLATES

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ACTION_OPEN, ACTION_CLOSE = "<action>", "</action>"
TAGS = (THINK_OPEN, THINK_CLOSE, ACTION_OPEN, ACTION_CLOSE)


# Why a response has no valid action: reason -> its words.
PROBLEMS = {
    "no_action": f"no {ACTION_OPEN}",
    "two_actions": "two actions",
    "unclosed_action": f"no {ACTION_CLOSE}",
    "empty_action": "an empty action",
    "tag_in_action": "a tag inside the action",
    "control_token": "a control token inside the action",
    "text_before": f"text before {THINK_OPEN}",
    "unclosed_thought": f"no {THINK_CLOSE}",
    "text_between": f"text between {THINK_CLOSE} and {ACTION_OPEN}",
    "text_after": f"text after {ACTION_CLOSE}",
    "cut": "cut by the token limit",
}


@dataclass(frozen=True)
class Response:
    """A parsed response. `reason` is a key of PROBLEMS; None for a valid response."""

    thought: str | None
    action: str | None
    reason: str | None = None

    @property
    def problem(self) -> str | None:
        """The reason in words; None for a valid response."""
        return None if self.reason is None else PROBLEMS[self.reason]


def normalize_action(action: str) -> str:
    """Return the text that the environment receives: each run of whitespace becomes one space."""
    return " ".join(action.split())


def parse_response(text: str, *, prefilled: bool, stopped: bool = True) -> Response:
    """Return the thought and the action of a decoded response.

    A response is valid if all of it is `<think>` … `</think><action>` … `</action>`, or the action
    alone; an end-of-turn token and whitespace may follow. Whether the environment accepts the
    action is another question.

    Args:
      prefilled: the response was prefilled with `<action>` (a prompt action), so `text` starts
        inside the tag.
      stopped: the model ended the response. One that reached the token limit before it was
        well-formed is "cut".
    """
    response = _parse(ACTION_OPEN + text if prefilled else text)
    if response.reason in ("no_action", "unclosed_action", "unclosed_thought") and not stopped:
        return Response(response.thought, None, "cut")
    return response


def _parse(text: str) -> Response:
    head, opened, rest = text.partition(ACTION_OPEN)
    thought, reason = _parse_thought(head)
    if reason:
        return Response(thought, None, reason)
    if not opened:
        return Response(thought, None, "no_action")
    body, closed, after = rest.partition(ACTION_CLOSE)
    if not closed:
        return Response(thought, None, "unclosed_action")
    if re.search("|".join(map(re.escape, TAGS)), body):
        return Response(thought, None, "tag_in_action")
    for template in TEMPLATES.values():
        after = after.replace(template.response_end, " ")
    if after.strip():
        return Response(thought, None, "two_actions" if ACTION_OPEN in after else "text_after")
    action = normalize_action(body)
    return Response(thought, action or None, None if action else "empty_action")


def _parse_thought(head: str) -> tuple[str | None, str | None]:
    """Return (thought, reason why it is not valid) of the text before the action."""
    head = head.strip()
    if not head:
        return None, None
    if not head.startswith(THINK_OPEN):
        return None, "text_before"
    body, closed, after = head[len(THINK_OPEN) :].partition(THINK_CLOSE)
    if not closed:
        return body.strip(), "unclosed_thought"
    if after.strip():
        return body.strip(), "text_between"
    return body.strip(), None
