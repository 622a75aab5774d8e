"""Roles from chat messages: the tokenizer's own chat template, rendered turn by turn.

No `{% generation %}` marks are needed, which stock templates lack: a response begins where the generation prompt of the messages before
it ends. What is tokenised is the template's own whole text, cut where a response begins and ends, as it is when a model writes it; so
the ids are those of `apply_chat_template`, but where a token would reach across such a cut.

Nothing is guessed: every message's content must be found in the text as it was written, or the conversation is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    """Tokenise one conversation and say what each token is.

    Args:
      messages: `{"role": ..., "content": ...}`, as for `apply_chat_template`; the content a text, or parts of text. An assistant's may
        hold `reasoning_content` and `tool_calls`, and `"trained": False`, which makes it prompt.
      tokenizer: a Hugging Face fast tokenizer with a chat template.
      trained: "all" assistant messages are responses, or the "last" alone (the others are prompt). Templates that strip the
        reasoning from past turns (Qwen3's) render a conversation otherwise than its turns: there it must be "last", with one
        example a response.
      responses: "action", each reasons and takes one action between its tags; or "chat": calls, text before them, or an answer, which
        then is the action (see `cotjax.masking.responses`).
      observations: the contents of messages of these roles, behind the first assistant message, are observations.
      tags: of reasoning and action; for calls `Tags(action_open="<tool_call>", action_close="</tool_call>")`, or as the template has it.
      end_of_turn: the token that ends a last response where the template writes none (GLM's "<|user|>"); "" leaves it without.
      name: what errors call the example.
      **template: more arguments for `apply_chat_template`, such as `tools` or `enable_thinking`.

    Raises:
      MaskError: the turns do not concatenate to the template's own whole, a message's content is not in it as written or holds a control
        token, there is no response, or one is not well formed or does not end. It names the example, the message and the place.
    """
    for what, value, known in (("trained", trained, TRAINED), ("responses", responses, RESPONSES)):
        if value not in known:
            raise MaskError(f"{what} must be one of {', '.join(known)}, not {value!r}")
    if fixed := {"tokenize", "add_generation_prompt"} & set(template):
        raise MaskError(f"{fixed.pop()} is set by roles_from_messages itself; leave it out")
    kinds = set(observations)
    chat = Chat.of(messages, tokenizer, name, template, tags, kinds)
    wanted = chat.trained(trained)
    conversation = _Conversation(chat, *chat.placed(), tags, responses, trained)

    whole, first = conversation.whole, chat.assistants()[0]
    characters = np.full(len(whole), Role.PROMPT, np.int8)
    for number, (start, end) in conversation.contents:
        if number > first and chat.messages[number]["role"] in kinds:
            characters[start:end] = Role.OBSERVATION
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
                raise MaskError(
                    f"{name}: the chat template writes no end-of-turn token behind message {number}, so the model would not learn to stop; "
                    "give end_of_turn, the token that ends its last turn (GLM's is '<|user|>'), or '' to train without"
                )
            whole = whole[:stop] + end_of_turn + whole[stop:]
            characters = np.insert(characters, stop, np.full(len(end_of_turn), Role.END, np.int8))
            edges[-1] = stop + len(end_of_turn)
    ids, offsets = _tokens(tokenizer, whole, edges)
    return RoleTokens(np.asarray(ids, np.int32), token_roles(characters, offsets))


@dataclass(frozen=True)
class _Conversation:
    """A conversation as its template renders it: `whole`, and where in it the contents of the others' messages stand."""

    chat: Chat
    whole: str
    contents: list[tuple[int, Span]]
    tags: Tags
    responses: str
    trained: str

    def response(self, number: int) -> tuple[int, int, list[Part]]:
        """Where the response of a message begins and ends, and its parts."""
        chat, whole, message = self.chat, self.whole, self.chat.messages[number]
        start = self._start(number)
        end = self._end(number, start)
        found = content_spans(whole, start, end, message, self.tags)
        missing = [piece for piece, span in found if span is None]
        if missing:
            raise self._fail(
                f"the chat template does not render message {number} as it is written: {missing[0][:40]!r} is not in its response "
                f"{whole[start:end][:60]!r}; a template that strips or cannot show it would train without it: use one that renders all of "
                "it, or give the reasoning as the field that it reads (often 'reasoning_content')"
            )
        if (call := missing_call(whole[start:end], message)) is not None:
            raise self._fail(
                f"the chat template does not render the call of message {number}: {call!r} is not in {whole[start:end][:60]!r}; write the "
                "call into the content, or use a template that renders tool_calls"
            )
        try:
            self._check_thoughts(message, start, end)
            if self.responses == "chat":
                parts = chat_parts(
                    whole, start, end, message, self.tags, chat.ends, [span for _, span in found]
                )
            else:
                header = self._header(message, start, end)
                parts = [
                    (start, header, Role.REASONING),
                    *action_parts(whole, header, end, self.tags, chat.ends),
                ]
        except Malformed as wrong:
            raise MaskError(f"{wrong.error(whole, chat.name)}; {self._advice(wrong)}") from None
        # The end of a turn may be the token that opens the next (GLM).
        reach = behind(whole, end, chat.ends)
        if parts[-1][2] != Role.END and not whole[parts[-1][1] : end].strip() and reach > end:
            parts.append((parts[-1][1], reach, Role.END))
        return start, max(end, parts[-1][1]), parts

    def check_past(self, number: int) -> None:
        """Refuse an assistant message that is prompt and whose content, but for its reasoning, the template does not render."""
        start = max((end for other, (_, end) in self.contents if other < number), default=0)
        end = min(
            (start for other, (start, _) in self.contents if other > number),
            default=len(self.whole),
        )
        here, message = (
            self.whole[start:end] if start < end else self.whole,
            self.chat.messages[number],
        )
        lost = next(
            (piece for piece in visible_texts(message, self.tags) if piece not in here),
            missing_call(here, message),
        )
        if lost is not None:
            raise self._fail(
                f"the chat template does not render message {number} as it is written: {lost[:40]!r} is not in it; use a template that "
                "renders tool_calls and all other content, or leave out this example"
            )

    def _start(self, number: int) -> int:
        """Where the generation prompt of the messages before this one ends."""
        if number == 0:
            raise self._fail(
                "message 0 is a response to nothing; begin with a user's message, or give it 'trained': False"
            )
        announced = self.chat.render(number, add_generation_prompt=True)
        if self.whole.startswith(announced):
            return len(announced)
        before = self.chat.render(number)
        if not self.whole.startswith(before):
            raise self._differs(before, number, "before")
        advice = "see the template's add_generation_prompt"
        if self.tags.think_open in announced[len(before) :]:
            advice = (
                "give its reasoning as 'reasoning_content' (or the field that the template reads), begin its content as the prompt ends, "
                "or give enable_thinking as the response has it; a template that strips reasoning trains without it: use another"
            )
        raise self._fail(
            f"the chat template's generation prompt ends in {announced[len(before) :][-30:]!r}, but renders message {number} as "
            f"{self.whole[len(before) :][:40]!r}, so the model would be prompted otherwise than it is trained; {advice}"
        )

    def _end(self, number: int, start: int) -> int:
        """Where what the template writes of a response ends."""
        part = self.chat.render(number + 1)
        end = common(self.whole, part)
        if end < len(part):
            # Some templates end a conversation with a token that they do not write between turns.
            end = whole_tokens(part, end, self.chat.ends)
            if behind(part, end, self.chat.ends, all_of_them=True) < len(part) or end <= start:
                raise self._differs(part, number, "with")
        return end

    def _header(self, message: Mapping[str, Any], start: int, end: int) -> int:
        """Where the thought begins, behind what the template puts before the content (`<|channel|>final<|message|>`)."""
        content = "".join(written_texts(message)).lstrip()
        at = self.whole.find(self.tags.think_open, start, end)
        return at if at > 0 and content.startswith(self.tags.think_open) else start

    def _check_thoughts(self, message: Mapping[str, Any], start: int, end: int) -> None:
        close = self.tags.think_close
        if self.whole.count(close, start, end) > max(
            1, "".join(written_texts(message)).count(close)
        ):
            raise Malformed("the template writes a thought of its own beside the content's", start)

    def _advice(self, wrong: Malformed) -> str:
        if "thought of its own" in wrong.problem:
            return (
                "give the reasoning as the field that the template reads, often 'reasoning_content'"
            )
        if self.responses == "action" and "text behind" not in wrong.problem:
            return "give tags as the template writes calls, or responses='chat' for several calls, text before them, and answers"
        return "mend or leave out this example"

    def _differs(self, part: str, number: int, how: str) -> MaskError:
        at = common(self.whole, part)
        advice = "give one example a response, each with trained='last'"
        if self.trained == "last":
            advice = "leave out what the template strips, often the reasoning of earlier messages"
        return self._fail(
            f"the chat template renders the messages {how} message {number} as something that the whole conversation does not "
            f"begin with (from character {at}: {part[at : at + 30]!r}, in the whole {self.whole[at : at + 30]!r}); {advice}"
        )

    def _fail(self, problem: str) -> MaskError:
        return MaskError(f"{self.chat.name}: {problem}")


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
    if "".join(tokenizer.convert_ids_to_tokens(ids)) == "".join(
        tokenizer.convert_ids_to_tokens(at_once["input_ids"])
    ):
        return ids, offsets
    return at_once["input_ids"], at_once["offset_mapping"]
