"""Roles from text: tag spans, found strictly, and the tokenizer's character offsets.

A token that straddles an edge takes one role, the first of this order that any of its characters has:

    PROMPT, OBSERVATION, ACTION, ACTION_OPEN, ACTION_CLOSE, END, REASONING

Given text comes first, so that nothing given is trained on; the action comes before its tags and before the reasoning, so that
a dropped action leaves no supervised token that tells part of it. White space between `</think>` and `<action>` is reasoning,
within the action tags it is action, after `</action>` it goes with the end of the turn, or else it is prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from cotjax.masking.roles import MaskError, Role

_FIRST_WINS = (
    Role.PROMPT,
    Role.OBSERVATION,
    Role.ACTION,
    Role.ACTION_OPEN,
    Role.ACTION_CLOSE,
    Role.END,
    Role.REASONING,
)
# An opening quotation mark -> the marks that close it. A straight one opens where nothing but a space or a bracket is before it.
_QUOTES = {
    '"': '"',
    "'": "'",
    "`": "`",
    "“": "”",
    "‘": "’",
    "«": "»",
    "„": "“”",
    "‚": "‘’",
    "»": "«",
}
_BEFORE_A_QUOTATION = re.compile(r"[\s([{<>=:,—–-]?")
Span = tuple[int, int]
Part = tuple[int, int, Role]  # of a text: from character, to character


@dataclass(frozen=True)
class Tags:
    """The tags of a response. A response is `[think_open] reasoning [think_close] action_open action action_close`."""

    think_open: str = "<think>"
    think_close: str = "</think>"
    action_open: str = "<action>"
    action_close: str = "</action>"


DEFAULT_TAGS = Tags()


def roles_from_text(
    text: str,
    offsets: Sequence[Span],
    responses: Sequence[Span],
    *,
    observations: Sequence[Span] = (),
    tags: Tags = DEFAULT_TAGS,
    ends: Iterable[str] = (),
    name: str = "the example",
) -> np.ndarray:
    """Roles of the tokens of one example -> int8 [T].

    Args:
      text: prompt and responses in one string.
      offsets: [T] (start, end) characters of each token in `text`, as a Hugging Face fast tokenizer gives with
        `return_offsets_mapping=True`.
      responses: (start, end) of what the model writes, the end-of-turn token included; the rest of the text is prompt.
      observations: (start, end) of what the environment writes.
      tags: the response's tags.
      ends: texts that may end a turn behind the action (`"<|im_end|>"`).
      name: what errors call the example.

    A token without characters (one that the tokenizer's template adds) takes the role of the text at its place; behind a
    final response it is the END.

    Raises:
      MaskError: a response has no action, two actions, an unclosed or misplaced tag, a tag in a quotation, or text behind
        its action; or a span lies outside the text. It names the example and the place.
    """
    characters = np.full(len(text), Role.PROMPT, np.int8)
    for spans, role in ((observations, Role.OBSERVATION), (responses, Role.PROMPT)):
        for start, end in spans:
            if not 0 <= start <= end <= len(text):
                raise MaskError(
                    f"{name}: the span ({start}, {end}) lies outside the text of {len(text)} characters"
                )
            characters[start:end] = role
    for start, end in responses:
        try:
            parts = action_parts(text, start, end, tags, tuple(ends))
        except Malformed as wrong:
            raise wrong.error(text, name) from None
        for first, last, role in parts:
            characters[first:last] = role
    return token_roles(characters, offsets)


class Malformed(Exception):
    """Text that is no response: what is wrong with it, and where in the text."""

    def __init__(self, problem: str, at: int):
        super().__init__(problem)
        self.problem, self.at = problem, at

    def error(self, text: str, name: str) -> MaskError:
        """The error that names the example and the place."""
        before = text[: self.at]
        line, column = before.count("\n") + 1, self.at - (before.rfind("\n") + 1) + 1
        shown = text[self.at : self.at + 30]
        return MaskError(
            f"{name}: {self.problem} at line {line}, column {column} of its text (character {self.at}): {shown!r}"
        )


def action_parts(text: str, start: int, end: int, tags: Tags, ends: tuple[str, ...]) -> list[Part]:
    """(start, end, role) of the parts of a response of one action, in order and without a hole up to its end-of-turn token.

    Raises:
      Malformed: it is not `[think_open] reasoning [think_close] action_open action action_close [end of turn]`.
    """
    names = astuple(tags)
    found = [match for match in re.finditer("|".join(map(re.escape, names)), text[start:end])]
    for match in found:
        if is_quoted(text[start:end], match, tags):
            raise Malformed(
                f"{match[0]} stands in a quotation, so it is not clear what is the action",
                start + match.start(),
            )
    for tag in names:
        twice = [match for match in found if match[0] == tag][1:2]
        if twice:
            raise Malformed(
                "a second action begins" if tag == tags.action_open else f"a second {tag} stands",
                start + twice[0].start(),
            )
    at = {match[0]: (start + match.start(), start + match.end()) for match in found}
    if tags.action_open not in at:
        raise Malformed(f"no {tags.action_open} in the response that begins", start)
    opened = at[tags.action_open]
    if tags.action_close not in at:
        raise Malformed(
            f"{tags.action_open} is not closed by {tags.action_close}; it stands", opened[0]
        )
    closed = at[tags.action_close]
    if tags.think_open in at and tags.think_close not in at:
        raise Malformed(
            f"{tags.think_open} is not closed by {tags.think_close}; it stands",
            at[tags.think_open][0],
        )
    order = [
        tag
        for tag in (tags.think_open, tags.think_close, tags.action_open, tags.action_close)
        if tag in at
    ]
    if order != sorted(order, key=at.get):
        raise Malformed(
            "the tags are not in the order of reasoning, then action; the first is",
            start + found[0].start(),
        )
    if tags.think_open in at and text[start : at[tags.think_open][0]].strip():
        raise Malformed(f"text before {tags.think_open}", start)
    if tags.think_close in at and text[at[tags.think_close][1] : opened[0]].strip():
        raise Malformed(
            f"text between {tags.think_close} and {tags.action_open}", at[tags.think_close][1]
        )
    if not text[opened[1] : closed[0]].strip():
        raise Malformed("the action is empty", opened[0])
    parts = [
        (start, opened[0], Role.REASONING),
        (*opened, Role.ACTION_OPEN),
        (opened[1], closed[0], Role.ACTION),
        (*closed, Role.ACTION_CLOSE),
    ]
    return parts + end_parts(text, closed[1], end, ends)


def end_parts(text: str, stop: int, end: int, ends: Iterable[str]) -> list[Part]:
    """The part of the end-of-turn token behind an action that stops at `stop`, and of the spaces before it; [] where there is none.

    Tokens right behind one another end a turn together (Cohere's `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`). One behind a space is the
    template's (Phi 3's `<|endoftext|>`): a model has stopped by then.

    Raises:
      Malformed: other text stands there.
    """
    token = one_of(ends)
    found = re.compile(rf"\s*(?:{token})+").match(text, stop, end)
    rest = found.end() if found else stop
    if not re.compile(rf"(?:\s|{token})*").fullmatch(text, rest, end):
        after = text[rest:end]
        raise Malformed("text behind the action", rest + len(after) - len(after.lstrip()))
    return [(stop, rest, Role.END)] if found else []


def one_of(tokens: Iterable[str]) -> str:
    """A regular expression for any of these texts, the longest that fits; of none, for nothing."""
    return (
        "|".join(map(re.escape, sorted(filter(str.strip, tokens), key=len, reverse=True)))
        or r"(?!)"
    )


def is_quoted(response: str, tag: re.Match, tags: Tags) -> bool:
    """Whether an opening tag has an opening quotation mark right before it, and one that closes it somewhere behind.

    Thoughts and actions may end in a quotation mark of their own, so a closing tag is never quoted.
    """
    start = tag.start()
    closing = _QUOTES.get(response[start - 1 : start])
    if tag[0] not in (tags.think_open, tags.action_open) or closing is None:
        return False
    opens = _BEFORE_A_QUOTATION.fullmatch(response[: start - 1][-1:])
    return opens is not None and any(mark in response[tag.end() :] for mark in closing)


def token_roles(characters: np.ndarray, offsets: Sequence[Span]) -> np.ndarray:
    """[T] int8: of each token's characters the role that comes first in _FIRST_WINS."""
    spans = np.asarray(offsets, np.int64).reshape(-1, 2)
    starts, ends = spans[:, 0], spans[:, 1]
    rank = np.zeros(len(Role), np.int8)
    rank[list(_FIRST_WINS)] = np.arange(len(_FIRST_WINS), 0, -1)
    by_rank = np.zeros(len(Role), np.int8)
    by_rank[rank[list(_FIRST_WINS)]] = _FIRST_WINS
    ranks = np.append(
        rank[characters], np.int8(0)
    )  # so that an end behind the last character is an index
    roles = np.full(len(spans), Role.PROMPT, np.int8)
    whole = starts < ends
    if whole.any():
        roles[whole] = by_rank[
            np.maximum.reduceat(ranks, np.stack([starts[whole], ends[whole]], 1).reshape(-1))[::2]
        ]
        last = len(whole) - 1 - int(np.argmax(whole[::-1]))
        empty = np.flatnonzero(~whole)
        inside = empty[empty < last]
        roles[inside] = characters[np.minimum(starts[inside], len(characters) - 1)]
        if roles[last] in (Role.ACTION_CLOSE, Role.END):
            roles[last + 1 : last + 2] = Role.END
    return roles
