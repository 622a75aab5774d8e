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
    """What stands around a user turn and a response. `response_end` is the end-of-turn token: the model must learn to write it."""

    name: str
    turn_open: str
    response_open: str
    response_end: str
    turn_gap: str


CHATML = TurnTemplate("chatml", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", "\n")
LLAMA3 = TurnTemplate(
    "llama3",
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|eot_id|>",
    "",
)
TEMPLATES = {template.name: template for template in (CHATML, LLAMA3)}


@dataclass(frozen=True)
class Response:
    """A parsed response. `problem` says why there is no valid action, and is None where there is one."""

    thought: str | None
    action: str | None
    problem: str | None


def first_turn(task: str, observation: str) -> str:
    """The user's words in the first turn."""
    return f"Your task is to: {task}.\n{observation}"


def normalize_action(action: str) -> str:
    """The text that the environment receives: whitespace runs become one space."""
    return " ".join(action.split())


def parse_response(text: str, *, prefilled: bool) -> Response:
    """Read the thought and the action out of a decoded response.

    `prefilled`: the response was prefilled with `<action>` (a prompt action), so `text` begins inside the tag. What follows
    `</action>` is not looked at: there decoding stops.
    """
    if prefilled:
        text = ACTION_OPEN + text
    head, opened, rest = text.partition(ACTION_OPEN)
    thought, problem = _parse_thought(head)
    if problem:
        return Response(thought, None, problem)
    if not opened:
        return Response(thought, None, f"no {ACTION_OPEN}")
    body, closed, _ = rest.partition(ACTION_CLOSE)
    if not closed:
        return Response(thought, None, f"no {ACTION_CLOSE}")
    if re.search("|".join(map(re.escape, TAGS)), body):
        return Response(thought, None, "a tag inside the action")
    action = normalize_action(body)
    return Response(thought, action or None, None if action else "an empty action")


def _parse_thought(head: str) -> tuple[str | None, str | None]:
    """The reasoning before the action -> (thought, problem)."""
    head = head.strip()
    if not head:
        return None, None
    if not head.startswith(THINK_OPEN):
        return None, f"text before {THINK_OPEN}"
    body, closed, after = head[len(THINK_OPEN) :].partition(THINK_CLOSE)
    if not closed:
        return body.strip(), f"no {THINK_CLOSE}"
    if after.strip():
        return body.strip(), f"text between {THINK_CLOSE} and {ACTION_OPEN}"
    return body.strip(), None
