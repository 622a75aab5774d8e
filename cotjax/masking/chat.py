"""Roles from chat messages, by the tokenizer's own chat template, rendered turn by turn.

The template needs no `{% generation %}` marks, which stock templates lack: a response begins where
the generation prompt of the messages before it ends. The rendered text is tokenised in pieces, cut
where a response begins and ends, as it is when a model writes it. So the ids are those of
`apply_chat_template`, except where a token would reach across such a cut.

Nothing is guessed: a conversation is refused unless the text contains every message as written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from cotjax.masking.messages import Chat, behind, common, whole_tokens
from cotjax.masking.responses import (
    chat_parts,
    content_spans,
    missing_call,
    visible_texts,
    written_texts,
)
from cotjax.masking.roles import MaskError, Role, RoleTokens
from cotjax.masking.text import DEFAULT_TAGS, Malformed, Part, Span, Tags, action_parts, token_roles

TRAINED = ("all", "last")
RESPONSES = ("action", "chat")


def roles_from_messages(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    trained: str = "all",
    responses: str = "action",
    observations: Iterable[str] = ("user", "tool"),
    tags: Tags = DEFAULT_TAGS,
    end_of_turn: str | None = None,
    name: str = "the example",
    **template: Any,
) -> RoleTokens:
    """Tokenise one conversation and return the ids and roles of its tokens.

    Args:
      messages: `{"role": ..., "content": ...}`, as for `apply_chat_template`; the content is a
        string or a list of text parts. An assistant message may have `reasoning_content`,
        `tool_calls`, and `"trained": False`, which makes it prompt.
      tokenizer: a Hugging Face fast tokenizer with a chat template.
      trained: "all" assistant messages are responses, or only the "last" (the others are prompt).
        Templates that strip the reasoning of past turns (Qwen3's) render a conversation differently
        from its turns: they need "last", with one example per response.
      responses: "action": each response reasons and takes one action between its tags. "chat":
        calls, text before them, or an answer, which is then the action (see
        `cotjax.masking.responses`).
      observations: messages of these roles after the first assistant message are observations.
      tags: of reasoning and action; for calls, `Tags(action_open="<tool_call>",
        action_close="</tool_call>")`, or as the template writes them.
      end_of_turn: the token that ends the last response, if the template writes none; "" adds none.
      name: what errors call the example.
      **template: further arguments of `apply_chat_template`, such as `tools` or `enable_thinking`.

    Raises:
      MaskError: the turns do not concatenate to the rendered conversation, the content of a message
        is not in it as written or contains a control token, there is no response, or a response is
        malformed or does not end. The message names the example, the message and the position.
    """
    _check_options(trained, responses, template)
    kinds = set(observations)
    chat = Chat.of(messages, tokenizer, name, template, tags, kinds)
    wanted = chat.trained(trained)
    conversation = _Conversation(chat, *chat.placed(), tags, responses, trained)
    text, characters = conversation.text, conversation.context(kinds)
    edges: list[int] = []
    for number in chat.assistants():
        if number not in wanted:
            conversation.check_past(number)
            continue
        start, stop, parts = conversation.response(number)
        for begin, end, role in parts:
            characters[begin:end] = role
        edges += [start, stop]
        if parts[-1][2] != Role.END and end_of_turn != "":
            if number < len(chat.messages) - 1 or end_of_turn is None:
                raise conversation.endless(number)
            text = text[:stop] + end_of_turn + text[stop:]
            characters = np.insert(characters, stop, np.full(len(end_of_turn), Role.END, np.int8))
            edges[-1] = stop + len(end_of_turn)
    ids, offsets = _tokens(tokenizer, text, edges)
    return RoleTokens(np.asarray(ids, np.int32), token_roles(characters, offsets))


def _check_options(trained: str, responses: str, template: Mapping[str, Any]) -> None:
    for what, value, known in (("trained", trained, TRAINED), ("responses", responses, RESPONSES)):
        if value not in known:
            raise MaskError(f"{what} must be one of {', '.join(known)}, not {value!r}")
    if fixed := {"tokenize", "add_generation_prompt"} & set(template):
        raise MaskError(f"{fixed.pop()} is set by roles_from_messages itself; leave it out")


@dataclass(frozen=True)
class _Conversation:
    """A conversation as its template renders it.

    text: the rendered conversation.
    contents: (number of a message, span of its content in `text`), of all but the assistant's.
    """

    chat: Chat
    text: str
    contents: list[tuple[int, Span]]
    tags: Tags
    responses: str
    trained: str

    def context(self, kinds: Collection[str]) -> np.ndarray:
        """Return the roles of the characters, int8, before those of the responses.

        `kinds`: roles of messages that are observations after the first assistant message.
        """
        first = self.chat.assistants()[0]
        roles = np.full(len(self.text), Role.PROMPT, np.int8)
        for number, (start, end) in self.contents:
            if number > first and self.chat.messages[number]["role"] in kinds:
                roles[start:end] = Role.OBSERVATION
        return roles

    def response(self, number: int) -> tuple[int, int, list[Part]]:
        """Return where the response of a message begins and ends, and its parts."""
        chat, text, message = self.chat, self.text, self.chat.messages[number]
        start = self._start(number)
        end = self._end(number, start)
        pieces = content_spans(text, start, end, message, self.tags)
        missing = [piece for piece, span in pieces if span is None]
        if missing:
            raise self._fail(
                f"the chat template does not render message {number} as it is written: "
                f"{missing[0][:40]!r} is not in its response {text[start:end][:60]!r}; a template "
                "that strips it would train without it: use one that renders all of it, or give "
                "the reasoning as the field that it reads (often 'reasoning_content')"
            )
        if (call := missing_call(text[start:end], message)) is not None:
            raise self._fail(
                f"the chat template does not render the call of message {number}: {call!r} is not "
                f"in {text[start:end][:60]!r}; write the call into the content, or use a template "
                "that renders tool_calls"
            )
        try:
            self._check_thoughts(message, start, end)
            if self.responses == "chat":
                spans = [span for _, span in pieces if span is not None]
                parts = chat_parts(text, start, end, message, self.tags, chat.ends, spans)
            else:
                header = self._header(message, start, end)
                parts = [
                    (start, header, Role.REASONING),
                    *action_parts(text, header, end, self.tags, chat.ends),
                ]
        except Malformed as wrong:
            raise MaskError(f"{wrong.error(text, chat.name)}; {self._advice(wrong)}") from None
        # The end of a turn may be the token that opens the next (GLM).
        reach = behind(text, end, chat.ends)
        if parts[-1][2] != Role.END and not text[parts[-1][1] : end].strip() and reach > end:
            parts.append((parts[-1][1], reach, Role.END))
        return start, max(end, parts[-1][1]), parts

    def check_past(self, number: int) -> None:
        """Raise MaskError unless the template renders a past response, except its reasoning."""
        start = max((end for other, (_, end) in self.contents if other < number), default=0)
        end = min(
            (start for other, (start, _) in self.contents if other > number),
            default=len(self.text),
        )
        # A template may write messages in another order than they are given in.
        here = self.text[start:end] if start <= end else self.text
        message = self.chat.messages[number]
        lost = next(
            (piece for piece in visible_texts(message, self.tags) if piece not in here),
            missing_call(here, message),
        )
        if lost is not None:
            raise self._fail(
                f"the chat template does not render message {number} as it is written: "
                f"{lost[:40]!r} is not in it; use a template that renders tool_calls and all other "
                "content, or leave out this example"
            )

    def _start(self, number: int) -> int:
        """Return where the generation prompt of the messages before this one ends."""
        if number == 0:
            raise self._fail(
                "message 0 is a response to nothing; begin with a user message, or give it "
                "'trained': False"
            )
        announced = self.chat.render(number, add_generation_prompt=True)
        if self.text.startswith(announced):
            return len(announced)
        before = self.chat.render(number)
        if not self.text.startswith(before):
            raise self._differs(before, number, "before")
        advice = "see the template's add_generation_prompt"
        if self.tags.think_open in announced[len(before) :]:
            advice = (
                "give its reasoning as 'reasoning_content' (or the field that the template reads), "
                "begin its content as the prompt ends, or give enable_thinking as the response has "
                "it; a template that strips reasoning trains without it: use another"
            )
        raise self._fail(
            f"the chat template's generation prompt ends in {announced[len(before) :][-30:]!r}, "
            f"but renders message {number} as {self.text[len(before) :][:40]!r}, so the model "
            f"would be prompted otherwise than it is trained; {advice}"
        )

    def _end(self, number: int, start: int) -> int:
        """Return where the rendered response ends."""
        part = self.chat.render(number + 1)
        end = common(self.text, part)
        if end < len(part):
            # Some templates end a conversation with a token that they omit between turns.
            end = whole_tokens(part, end, self.chat.ends)
            if behind(part, end, self.chat.ends, all_of_them=True) < len(part) or end <= start:
                raise self._differs(part, number, "with")
        return end

    def _header(self, message: Mapping[str, Any], start: int, end: int) -> int:
        """Return where the thought begins, after a header such as `<|channel|>final<|message|>`."""
        content = "".join(written_texts(message)).lstrip()
        at = self.text.find(self.tags.think_open, start, end)
        return at if at > 0 and content.startswith(self.tags.think_open) else start

    def _check_thoughts(self, message: Mapping[str, Any], start: int, end: int) -> None:
        close = self.tags.think_close
        written = "".join(written_texts(message)).count(close)
        if self.text.count(close, start, end) > max(1, written):
            raise Malformed("the template writes a thought of its own before the content's", start)

    def _advice(self, wrong: Malformed) -> str:
        if "thought of its own" in wrong.problem:
            return (
                "give the reasoning as the field that the template reads, often 'reasoning_content'"
            )
        if self.responses == "action" and "text after" not in wrong.problem:
            return (
                "give tags as the template writes calls, or responses='chat' for several calls, "
                "text before them, and answers"
            )
        return "fix or leave out this example"

    def _differs(self, part: str, number: int, how: str) -> MaskError:
        at = common(self.text, part)
        advice = "give one example per response, each with trained='last'"
        if self.trained == "last":
            advice = "leave out what the template strips, often the reasoning of earlier messages"
        return self._fail(
            f"the chat template renders the messages {how} message {number} differently from the "
            f"whole conversation (from character {at}: {part[at : at + 30]!r}, in the whole "
            f"{self.text[at : at + 30]!r}); {advice}"
        )

    def endless(self, number: int) -> MaskError:
        """Return the error for a response without an end-of-turn token."""
        return self._fail(
            f"the chat template writes no end-of-turn token after message {number}, so the model "
            "would not learn to stop; give end_of_turn, the token that ends its last turn (GLM's "
            "is '<|user|>'), or '' to train without"
        )

    def _fail(self, problem: str) -> MaskError:
        return MaskError(f"{self.chat.name}: {problem}")


def _tokens(tokenizer: Any, text: str, edges: list[int]) -> tuple[list[int], list[Span]]:
    """Return the ids and offsets of the text, each piece between two edges tokenised by itself.

    So a response is tokenised as it is when a model writes it after its prompt. Where a cut would
    add text (some tokenizers put a space before any input), the text is tokenised in one piece.
    """
    ids: list[int] = []
    offsets: list[Span] = []
    for start, end in pairwise([0, *edges, len(text)]):
        piece = tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True)
        ids += piece["input_ids"]
        offsets += [(start + first, start + last) for first, last in piece["offset_mapping"]]
    at_once = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if "".join(tokenizer.convert_ids_to_tokens(ids)) == "".join(
        tokenizer.convert_ids_to_tokens(at_once["input_ids"])
    ):
        return ids, offsets
    return at_once["input_ids"], at_once["offset_mapping"]
