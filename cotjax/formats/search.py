r"""The response format of AutoCoA (arXiv 2503.06580): one growing text whose thought searches.

    I need the capital of Norway. <begin_search> Norway capital </end_search><search_result> result
    1: … result 3: … </search_result>

    Result 1 says that it is Oslo. </think>

    \boxed{Oslo}

The text begins inside `<think>`, which the prompt ends with. The model writes a piece up to
`</end_search>`, the environment answers with the results and two line breaks, and so on; the last
piece ends the thought and gives the answer. That the names of the two search tags differ is the
paper's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cotjax.formats.response import THINK_CLOSE, THINK_OPEN, normalize_action
from cotjax.formats.turns import TEMPLATES

SEARCH_OPEN, SEARCH_CLOSE = "<begin_search>", "</end_search>"
RESULT_OPEN, RESULT_CLOSE = "<search_result>", "</search_result>"
RESULT_GAP = "\n\n"
ANSWER_OPEN, ANSWER_CLOSE = "\\boxed{", "}"
SEARCH_TAGS = (THINK_OPEN, THINK_CLOSE, SEARCH_OPEN, SEARCH_CLOSE, RESULT_OPEN, RESULT_CLOSE)
# Texts that a tokenizer of this format needs tokens or words for, beside `<think>`'s.
MARKS = (SEARCH_OPEN, SEARCH_CLOSE, RESULT_OPEN, RESULT_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
# Kinds of spans.
REASONING, QUERY_OPEN, QUERY, QUERY_CLOSE = "reasoning", "query_open", "query", "query_close"
OBSERVATION, BOX_OPEN, ANSWER, BOX_CLOSE = "observation", "box_open", "answer", "box_close"
# Why a piece is not valid: reason -> its words.
SEARCH_PROBLEMS = {
    "unclosed_thought": f"neither {SEARCH_CLOSE} nor {THINK_CLOSE}",
    "unclosed_search": f"no {SEARCH_CLOSE}",
    "unopened_search": f"no {SEARCH_OPEN}",
    "empty_query": "an empty query",
    "tag_in_query": "a tag inside the query",
    "tag_in_thought": "a tag inside the thought",
    "text_after_search": f"text after {SEARCH_CLOSE}",
    "search_after_thought": f"a search after {THINK_CLOSE}",
    "tag_in_answer": f"a tag after {THINK_CLOSE}",
    "no_answer": f"no {ANSWER_OPEN}…{ANSWER_CLOSE}",
    "unclosed_answer": f"{ANSWER_OPEN} without its {ANSWER_CLOSE}",
    "empty_answer": "an empty answer",
    "two_answers": "two answers",
    "unclosed_result": f"no {RESULT_CLOSE}",
    "cut": "cut by the token limit",
}
_OF_A_CUT = {"unclosed_thought", "unclosed_search", "no_answer", "unclosed_answer"}
_ANY_TAG = re.compile("|".join(map(re.escape, SEARCH_TAGS)))
_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_WRAPPER = re.compile(r"\\(?:boxed|text|textbf|mathrm)\s*\{")
_MOST_WRAPPERS = 3
_ESCAPED = re.compile(r"\\([{}\\%$&#_])")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Piece:
    """What the model wrote since the last results.

    A valid piece has a query or an answer. `reason` is a key of SEARCH_PROBLEMS; None for a valid
    piece. `searched`: `</end_search>` ends its thought, so the text goes on with what is appended,
    be the search valid or not.
    """

    thought: str
    query: str | None = None
    answer: str | None = None
    reason: str | None = None
    searched: bool = field(default=False, compare=False)

    @property
    def problem(self) -> str | None:
        """The reason in words; None for a valid piece."""
        return None if self.reason is None else SEARCH_PROBLEMS[self.reason]


class Growing(Protocol):
    """How a world's actions are written as pieces of a growing text (`World.growing`)."""

    @property
    def instruction(self) -> str:
        """What the agent should do, and the format; as `World.instruction`."""

    def action_of(self, piece: Piece) -> str:
        """Return the action that the environment receives; "" where the text is over."""

    def piece_of(self, thought: str | None, action: str) -> Piece:
        """Return the piece that a model writes for a step. Raises EnvError for another action."""


@dataclass(frozen=True)
class Span:
    """A stretch of a growing text. `kind`: REASONING or another one above."""

    kind: str
    text: str


