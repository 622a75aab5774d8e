"""A tokenizer's own chat template: which turn template it is, and its default system message.

The template is rendered in jinja's sandbox, as transformers does, and its text is compared with
that of our turn templates.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cotjax.errors import DataError, UsageError
from cotjax.formats import TEMPLATE_SYSTEM, TEMPLATES, Prompt, TurnTemplate

AUTO = "auto"
_USER, _ANSWER, _NEXT = "What is it?", "A mug.", "And now?"


def resolved(template: str, prompt: Prompt, folder: str | Path) -> tuple[TurnTemplate, Prompt]:
    """Return the turn template, and the prompt with its system message as text.

    "auto" and "template" are read from the chat template in the tokenizer's folder. Raises as
    `turn_template` and `default_system`.
    """
    turns = turn_template(template, folder)
    if prompt.system == TEMPLATE_SYSTEM:
        prompt = replace(prompt, system=default_system(turns, folder))
    return turns, prompt


def turn_template(name: str, folder: str | Path | None = None) -> TurnTemplate:
    """Return the turn template of this name; of "auto" the one that fits the tokenizer's own.

    Raises:
      UsageError: there is no such template, or none fits the chat template in `folder`.
      DataError: the chat template cannot be read.
    """
    if name == AUTO:
        if folder is None:
            raise UsageError(
                "data.template is 'auto', but the tokenizer is made from the data and has no chat "
                f"template; set it to one of {', '.join(TEMPLATES)}"
            )
        return _fitting(Path(folder))
    if name not in TEMPLATES:
        raise UsageError(
            f"unknown turn template {name!r}; it must be one of {', '.join((*TEMPLATES, AUTO))}"
        )
    return TEMPLATES[name]


def has_template(folder: str | Path) -> bool:
    """Return whether the tokenizer in a folder has a chat template. Raises DataError."""
    try:
        return bool(_chat_template(Path(folder)))
    except UsageError:
        return False


def default_system(template: TurnTemplate, folder: str | Path) -> str:
    """Return the system message that the tokenizer's chat template adds by itself; "" for none.

    Raises:
      UsageError: there is no chat template, or it writes what `template` cannot express.
      DataError: the chat template cannot be read.
    """
    text = _render(Path(folder), [{"role": "user", "content": _USER}])
    system = _system(template, text.partition(_USER)[0])
    if system is None:
        raise UsageError(
            f"{folder}: its chat template begins with {text.partition(_USER)[0][:80]!r}, which is "
            f"not a system message of the turn template {template.name!r}; set prompt.system to "
            "the text, or another data.template"
        )
    return system


def _system(template: TurnTemplate, before: str) -> str | None:
    """Return the system message in the text before the first user message; None if it is none."""
    head, tail = template.begin, template.turn_open
    if not (before.startswith(head) and before.endswith(tail)):
        return None
    between = before[len(head) : len(before) - len(tail)]
    opened, closed = template.system_open, template.system_close + template.turn_gap
    if not between:
        return ""
    if not (opened and between.startswith(opened) and between.endswith(closed)):
        return None
    return between[len(opened) : len(between) - len(closed)]


def _fitting(folder: Path) -> TurnTemplate:
    """Return the turn template that writes what the chat template in `folder` writes."""
    messages = [
        {"role": "user", "content": _USER},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": _NEXT},
    ]
    thinks = _render(folder, messages)
    # Templates that cannot switch reasoning off ignore this variable.
    silent = _render(folder, messages, enable_thinking=False)
    before = thinks.partition(_USER)[0]
    for template in TEMPLATES.values():
        written = (
            f"{before}{_USER}{template.response_open}{_ANSWER}{template.response_end}"
            f"{template.turn_gap}{template.turn_open}{_NEXT}{template.response_open}"
        )
        cot, direct = written + template.cot_open, written + template.direct_open
        # One that always opens `<think>` may have no switch.
        switched = (cot, direct) if template.cot_open else (direct,)
        if thinks == cot and silent in switched and _system(template, before) is not None:
            return template
    raise UsageError(
        f"{folder}: its chat template is none of {', '.join(TEMPLATES)}; it writes {thinks[:160]!r}"
        "; set data.template to the closest one, which the model is then trained on"
    )


# ---- rendering


def _render(folder: Path, messages: list[dict[str, str]], **variables: Any) -> str:
    """Return the text of messages up to where the response begins."""
    source, tokens = _chat_template(folder)
    try:
        return (
            _environment()
            .from_string(source)
            .render(messages=messages, add_generation_prompt=True, **tokens, **variables)
        )
    except TemplateError as error:
        # Today's date is not offered: a prompt must be the same on every day.
        raise UsageError(
            f"{folder}: its chat template cannot be rendered ({error}); set data.template to one "
            f"of {', '.join(TEMPLATES)} and prompt.system to a text"
        ) from None


def _chat_template(folder: Path) -> tuple[str, dict[str, str]]:
    """Return the chat template in a tokenizer's folder, and the special tokens that it names."""
    settings = _read_object(folder / "tokenizer_config.json")
    tokens = {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in settings.items()
        if name.endswith("_token") and isinstance(value, str | dict)
    }
    file = folder / "chat_template.jinja"
    source = (
        file.read_text(encoding="utf-8")
        if file.is_file()
        else _read_object(folder / "chat_template.json").get("chat_template")
        or settings.get("chat_template")
    )
    if isinstance(source, list):  # several by name
        source = next((each["template"] for each in source if each.get("name") == "default"), None)
    if not isinstance(source, str) or not source:
        raise UsageError(
            f"{folder}: the tokenizer has no chat template; set data.template to one of "
            f"{', '.join(TEMPLATES)}, and prompt.system to a text or ''"
        )
    return source, tokens


def _read_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not JSON ({error}); copy the tokenizer again") from None
    return content if isinstance(content, dict) else {}


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **how: json.dumps(
        value, ensure_ascii=False, **how
    )
    environment.globals["raise_exception"] = _raise
    return environment


def _raise(message: str) -> None:
    raise TemplateError(message)
