"""Roles from chat messages: the tokenizer's own chat template, rendered turn by turn.

No `{% generation %}` marks are needed, which stock templates lack: where a response begins and ends is read off by rendering the
messages up to it. What is tokenised is the template's own whole text, so the ids are those of `apply_chat_template`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from cotjax.masking.roles import MaskError, RoleTokens
from cotjax.masking.text import DEFAULT_TAGS, Span, Tags, roles_from_text

TRAINED = ("all", "last")


def roles_from_messages(
    messages: Sequence[dict[str, Any]],
    tokenizer: Any,
    *,
    trained: str = "all",
    observations: Iterable[str] = ("user", "tool"),
    tags: Tags = DEFAULT_TAGS,
    name: str = "the example",
    **template: Any,
) -> RoleTokens:
    """Tokenise one conversation and say what each token is.

    Args:
      messages: `{"role": ..., "content": ...}`, as for `apply_chat_template`.
      tokenizer: a Hugging Face fast tokenizer with a chat template.
      trained: "all" assistant messages are responses, or the "last" alone (the others are prompt). Templates that strip the
        reasoning from past turns (Qwen3's) render a conversation otherwise than its turns: there it must be "last", with one
        example a response.
      observations: the contents of messages of these roles, behind the first response, are observations.
      tags, name: see `roles_from_text`.
      **template: more arguments for `apply_chat_template`, such as `tools` or `enable_thinking`.

    Raises:
      MaskError: the turns do not concatenate to the template's own whole, an observation is not in it as written, there is no
        response, or one is not well formed. It names the example, the message and the place.
    """
    if trained not in TRAINED:
        raise MaskError(f"trained must be one of {', '.join(TRAINED)}, not {trained!r}")
    written = [number for number, message in enumerate(messages) if message.get("role") == "assistant"]
    if not written:
        raise MaskError(f"{name}: no message of the role 'assistant', so there is nothing to train on")
    if not getattr(tokenizer, "is_fast", True):
        raise MaskError(f"{name}: character offsets need a fast tokenizer; load it with AutoTokenizer")

    def render(count: int, **more: Any) -> str:
        return tokenizer.apply_chat_template(list(messages[:count]), tokenize=False, **template, **more)

    whole = render(len(messages))
    responses: list[Span] = []
    given: list[Span] = []
    behind = 0
    for number in written if trained == "all" else written[-1:]:
        start = _common(whole, render(number, add_generation_prompt=True), number, "before", name, trained)
        end = _common(whole, render(number + 1), number, "with", name, trained)
        if responses:
            between = [(i, messages[i]) for i in range(behind + 1, number)]
            given += _observations(whole, responses[-1][1], start, between, set(observations), name)
        responses.append((start, end))
        behind = number
    known_ends = {str(token) for token in (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab())}
    ids, offsets = _tokens(tokenizer, whole, [edge for response in responses for edge in response])
    roles = roles_from_text(whole, offsets, responses, observations=given, tags=tags, ends=known_ends, name=name)
    return RoleTokens(np.asarray(ids, np.int32), roles)


def _tokens(tokenizer: Any, whole: str, edges: list[int]) -> tuple[list[int], list[Span]]:
    """(ids, offsets) of the text, cut at the edges: a response is tokenised as it is when a model writes it behind its prompt.

    Where the cut itself would add text (tokenizers that put a space before whatever they get), the whole is tokenised at once.
    """
    ids: list[int] = []
    offsets: list[Span] = []
    for start, end in pairwise([0, *edges, len(whole)]):
        piece = tokenizer(whole[start:end], add_special_tokens=False, return_offsets_mapping=True)
        ids += piece["input_ids"]
        offsets += [(start + first, start + last) for first, last in piece["offset_mapping"]]
    at_once = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    if "".join(tokenizer.convert_ids_to_tokens(ids)) == "".join(tokenizer.convert_ids_to_tokens(at_once["input_ids"])):
        return ids, offsets
    return at_once["input_ids"], at_once["offset_mapping"]


def _common(whole: str, part: str, number: int, how: str, name: str, trained: str) -> int:
    """The length of `part`, which must be how `whole` begins."""
    if whole.startswith(part):
        return len(part)
    at = next((i for i, (a, b) in enumerate(zip(whole, part, strict=False)) if a != b), min(len(whole), len(part)))
    advice = (
        "give one example a response, each with trained='last'"
        if trained == "all"
        else "the template renders the last response otherwise than its generation prompt announces; see its add_generation_prompt"
    )
    raise MaskError(
        f"{name}: the chat template renders the messages {how} message {number} as something that the whole conversation does not "
        f"begin with (from character {at}: {part[at : at + 30]!r}, in the whole {whole[at : at + 30]!r}); {advice}"
    )


def _observations(whole: str, start: int, end: int, between: list[tuple[int, dict]], kinds: set[str], name: str) -> list[Span]:
    """Where the contents of the messages between two responses stand."""
    spans = []
    for number, message in between:
        content = message.get("content")
        if message.get("role") not in kinds or not isinstance(content, str) or not content.strip():
            continue
        at = whole.find(content.strip(), start, end)
        if at < 0:
            raise MaskError(
                f"{name}: the chat template does not render the content of message {number} as it is written: {content.strip()[:40]!r}"
            )
        spans.append((at, at + len(content.strip())))
        start = spans[-1][1]
    return spans