def parse_piece(text: str, *, stopped: bool = True) -> Piece:
    r"""Return the search or the answer of a piece.

    A search is valid if the piece ends with `</end_search>`, an answer if `</think>` is followed by
    text with one `\boxed{…}`, whose braces are balanced. That it may be given twice, if it is the
    same, and be wrapped in `\text{…}`. Results that the model wrote itself are a tag inside the
    thought. Whether the environment takes the query is another question.

    Args:
      stopped: the model ended the piece. One that reached the token limit before it was well-formed
        is "cut".
    """
    piece = _parse(text.removeprefix(THINK_OPEN))
    if not stopped and piece.reason in _OF_A_CUT:
        return Piece(piece.thought, reason="cut")
    return piece


def piece_text(piece: Piece) -> str:
    """Return a valid piece as it is written."""
    if piece.query is not None:
        end = search_text(piece.query)
    else:
        assert piece.answer is not None, f"{piece} has neither a query nor an answer"
        end = answer_text(piece.answer)
    return f"{piece.thought} {end}" if piece.thought else end


def pieces(text: str, *, stopped: bool = True) -> list[tuple[Piece, str]]:
    """Return (piece, the results after it) of a whole growing text, as its writer goes on.

    Results are known by their position, so a model may have written them too. Where they do not
    end, a last piece has the reason "unclosed_result".
    """
    found: list[tuple[Piece, str]] = []
    written = ""
    for span in spans(text):
        if span.kind != OBSERVATION:
            written += span.text
            continue
        found.append((parse_piece(written), span.text))
        written = ""
        if RESULT_CLOSE not in span.text:
            return [*found, (Piece("", reason="unclosed_result" if stopped else "cut"), "")]
    if written or not found:
        found.append((parse_piece(written, stopped=stopped), ""))
    return found


def _parse(text: str) -> Piece:
    search, end = text.find(SEARCH_CLOSE), text.find(THINK_CLOSE)
    if search >= 0 and (end < 0 or search < end):
        return _parse_search(text[:search], text[search + len(SEARCH_CLOSE) :])
    if end >= 0:
        return _parse_answer(text[:end], text[end + len(THINK_CLOSE) :])
    thought, opened, _ = text.partition(SEARCH_OPEN)
    return Piece(thought.strip(), reason="unclosed_search" if opened else "unclosed_thought")


def _parse_search(head: str, after: str) -> Piece:
    thought, opened, query = head.partition(SEARCH_OPEN)
    thought, query = thought.strip(), normalize_action(query)
    reason = None
    if not opened:
        reason = "unopened_search"
    elif _ANY_TAG.search(thought):
        reason = "tag_in_thought"
    elif _ANY_TAG.search(query):
        reason = "tag_in_query"
    elif not query:
        reason = "empty_query"
    elif after.strip():
        reason = "text_after_search"
    return Piece(thought, None if reason else query, reason=reason, searched=True)


def _parse_answer(head: str, after: str) -> Piece:
    thought = head.strip()
    for template in TEMPLATES.values():
        after = after.replace(template.response_end, " ")
    tags = set(_ANY_TAG.findall(after))
    boxes = list(_boxes(after))
    answers = {normalize_action(_unwrapped(after[start:end])) for start, end in boxes if end >= 0}
    reason = None
    if SEARCH_OPEN in thought:
        reason = "unclosed_search"
    elif _ANY_TAG.search(thought):
        reason = "tag_in_thought"
    elif tags & {SEARCH_OPEN, SEARCH_CLOSE}:
        reason = "search_after_thought"
    elif tags:
        reason = "tag_in_answer"
    elif not boxes:
        reason = "no_answer"
    elif boxes[-1][1] < 0:
        reason = "unclosed_answer"
    elif len(answers) > 1:
        reason = "two_answers"
    elif answers == {""}:
        reason = "empty_answer"
    return Piece(thought, answer=None if reason else answers.pop(), reason=reason)


def spans(text: str) -> list[Span]:
    r"""Divide a growing text by position; the spans joined are the text, whatever it is.

    Everything from behind `</end_search>` to the end of `</search_result>` and two line breaks is
    an observation, whoever wrote it. Without its end it reaches to the end of the text.
    """
    return [span for span in _spans(text) if span.text]


