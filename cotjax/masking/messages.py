"""Chat messages: check them, render them by a template, and locate them in the rendered text."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from cotjax.masking.responses import REASONING_FIELDS, written_texts
from cotjax.masking.roles import MaskError
from cotjax.masking.text import Span, Tags, one_of

# Many templates render any role, so a misspelt "assistant" would silently become prompt.
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")


@dataclass(frozen=True)
class Chat:
    """A conversation and the tokenizer whose template renders it.

    template: further arguments of `apply_chat_template`.
    ends: texts of tokens that may end a turn.
    untrained: numbers of the assistant messages with "trained": False.
    """

    messages: list[dict[str, Any]]
    tokenizer: Any
    name: str
    template: Mapping[str, Any]
    ends: tuple[str, ...]
    untrained: frozenset[int] = frozenset()

    @classmethod
    def of(
        cls,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        name: str,
        template: Mapping[str, Any],
        tags: Tags,
        kinds: Collection[str] = (),
    ) -> Chat:
        """Check the messages and the tokenizer. `kinds`: roles that are allowed besides ROLES.

        Raises:
          MaskError: a message is malformed, contains a control token or half a surrogate pair, or
            the tokenizer has no template or offsets.
        """
        if not hasattr(tokenizer, "apply_chat_template"):
            raise MaskError(
                f"{name}: a {type(tokenizer).__name__} renders no messages; give a transformers "
                "tokenizer with a chat template"
            )
        if not getattr(tokenizer, "is_fast", True):
            raise MaskError(
                f"{name}: character offsets need a fast tokenizer; load it with AutoTokenizer"
            )
        if (
            isinstance(messages, str | Mapping)
            or not isinstance(messages, Sequence)
            or not messages
        ):
            raise MaskError(
                f"{name}: messages must be a list of {{'role', 'content'}}, not {_shown(messages)}"
            )
        special = special_texts(tokenizer)
        checked, untrained = [], set()
        for number, message in enumerate(messages):
            _check(message, f"{name}: message {number}", sorted(set(special) - set(astuple(tags))))
            if message["role"] not in {*ROLES, *kinds}:
                raise MaskError(
                    f"{name}: message {number} has the role {message['role']!r}, which is none of "
                    f"{', '.join(ROLES)}; rename it, or name it in `observations`"
                )
            message = dict(message)
            if message.pop("trained", True) is False and message["role"] == "assistant":
                untrained.add(number)
            checked.append(message)
        ends = end_texts(tokenizer, tags)
        return cls(checked, tokenizer, name, template, ends, frozenset(untrained))

    def assistants(self) -> list[int]:
        """Return the numbers of the assistant messages."""
        return [
            number for number, message in enumerate(self.messages) if message["role"] == "assistant"
        ]

    def trained(self, which: str) -> set[int]:
        """Return the numbers of the assistant messages to train on: "all", or the "last".

        Raises:
          MaskError: there are none, or they are marked as not trained.
        """
        numbers = self.assistants()
        if not numbers:
            raise MaskError(
                f"{self.name}: no message of the role 'assistant', so there is nothing to train on"
            )
        wanted = set(numbers if which == "all" else numbers[-1:]) - self.untrained
        if not wanted:
            raise MaskError(
                f"{self.name}: every response is marked as not trained, so there is nothing to "
                "train on"
            )
        return wanted

    def render(self, count: int, **more: Any) -> str:
        """Return the text of the first `count` messages.

        Raises:
          MaskError: the template refuses them.
        """
        try:
            return self._rendered(self.messages[:count], **more)
        except _NotRendered as wrong:
            raise MaskError(f"{self.name}: {wrong}") from None

    def placed(self) -> tuple[str, list[tuple[int, Span]]]:
        """Return the rendered text, and (number, span of content) of all but assistant messages.

        The conversation is rendered once more with a mark in place of each content, which gives the
        positions. Contents in parts of text are joined where the template renders that.

        Raises:
          MaskError: a content is not rendered as it is written.
        """
        joined = [
            message | {"content": "".join(written_texts(message))}
            if _is_parts_of_text(message.get("content"))
            else message
            for message in self.messages
        ]
        # Joined first: a template that expects strings writes a list as Python's repr of it.
        for messages in (joined, list(self.messages)):
            try:
                rendered = self._placed(messages)
            except _NotRendered as error:
                wrong = error
            else:
                self.messages[:] = messages
                return rendered
        raise MaskError(f"{self.name}: {wrong}; {self._advice()}")

    def _advice(self) -> str:
        """Return advice for a content that is not rendered."""
        parts = [
            message | {"content": [{"type": "text", "text": message["content"]}]}
            if isinstance(message.get("content"), str)
            else message
            for message in self.messages
        ]
        try:
            self._placed(parts)
        except _NotRendered:
            return (
                "use a template that renders all of these messages, or give them as it wants them"
            )
        return "this template wants contents in parts: [{'type': 'text', 'text': ...}]"

    def _placed(self, messages: list[dict[str, Any]]) -> tuple[str, list[tuple[int, Span]]]:
        marked: list[dict[str, Any]] = []
        texts: list[tuple[int, str]] = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant" and message.get("content"):
                message = message | {"content": _with_marks(message["content"], number, texts)}
            marked.append(message)
        whole = self._rendered(messages)
        pieces = re.split(_MARK, self._rendered(marked))
        for index, (number, text) in enumerate(texts):
            if str(index) not in pieces[1::2]:
                raise _NotRendered.content(number, text)
        if any(isinstance(message.get("content"), list) for message in messages) and re.search(
            _SHOWN_PARTS, "".join(pieces[::2])
        ):
            raise _NotRendered("the chat template does not render contents in parts")
        spans, at = [], 0
        # Even pieces are the template's own text, odd ones the numbers of the marks.
        for index, piece in enumerate(pieces):
            if index % 2 == 0:
                if not whole.startswith(piece, at):
                    raise _NotRendered.content(*texts[int(pieces[index - 1]) if index else 0])
                at += len(piece)
                continue
            number, text = texts[int(piece)]
            shown = next(
                (form for form in _forms(text) if whole.startswith(form + pieces[index + 1], at)),
                None,
            )
            if shown is None:
                raise _NotRendered.content(number, text)
            start = at + len(shown) - len(shown.lstrip())
            spans.append((number, (start, start + len(shown.strip()))))
            at += len(shown)
        return whole, spans

    def _rendered(self, messages: list[dict[str, Any]], **more: Any) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, **self.template, **more
            )
        except Exception as error:  # a template may raise anything
            said = " ".join(str(error).split())[:200]
            raise _NotRendered(
                f"the chat template cannot render the first {len(messages)} messages ({said})"
            ) from None


class _NotRendered(Exception):
    """A template does not render something; the message says what."""

    @classmethod
    def content(cls, number: int, text: str) -> _NotRendered:
        return cls(
            f"the chat template does not render the content of message {number} as it is written: "
            f"{text[:40]!r} is not in it"
        )


_MARK = r"Zq(\d+)qZ"
_SHOWN_PARTS = r"""\[\{['"]type['"]: ?['"]"""


def _with_marks(content: str | list, number: int, texts: list[tuple[int, str]]) -> str | list:
    """Return the content with a mark in place of its text, or of the text of each part.

    A tag around the text stays, because some templates test for it.
    """
    if not isinstance(content, str):
        return [
            part if _is_other(part) else {**part, "text": _with_marks(part["text"], number, texts)}
            for part in content
        ]
    before, text, after = "", content, ""
    tagged = re.fullmatch(r"(\s*<[^<>\s]+>)(.*?)(</[^<>\s]+>\s*)", content, re.DOTALL)
    if tagged:
        before, text, after = tagged.groups()
    if not text.strip():
        return content
    texts.append((number, text))
    return f"{before}Zq{len(texts) - 1}qZ{after}"


def _forms(text: str) -> tuple[str, ...]:
    """Return the forms that a template may write a text in: as it is, stripped, JSON-escaped."""
    spaced = (text, text.strip(), text.lstrip(), text.rstrip())
    return (
        *spaced,
        *(json.dumps(form, ensure_ascii=ascii)[1:-1] for form in spaced for ascii in (False, True)),
    )


def special_texts(tokenizer: Any) -> list[str]:
    """Return the texts of a tokenizer's control tokens."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return [
        str(token)
        for token in (*tokenizer.all_special_tokens, *(token for token in added if token.special))
    ]


def end_texts(tokenizer: Any, tags: Tags) -> tuple[str, ...]:
    """Return the texts of the tokens that may end a turn: all added tokens except the tags."""
    return tuple({*special_texts(tokenizer), *tokenizer.get_added_vocab()} - set(astuple(tags)))


def _check(message: Any, where: str, controls: Sequence[str]) -> None:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise MaskError(f"{where} must be {{'role', 'content'}}, not {_shown(message)}")
    content, calls = message.get("content"), message.get("tool_calls") or []
    parts = content if isinstance(content, list) else []
    texts = [
        part.get("text") if isinstance(part, Mapping) else None
        for part in parts
        if not _is_other(part)
    ]
    if not isinstance(content, str | list | None) or not all(
        isinstance(text, str) for text in texts
    ):
        raise MaskError(
            f"{where}: the content must be a text or parts {{'type': 'text', 'text'}}, not "
            f"{_shown(content)}"
        )
    if not isinstance(message.get("trained", True), bool):
        raise MaskError(f"{where}: trained must be true or false, not {_shown(message['trained'])}")
    if not isinstance(calls, list) or not all(
        isinstance(call, Mapping) and isinstance(call.get("function", call), Mapping)
        for call in calls
    ):
        raise MaskError(
            f"{where}: tool_calls must be a list of {{'function': {{'name', 'arguments'}}}}, not "
            f"{_shown(calls)}"
        )
    if (
        message["role"] == "assistant"
        and not content
        and not calls
        and not any(message.get(name) for name in REASONING_FIELDS)
    ):
        raise MaskError(f"{where}: there is neither content nor a call")
    for text in (content, *texts, *(message.get(name) for name in REASONING_FIELDS)):
        if not isinstance(text, str):
            continue
        if re.search("[\ud800-\udfff]", text):
            raise MaskError(
                f"{where} contains half a surrogate pair, which is not a character: {text[:40]!r}"
            )
        control = next((token for token in controls if token in text), None)
        if control is not None:
            raise MaskError(
                f"{where} contains {control!r}, which the tokenizer reads as a control token; "
                f"write it differently: {text[:40]!r}"
            )


def _is_parts_of_text(content: Any) -> bool:
    return isinstance(content, list) and not any(map(_is_other, content))


def _is_other(part: Any) -> bool:
    """Return whether a part of a content is not text, but an image."""
    return isinstance(part, Mapping) and part.get("type", "text") != "text"


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def common(one: str, other: str) -> int:
    """Return the length of the common prefix of two texts."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def whole_tokens(text: str, end: int, tokens: Sequence[str]) -> int:
    """Return `end`, or the start of the control token that it would cut."""
    starts = [
        at
        for token in tokens
        for at in range(max(0, end - len(token) + 1), end)
        if text.startswith(token, at)
    ]
    return min(starts, default=end)


def behind(text: str, start: int, tokens: Sequence[str], *, all_of_them: bool = False) -> int:
    """Return the end of the control token that follows `start`, or of all of them.

    Spaces before it are skipped. Without one it is `start`.
    """
    token = rf"(?:\s|{one_of(tokens)})*" if all_of_them else rf"\s*(?:{one_of(tokens)})"
    match = re.compile(token).match(text, start)
    return match.end() if match else start
