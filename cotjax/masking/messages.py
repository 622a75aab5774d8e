"""Chat messages as they are given: checked, rendered by a template, and found again in what it renders."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from cotjax.masking.responses import REASONING_FIELDS, written_texts
from cotjax.masking.roles import MaskError
from cotjax.masking.text import Span, Tags, one_of

# Many templates render whatever role they are given, so a misspelt "assistant" would be prompt without a word.
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")


@dataclass(frozen=True)
class Chat:
    """A conversation and the tokenizer whose template renders it. `ends`: texts of tokens that may end a turn."""

    messages: list[dict[str, Any]]
    tokenizer: Any
    name: str
    template: Mapping[str, Any]
    ends: tuple[str, ...]
    left_out: frozenset[int] = field(
        default_factory=frozenset
    )  # assistant messages with "trained": False

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
        """Check the messages and the tokenizer. `kinds`: roles that are known beside ROLES.

        Raises:
          MaskError: a message is none, holds a control token or half a surrogate pair, or the tokenizer has no template or offsets.
        """
        if not hasattr(tokenizer, "apply_chat_template"):
            raise MaskError(
                f"{name}: a {type(tokenizer).__name__} renders no messages; give transformers' tokenizer, with a chat template"
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
        kept, left_out = [], set()
        for number, message in enumerate(messages):
            _check(message, f"{name}: message {number}", sorted(set(special) - set(astuple(tags))))
            if message["role"] not in {*ROLES, *kinds}:
                raise MaskError(
                    f"{name}: message {number} has the role {message['role']!r}, which is none of {', '.join(ROLES)}; "
                    "rename it, or name it in `observations`"
                )
            message = dict(message)
            if message.pop("trained", True) is False and message["role"] == "assistant":
                left_out.add(number)
            kept.append(message)
        return cls(kept, tokenizer, name, template, end_texts(tokenizer, tags), frozenset(left_out))

    def assistants(self) -> list[int]:
        """Return the numbers of the assistant's messages."""
        return [
            number for number, message in enumerate(self.messages) if message["role"] == "assistant"
        ]

    def trained(self, which: str) -> set[int]:
        """Return the numbers of the messages that are trained on: "all" of the assistant's, or the "last".

        Raises:
          MaskError: there is none, or the last is not to be trained on.
        """
        found = self.assistants()
        if not found:
            raise MaskError(
                f"{self.name}: no message of the role 'assistant', so there is nothing to train on"
            )
        wanted = set(found if which == "all" else found[-1:]) - self.left_out
        if not wanted:
            raise MaskError(
                f"{self.name}: every response is marked as not trained, so there is nothing to train on"
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
        """Return the whole text and where in it the contents of all but the assistant's messages stand, by number of the message.

        The conversation is rendered once more with a mark in place of each text: where the marks stand, the texts do. Contents in parts
        of text are joined, where the template renders that.

        Raises:
          MaskError: a text is not rendered as it is written.
        """
        joined = [
            message | {"content": "".join(written_texts(message))}
            if _is_parts_of_text(message.get("content"))
            else message
            for message in self.messages
        ]
        # Joined first: a template that knows texts alone writes a list as Python shows it, brackets and all.
        for messages in (joined, list(self.messages)):
            try:
                found = self._placed(messages)
            except _NotRendered as error:
                wrong = error
            else:
                self.messages[:] = messages
                return found
        raise MaskError(f"{self.name}: {wrong}; {self._advice()}")

    def _advice(self) -> str:
        """What to do about a content that is not rendered."""
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
        marked, texts = [], []
        for number, message in enumerate(messages):
            if message["role"] != "assistant" and message.get("content"):
                message = message | {"content": _with_marks(message["content"], number, texts)}
            marked.append(message)
        whole = self._rendered(messages)
        pieces = re.split(_MARK, self._rendered(marked))
        for place, (number, text) in enumerate(texts):
            if str(place) not in pieces[1::2]:
                raise _NotRendered.content(number, text)
        if any(isinstance(message.get("content"), list) for message in messages) and re.search(
            _SHOWN_PARTS, "".join(pieces[::2])
        ):
            raise _NotRendered("the chat template does not render contents in parts")
        found, at = [], 0
        for place, piece in enumerate(pieces):
            if place % 2 == 0:
                if not whole.startswith(piece, at):
                    raise _NotRendered.content(*texts[int(pieces[place - 1]) if place else 0])
                at += len(piece)
                continue
            number, text = texts[int(piece)]
            shown = next(
                (form for form in _forms(text) if whole.startswith(form + pieces[place + 1], at)),
                None,
            )
            if shown is None:
                raise _NotRendered.content(number, text)
            start = at + len(shown) - len(shown.lstrip())
            found.append((number, (start, start + len(shown.strip()))))
            at += len(shown)
        return whole, found

    def _rendered(self, messages: list[dict[str, Any]], **more: Any) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, **self.template, **more
            )
        except Exception as error:  # a template may raise what it likes
            said = " ".join(str(error).split())[:200]
            raise _NotRendered(
                f"the chat template cannot render the first {len(messages)} messages ({said})"
            ) from None