def _spans(text: str) -> Iterator[Span]:
    at = 0
    while True:
        search, end = text.find(SEARCH_OPEN, at), text.find(THINK_CLOSE, at)
        if search < 0 or 0 <= end < search:
            break
        yield Span(REASONING, text[at:search])
        yield Span(QUERY_OPEN, SEARCH_OPEN)
        start = search + len(SEARCH_OPEN)
        close = text.find(SEARCH_CLOSE, start)
        if close < 0:
            yield Span(QUERY, text[start:])
            return
        yield Span(QUERY, text[start:close])
        yield Span(QUERY_CLOSE, SEARCH_CLOSE)
        at = close + len(SEARCH_CLOSE)
        stop = _end_of_results(text, at)
        yield Span(OBSERVATION, text[at:stop])
        at = stop
    if end < 0:
        yield Span(REASONING, text[at:])
        return
    after = end + len(THINK_CLOSE)
    yield Span(REASONING, text[at:after])
    for start, close in _boxes(text, after):
        opening = text.rindex("\\boxed", after, start)
        yield Span(REASONING, text[after:opening])
        yield Span(BOX_OPEN, text[opening:start])
        after = len(text) if close < 0 else close
        yield Span(ANSWER, text[start:after])
        yield Span(BOX_CLOSE, text[after : after + 1])
        after += 1
    yield Span(REASONING, text[after:])


def _end_of_results(text: str, start: int) -> int:
    """Return where the results end that may begin at `start`; `start` where there are none."""
    space = _SPACE.match(text, start)
    begin = space.end() if space else start
    if not text.startswith(RESULT_OPEN, begin):
        return start
    close = text.find(RESULT_CLOSE, begin)
    if close < 0:
        return len(text)
    end = close + len(RESULT_CLOSE)
    return end + len(RESULT_GAP) if text.startswith(RESULT_GAP, end) else end


def _boxes(text: str, start: int = 0) -> Iterator[tuple[int, int]]:
    r"""Yield (beginning, end) of what each `\boxed{…}` holds; the end is -1 if it has none."""
    while box := _BOX.search(text, start):
        end = _closing(text, box.end())
        yield box.end(), end
        if end < 0:
            return
        start = end + 1


def _closing(text: str, start: int) -> int:
    """Return the position of the brace that closes the one before `start`; -1 for none."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not depth:
            return brace.start()
    return -1


def _unwrapped(answer: str) -> str:
    for _ in range(_MOST_WRAPPERS):
        answer = answer.strip()
        wrapper = _WRAPPER.match(answer)
        if wrapper is None or _closing(answer, wrapper.end()) != len(answer) - 1:
            break
        answer = answer[wrapper.end() : -1]
    return _ESCAPED.sub(r"\1", answer)


def search_text(query: str) -> str:
    """Return a query with its tags."""
    return f"{SEARCH_OPEN} {query} {SEARCH_CLOSE}"


def result_text(results: Sequence[str]) -> str:
    """Return what the environment appends after a search: all of it is an observation.

    Tags of the format inside a result lose their first sign, so that no text of a page can end the
    results or open another thought.
    """
    lines = (f"result {n}: {untagged(text)}" for n, text in enumerate(results, start=1))
    return result_block("\n".join(lines))


def result_block(text: str) -> str:
    """Return a text as the environment's answer to a search."""
    return f"{RESULT_OPEN} {text} {RESULT_CLOSE}{RESULT_GAP}"


def divided(block: str) -> tuple[str, str, str]:
    """Return (opening tag, text, closing tag) of `result_block` without its line breaks.

    Any other text is ("", text, "").
    """
    text = block.removeprefix(RESULT_OPEN).removesuffix(RESULT_CLOSE)
    if len(text) != len(block) - len(RESULT_OPEN) - len(RESULT_CLOSE):
        return "", block, ""
    return RESULT_OPEN, text, RESULT_CLOSE


def tag_in(text: str) -> str | None:
    """Return the first of the format's tags in a text; None if there is none."""
    tag = _ANY_TAG.search(text)
    return tag[0] if tag else None


def untagged(text: str) -> str:
    """Return a text in which the format's tags are none, with ‹ for <."""
    return _ANY_TAG.sub(lambda tag: f"‹{tag[0][1:]}", text)


def answer_text(answer: str) -> str:
    r"""Return the end of a thought and the answer. Braces in the answer are escaped."""
    return f"{THINK_CLOSE}{RESULT_GAP}{ANSWER_OPEN}{escaped(answer)}{ANSWER_CLOSE}"


def escaped(answer: str) -> str:
    """Return an answer as it is written between its braces."""
    return re.sub(r"[{}\\]", lambda sign: f"\\{sign[0]}", answer)
