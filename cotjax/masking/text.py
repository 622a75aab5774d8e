"""Roles from text: strict tag spans, and the character offsets of a tokenizer.

A token that crosses a border takes one role, the first in this order among its characters:

    PROMPT, OBSERVATION, ACTION, ACTION_OPEN, ACTION_CLOSE, END, REASONING

Prompt and observation take precedence, so context is never trained on. The action takes precedence
over its tags and the reasoning, so that a dropped action leaves no supervised token with part of
it. White space between `</think>` and `<action>` is reasoning, and inside the action tags it is
action. After `</action>` it belongs to the end of the turn if there is one; else it is prompt.
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
    Role.ANSWER,
    Role.ACTION_OPEN,
    Role.ACTION_CLOSE,
    Role.END,
    Role.REASONING,
)
# Opening quotation mark -> the marks that close it. A straight one opens only at the start of the
# text, or after a space or a bracket.
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
Part = tuple[int, int, Role]  # (start, end) in characters, role


@dataclass(frozen=True)
class Tags:
    """The tags of a response.

    A response is `[think_open] reasoning [think_close] action_open action action_close`.
    """

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
    """Return the roles of the tokens of one example, int8 [T].

    Args:
      text: prompt and responses in one string.
      offsets: [T] (start, end) in characters of each token in `text`, as a Hugging Face fast
        tokenizer returns them with `return_offsets_mapping=True`.
      responses: (start, end) of what the model writes, including the end-of-turn token; the rest of
        the text is prompt.
      observations: (start, end) of what the environment writes.
      tags: the tags of the response.
      ends: texts that may end a turn after the action (`"<|im_end|>"`).
      name: what errors call the example.

    A token without characters (added by the tokenizer) takes the role of the text at its position;
    after the last response it is END.

    Raises:
      MaskError: a response has no action, two actions, an unclosed or misplaced tag, a tag in a
        quotation, or text after its action; or a span is outside the text. The message names the
        example and the position.
    """
    characters = np.full(len(text), Role.PROMPT, np.int8)
    for spans, role in ((observations, Role.OBSERVATION), (responses, Role.PROMPT)):
        for start, end in spans:
            if not 0 <= start <= end <= len(text):
                raise MaskError(
                    f"{name}: the span ({start}, {end}) is outside the text of {len(text)} "
                    "characters"
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
    """Text is not a response; `problem` says why, and `at` is the position in the text."""

    def __init__(self, problem: str, at: int):
        super().__init__(problem)
        self.problem, self.at = problem, at

    def error(self, text: str, name: str) -> MaskError:
        """Return the error that names the example and the position."""
        before = text[: self.at]
        line, column = before.count("\n") + 1, self.at - (before.rfind("\n") + 1) + 1
        shown = text[self.at : self.at + 30]
        return MaskError(
            f"{name}: {self.problem} at line {line}, column {column} of its text "
            f"(character {self.at}): {shown!r}"
        )


def action_parts(text: str, start: int, end: int, tags: Tags, ends: tuple[str, ...]) -> list[Part]:
    """Return the parts of a response of one action, without gaps up to its end-of-turn token.

    Raises:
      Malformed: it is not `[think_open] reasoning [think_close] action_open action action_close
        [end of turn]`.
    """
    names = astuple(tags)
    matches = list(re.finditer("|".join(map(re.escape, names)), text[start:end]))
    for match in matches:
        if is_quoted(text[start:end], match, tags):
            raise Malformed(
                f"{match[0]} is in a quotation, so it is not clear what is the action",
                start + match.start(),
            )
    for tag in names:
        twice = [match for match in matches if match[0] == tag][1:2]
        if twice:
            raise Malformed(
                "a second action begins" if tag == tags.action_open else f"a second {tag}",
                start + twice[0].start(),
            )
    at = {match[0]: (start + match.start(), start + match.end()) for match in matches}
    if tags.action_open not in at:
        raise Malformed(f"no {tags.action_open} in the response that begins", start)
    opened = at[tags.action_open]
    if tags.action_close not in at:
        raise Malformed(f"{tags.action_open} is not closed by {tags.action_close}", opened[0])
    closed = at[tags.action_close]
    if tags.think_open in at and tags.think_close not in at:
        raise Malformed(
            f"{tags.think_open} is not closed by {tags.think_close}",
            at[tags.think_open][0],
        )
    order = [
        tag
        for tag in (tags.think_open, tags.think_close, tags.action_open, tags.action_close)
        if tag in at
    ]
    if order != sorted(order, key=at.__getitem__):
        raise Malformed(
            "the tags are not in the order of reasoning, then action; the first is",
            start + matches[0].start(),
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
    """Return the part of the end-of-turn token after an action, with the spaces before it; else [].

    `stop` is where the action stops. Adjacent tokens end a turn together (Cohere's
    `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`). A token after a space belongs to the template (Phi 3's
    `<|endoftext|>`): the model has stopped by then.

    Raises:
      Malformed: other text follows the action.
    """
    token = one_of(ends)
    match = re.compile(rf"\s*(?:{token})+").match(text, stop, end)
    rest = match.end() if match else stop
    if not re.compile(rf"(?:\s|{token})*").fullmatch(text, rest, end):
        after = text[rest:end]
        raise Malformed("text after the action", rest + len(after) - len(after.lstrip()))
    return [(stop, rest, Role.END)] if match else []


def one_of(tokens: Iterable[str]) -> str:
    """Return a regular expression for any of these texts, longest first; [] never matches."""
    return (
        "|".join(map(re.escape, sorted(filter(str.strip, tokens), key=len, reverse=True)))
        or r"(?!)"
    )


def is_quoted(response: str, tag: re.Match, tags: Tags) -> bool:
    """Return whether an opening tag is in a quotation that starts right before it.

    Thoughts and actions may end in a quotation mark, so a closing tag is never quoted.
    """
    start = tag.start()
    closing = _QUOTES.get(response[start - 1 : start])
    if tag[0] not in (tags.think_open, tags.action_open) or closing is None:
        return False
    opens = _BEFORE_A_QUOTATION.fullmatch(response[: start - 1][-1:])
    return opens is not None and any(mark in response[tag.end() :] for mark in closing)


def token_roles(characters: np.ndarray, offsets: Sequence[Span]) -> np.ndarray:
    """Return the role of each token, int8 [T]: the first in _FIRST_WINS among its characters."""
    spans = np.asarray(offsets, np.int64).reshape(-1, 2)
    starts, ends = spans[:, 0], spans[:, 1]
    rank = np.zeros(len(Role), np.int8)
    rank[list(_FIRST_WINS)] = np.arange(len(_FIRST_WINS), 0, -1)
    by_rank = np.zeros(len(Role), np.int8)
    by_rank[rank[list(_FIRST_WINS)]] = _FIRST_WINS
    ranks = np.append(rank[characters], np.int8(0))  # so that the end of the text is an index
    roles = np.full(len(spans), Role.PROMPT, np.int8)
    written = starts < ends
    if written.any():
        edges = np.stack([starts[written], ends[written]], axis=1).reshape(-1)
        roles[written] = by_rank[np.maximum.reduceat(ranks, edges)[::2]]
        last = len(written) - 1 - int(np.argmax(written[::-1]))
        empty = np.flatnonzero(~written)
        inside = empty[empty < last]
        roles[inside] = characters[np.minimum(starts[inside], len(characters) - 1)]
        if roles[last] in (Role.ACTION_CLOSE, Role.END):
            roles[last + 1 : last + 2] = Role.END
    return roles
