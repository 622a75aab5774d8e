"""The response format and the turn template: text in, text out.

A response is `<think>` reasoning `</think><action>` action `</action>`, or the action alone. The prompt of a state is

    turn_open  Your task is to: {task}.  {first observation}  response_open
               <action> {executed action} </action>  response_end
    turn_open  {next observation}  response_open  …

so past turns stand in it as direct responses: their reasoning is not part of the prompt. One state therefore has one prompt,
whichever kind of action drove the episode there, and prompt action and CoT action differ in the response alone
(arXiv 2606.26935 prefills the response with `<action>` to elicit the prompt action).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ACTION_OPEN, ACTION_CLOSE = "<action>", "</action>"
TAGS = (THINK_OPEN, THINK_CLOSE, ACTION_OPEN, ACTION_CLOSE)


@dataclass(frozen=True)
class TurnTemplate:
    """What stands around a user turn and a response.

    `response_end` is the end-of-turn token: the model must learn to write it. `turn_gap` stands between it and the next turn.
    `system_open` opens a system message, which ends as a response does. `begin` is the token that every prompt begins with, once.
    """

    name: str
    turn_open: str
    response_open: str
    response_end: str
    turn_gap: str
    system_open: str
    begin: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """The template's `<|…|>` marks, in order of first use."""
        pieces = (
            self.turn_open,
            self.response_open,
            self.response_end,
            self.system_open,
            self.begin,
        )
        return tuple(
            dict.fromkeys(mark for piece in pieces for mark in re.findall(r"<\|.*?\|>", piece))
        )


CHATML = TurnTemplate(
    "chatml", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", "\n", "<|im_start|>system\n"
)  # fmt: skip
LLAMA3 = TurnTemplate(
    "llama3",
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|eot_id|>",
    "",
    "<|start_header_id|>system<|end_header_id|>\n\n",
    "<|begin_of_text|>",
)
TEMPLATES = {template.name: template for template in (CHATML, LLAMA3)}


# Why a response has no valid action: code -> what a person reads.
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
    """A parsed response. `reason`, a key of PROBLEMS, says why there is no valid action; None where there is one."""

    thought: str | None
    action: str | None
    reason: str | None = None

    @property
    def problem(self) -> str | None:
        """The reason in words."""
        return None if self.reason is None else PROBLEMS[self.reason]


def first_turn(task: str, observation: str) -> str:
    """The user's words in the first turn."""
    return f"Your task is to: {task}.\n{observation}"


def normalize_action(action: str) -> str:
    """The text that the environment receives: whitespace runs become one space."""
    return " ".join(action.split())


def parse_response(text: str, *, prefilled: bool, stopped: bool = True) -> Response:
    """Read the thought and the action out of a decoded response.

    A response is valid when it is, from end to end, `<think>` … `</think><action>` … `</action>` or the action alone; an
    end-of-turn token and whitespace may follow. Whether the environment would accept the action is another question.

    `prefilled`: the response was prefilled with `<action>` (a prompt action), so `text` begins inside the tag. `stopped`: the
    model ended it; one that ran into the token limit before it was well-formed is "cut".
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
    """The reasoning before the action -> (thought, reason why it is none)."""
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
