"""Turn templates and the first user turn.

The prompt of a state is

    turn_open  Your task is to: {task}.  {first observation}  response_open
               <action> {executed action} </action>  response_end
    turn_open  {next observation}  response_open  …

Past turns are direct responses: their reasoning is not part of the prompt. So one state has one
prompt, whichever kind of action drove the episode there, and prompt action and CoT action differ
only in the response (arXiv 2606.26935 prefills it with `<action>` to elicit the prompt action).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TASK = "Your task is to: {task}."


@dataclass(frozen=True)
class TurnTemplate:
    """The marks around user turns and responses.

    Attributes:
      name: in configs, "chatml" for example.
      turn_open: before a user turn.
      response_open: between a user turn and the response.
      response_end: the end-of-turn token, which the model must learn to write.
      turn_gap: between `response_end` and the next turn.
      system_open: before a system message, which ends with `response_end`.
      begin: the first token of every prompt, where a template has one.
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
    name="chatml",
    turn_open="<|im_start|>user\n",
    response_open="<|im_end|>\n<|im_start|>assistant\n",
    response_end="<|im_end|>",
    turn_gap="\n",
    system_open="<|im_start|>system\n",
)
LLAMA3 = TurnTemplate(
    name="llama3",
    turn_open="<|start_header_id|>user<|end_header_id|>\n\n",
    response_open="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    response_end="<|eot_id|>",
    turn_gap="",
    system_open="<|start_header_id|>system<|end_header_id|>\n\n",
    begin="<|begin_of_text|>",
)
TEMPLATES = {template.name: template for template in (CHATML, LLAMA3)}


def first_turn(task: str, observation: str, wording: str = TASK) -> str:
    """Return the first user turn. `wording`: its first line, with `{task}` for the task."""
    return f"{wording.format(task=task)}\n{observation}"
