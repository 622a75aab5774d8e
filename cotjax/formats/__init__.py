"""What a model reads and writes: the turns of a prompt, and the response."""

from cotjax.formats.response import (
    ACTION_CLOSE,
    ACTION_OPEN,
    PROBLEMS,
    TAGS,
    THINK_CLOSE,
    THINK_OPEN,
    Response,
    normalize_action,
    parse_response,
)
from cotjax.formats.turns import CHATML, LLAMA3, TASK, TEMPLATES, TurnTemplate, first_turn

__all__ = [
    "ACTION_CLOSE",
    "ACTION_OPEN",
    "CHATML",
    "LLAMA3",
    "PROBLEMS",
    "TAGS",
    "TASK",
    "TEMPLATES",
    "THINK_CLOSE",
    "THINK_OPEN",
    "Response",
    "TurnTemplate",
    "first_turn",
    "normalize_action",
    "parse_response",
]
