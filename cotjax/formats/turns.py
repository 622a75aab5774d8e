"""Turn templates: the marks around user turns and responses.

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
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TurnTemplate:
    """The marks around user turns and responses.

    Attributes:
      name: in configs, "chatml" for example.
      turn_open: before a user turn.
      response_open: between a user turn and the response.
      response_end: the end-of-turn token, which the model must learn to write.
      turn_gap: between `response_end` and the next turn.
      system_open, system_close: around a system message; `turn_gap` follows.
      begin: the first token of every prompt, where a template has one.
      think_open, think_close: around a thought, with the template's own line breaks.
      cot_open: prefilled before every CoT response, by a template whose responses begin inside
        `<think>`. Past turns have no thoughts, so it belongs to the response, not to the prompt.
      direct_open: before the action of a response that does not reason, where a template marks
        that (Qwen3's empty `<think>` block). Past turns are written without it.
    """

    name: str
    turn_open: str
    response_open: str
    response_end: str
    turn_gap: str
    system_open: str
    system_close: str
    begin: str = ""
    think_open: str = "<think>"
    think_close: str = "</think>"
    cot_open: str = ""
    direct_open: str = ""

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
            dict.fromkeys(
                mark for piece in pieces for mark in re.findall(r"<[|｜].*?[|｜]>", piece)
            )
        )


CHATML = TurnTemplate(
    name="chatml",
    turn_open="<|im_start|>user\n",
    response_open="<|im_end|>\n<|im_start|>assistant\n",
    response_end="<|im_end|>",
    turn_gap="\n",
    system_open="<|im_start|>system\n",
    system_close="<|im_end|>",
)
# Qwen3 and its thinking successors: a thought has lines of its own.
QWEN3 = replace(
    CHATML,
    name="qwen3",
    think_open="<think>\n",
    think_close="\n</think>\n\n",
    direct_open="<think>\n\n</think>\n\n",
)
# Qwen3-Thinking-2507: the generation prompt ends in an opened `<think>`.
QWEN3_THINKING = replace(QWEN3, name="qwen3-thinking", cot_open="<think>\n")
LLAMA3 = TurnTemplate(
    name="llama3",
    turn_open="<|start_header_id|>user<|end_header_id|>\n\n",
    response_open="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    response_end="<|eot_id|>",
    turn_gap="",
    system_open="<|start_header_id|>system<|end_header_id|>\n\n",
    system_close="<|eot_id|>",
    begin="<|begin_of_text|>",
)
# DeepSeek-R1 and its distilled models. A response that does not reason begins with the empty block
# that R1 itself writes where it does not reason.
R1 = TurnTemplate(
    name="r1",
    turn_open="<｜User｜>",
    response_open="<｜Assistant｜>",
    response_end="<｜end▁of▁sentence｜>",
    turn_gap="",
    system_open="",
    system_close="",
    begin="<｜begin▁of▁sentence｜>",
    think_open="<think>\n",
    think_close="\n</think>\n\n",
    cot_open="<think>\n",
    direct_open="<think>\n\n</think>\n\n",
)
TEMPLATES = {template.name: template for template in (CHATML, LLAMA3, QWEN3, QWEN3_THINKING, R1)}