class _NotRendered(Exception):
    """What a template does not render, in words."""

    @classmethod
    def content(cls, number: int, text: str) -> _NotRendered:
        return cls(
            f"the chat template does not render the content of message {number} as it is written: {text[:40]!r} is not in it"
        )


_MARK = r"Zq(\d+)qZ"
_SHOWN_PARTS = r"""\[\{['"]type['"]: ?['"]"""


def _with_marks(content: str | list, number: int, texts: list[tuple[int, str]]) -> str | list:
    """The content with a mark in place of its text, or of each part's; a tag around it stays, for templates that look at it."""
    if not isinstance(content, str):
        return [
            part if _is_other(part) else {**part, "text": _with_marks(part["text"], number, texts)}
            for part in content
        ]
    before, text, after = re.fullmatch(
        r"(\s*<[^<>\s]+>)?(.*?)(</[^<>\s]+>\s*)?", content, re.DOTALL
    ).groups("")
    if not (before and after):
        before, text, after = "", content, ""
    if not text.strip():
        return content
    texts.append((number, text))
    return f"{before}Zq{len(texts) - 1}qZ{after}"


def _forms(text: str) -> tuple[str, ...]:
    """How a template may write a text: as it is, trimmed, or as JSON has it."""
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
    """Return the texts of a tokenizer's tokens that may end a turn: all that were added to it, but for the tags."""
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
            f"{where}: the content must be a text or parts {{'type': 'text', 'text'}}, not {_shown(content)}"
        )
    if not isinstance(message.get("trained", True), bool):
        raise MaskError(f"{where}: trained must be true or false, not {_shown(message['trained'])}")
    if not isinstance(calls, list) or not all(
        isinstance(call, Mapping) and isinstance(call.get("function", call), Mapping)
        for call in calls
    ):
        raise MaskError(
            f"{where}: tool_calls must be a list of {{'function': {{'name', 'arguments'}}}}, not {_shown(calls)}"
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
                f"{where} holds half a surrogate pair, which is no character: {text[:40]!r}"
            )
        held = next((token for token in controls if token in text), None)
        if held is not None:
            raise MaskError(
                f"{where} holds {held!r}, which the tokenizer reads as a control token; write it otherwise: {text[:40]!r}"
            )


def _is_parts_of_text(content: Any) -> bool:
    return isinstance(content, list) and not any(map(_is_other, content))


def _is_other(part: Any) -> bool:
    """Whether a part of a content is no text: an image."""
    return isinstance(part, Mapping) and part.get("type", "text") != "text"


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def common(one: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def whole_tokens(text: str, end: int, tokens: Sequence[str]) -> int:
    """Return `end`, or where the control token begins that it would cut."""
    starts = [
        at
        for token in tokens
        for at in range(max(0, end - len(token) + 1), end)
        if text.startswith(token, at)
    ]
    return min(starts, default=end)


def behind(text: str, start: int, tokens: Sequence[str], *, all_of_them: bool = False) -> int:
    """Return where the control token right behind `start` (or all of them), spaces before it included, ends; `start` where none is."""
    found = re.compile(
        rf"(?:\s|{one_of(tokens)})*" if all_of_them else rf"\s*(?:{one_of(tokens)})"
    ).match(text, start)
    return found.end() if found else start
