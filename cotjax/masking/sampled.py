"""Roles of sampled ids, also of malformed responses: cut off, with two actions, or with none.

The ids are kept as sampled. A text has many encodings, so decoding and encoding it again could
change the ids, and the loss must be that of the sampled ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cotjax.masking.arrays import integers
from cotjax.masking.messages import end_texts
from cotjax.masking.responses import chat_parts, content_spans
from cotjax.masking.roles import MaskError, Role
from cotjax.masking.text import (
    DEFAULT_TAGS,
    Malformed,
    Part,
    Span,
    Tags,
    action_parts,
    is_quoted,
    one_of,
    token_roles,
)


class SampledRoles(NamedTuple):
    """`ids` int32 [T], `roles` int8 [T], and why the response is malformed (None: it is not)."""

    ids: np.ndarray
    roles: np.ndarray
    reason: str | None


def roles_from_ids(
    ids: Sequence[int],
    tokenizer: Any,
    *,
    prompt: int,
    responses: str = "action",
    tags: Tags = DEFAULT_TAGS,
    ends: Iterable[str] | None = None,
    prefilled: str = "",
    name: str = "the sample",
) -> SampledRoles:
    """Return the roles of the tokens of a sample, and why it is malformed, if it is.

    Args:
      ids: [T] prompt and response as they were sampled, without padding.
      tokenizer: of transformers.
      prompt: the number of ids that are prompt.
      responses, tags: see `roles_from_messages`.
      ends: texts of the tokens that end a turn (None: any added token of the tokenizer).
      prefilled: the text of the response that the prompt already contains (`"<action>"`, if the
        prompt asks for an action).
      name: what errors call the sample.

    In a malformed response, text between action tags is action and all other sampled text is
    reasoning, so every token has a role that can be trained on. `reason` says what is wrong, for a
    penalty; it begins with "cut" if the response stopped before its end.

    Raises:
      MaskError: an id is not an integer, or there are fewer ids than `prompt`.
    """
    sample = integers(ids, f"{name}: ids", np.int32, least=0)
    if sample.ndim != 1 or not 0 <= prompt <= len(sample):
        raise MaskError(
            f"{name}: the prompt has {prompt} ids of {sample.shape}; give one sample, and the "
            "number of its ids that are prompt"
        )
    if responses not in ("action", "chat"):
        raise MaskError(f"responses must be one of action, chat, not {responses!r}")
    ends = end_texts(tokenizer, tags) if ends is None else tuple(ends)
    written, offsets = _decoded(tokenizer, sample[prompt:].tolist())
    of_response, reason = response_roles(
        written, offsets, responses=responses, tags=tags, ends=ends, prefilled=prefilled
    )
    roles = np.full(len(sample), Role.PROMPT, np.int8)
    roles[prompt:] = of_response
    return SampledRoles(sample, roles, reason)


def response_roles(
    written: str,
    offsets: Sequence[Span],
    *,
    responses: str = "action",
    tags: Tags = DEFAULT_TAGS,
    ends: Iterable[str] = (),
    prefilled: str = "",
) -> tuple[np.ndarray, str | None]:
    """Return the roles of sampled tokens by their texts, and why the response is malformed, if so.

    Args:
      written: the text that was sampled.
      offsets: [T] (start, end) in characters of each token in it.
      responses, tags, ends, prefilled: as in `roles_from_ids`.

    Returns:
      int8 [T], and the reason.
    """
    text, ahead = prefilled + written, len(prefilled)
    parts, reason = _parts(text, responses, tags, tuple(ends))
    if reason is not None and not written:
        reason = "empty: nothing was sampled"
    characters = np.full(len(text), Role.REASONING, np.int8)
    for start, end, role in parts:
        characters[start:end] = role
    if not offsets:
        return np.zeros(0, np.int8), reason
    roles = token_roles(characters, [(ahead + start, ahead + end) for start, end in offsets])
    # A token without characters was sampled too.
    return np.where(roles == Role.PROMPT, Role.REASONING, roles).astype(np.int8), reason


def _parts(
    text: str, responses: str, tags: Tags, ends: tuple[str, ...]
) -> tuple[list[Part], str | None]:
    """Return the parts of a response, and why it is malformed (None: it is not)."""
    try:
        if responses == "action":
            return action_parts(text, 0, len(text), tags, ends), None
        message = {"content": re.sub(rf"(?:\s|{one_of(ends)})+\Z", "", text)}
        pieces = content_spans(text, 0, len(text), message, tags)
        spans = [span for _, span in pieces if span is not None]
        return chat_parts(text, 0, len(text), message, tags, ends, spans), None
    except Malformed as wrong:
        parts = _lenient(text, tags, ends)
        ended = any(role == Role.END for _, _, role in parts)
        unfinished = not ended and re.search(r"^no |is not closed|neither", wrong.problem)
        return parts, f"{'cut: ' if unfinished else ''}{wrong.problem}"


def _lenient(text: str, tags: Tags, ends: Sequence[str]) -> list[Part]:
    """Return the parts of any text: action between action tags, and the end of the turn.

    All other text is reasoning.
    """
    end = re.search(rf"\s*(?:{one_of(ends)})+\Z", text)
    last = end.start() if end else len(text)
    parts: list[Part] = []
    opened = None
    for match in re.finditer(one_of((tags.action_open, tags.action_close)), text[:last]):
        if is_quoted(text[:last], match, tags):
            continue
        if opened is not None:
            parts.append((opened, match.start(), Role.ACTION))
        opens = match[0] == tags.action_open
        parts.append((*match.span(), Role.ACTION_OPEN if opens else Role.ACTION_CLOSE))
        opened = match.end() if opens else None
    if opened is not None:
        parts.append((opened, last, Role.ACTION))
    return [*parts, (last, len(text), Role.END)] if end else parts


def _decoded(tokenizer: Any, ids: list[int]) -> tuple[str, list[Span]]:
    """Return the text of ids and the (start, end) of each id in it.

    Ids that form one character together share it. The text of an id depends on its neighbours, so
    each is decoded together with the few before it.
    """

    def decode(part: list[int]) -> str:
        return tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    text, offsets = "", []
    before, read = 0, 0
    for number in range(1, len(ids) + 1):
        known, longer = decode(ids[before:read]), decode(ids[before:number])
        if longer.endswith("�") and number < len(ids):
            continue  # part of a character
        piece = longer[len(known) :]
        offsets += [(len(text), len(text) + len(piece))] * (number - read)
        text += piece
        before, read = read, number
    return text, offsets
