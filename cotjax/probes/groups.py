"""The groups of a state's tokens: those of its prompt, and those of a response.

A prompt's turns are built again as the rollout built them, from the record's texts. Where the ids
are the record's, the groups are exact:

    <user>     Your task is to: …  You see …   Listed …  <assistant>
    scaffold   task                history     history   scaffold
    <action>   open fridge 1       </action>   <user>    You open …   Listed …    <assistant>
    scaffold   history             scaffold    scaffold  observation  admissible  scaffold

A response's tags are found in the text of its ids, whichever tokens a model wrote them with. A
token that also holds a part of a tag belongs to what it holds of thought or action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from cotjax.data.codec import Codec
from cotjax.diagnostics.role_shares import GROUPS
from cotjax.formats import ACTION_CLOSE, ACTION_OPEN, THINK_CLOSE, THINK_OPEN, state_key
from cotjax.rollout.record import Record, Turn
from cotjax.rollout.tokens import pieces_of

_NUMBER = {group: number for number, group in enumerate(GROUPS)}
SCAFFOLD, TASK, HISTORY, OBSERVATION, ADMISSIBLE, REASONING, TAGS, ACTION = _NUMBER.values()


@dataclass(frozen=True)
class Tokens:
    """Ids, and the group of each: its number in `role_shares.GROUPS`."""

    ids: list[int]
    groups: list[int]

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.ids + other.ids, self.groups + other.groups)

    def only(self, group: int) -> list[int]:
        """Return the ids of one group."""
        return [id_ for id_, own in zip(self.ids, self.groups, strict=True) if own == group]


def prompt_tokens(codec: Codec, record: Record, number: int) -> Tokens | None:
    """Return the prompt of a record's turn; None where its ids are not what the codec writes."""
    ids: list[int] = []
    groups: list[int] = []
    for turn_number, turn in enumerate(record.steps[: number + 1]):
        own = _turn_groups(codec, record, turn, turn_number, turn_number == number)
        if own is None:
            return None
        ids += turn.prompt_ids
        groups += own
    return Tokens(ids, groups)


def _turn_groups(
    codec: Codec, record: Record, turn: Turn, number: int, current: bool
) -> list[int] | None:
    """Return the group of each of a turn's `prompt_ids`."""
    state = turn.observation, turn.admissible_commands, state_key(record.game.id, number)
    seen = [OBSERVATION, ADMISSIBLE] if codec.prompt.lists_actions else [OBSERVATION]
    if not current:
        seen = [HISTORY] * len(seen)
    if number:
        segments = codec.next_turn(*state, lenient=True)
        of_segments = [SCAFFOLD, *seen, SCAFFOLD]
    else:
        segments = codec.first_turn(record.task, *state, lenient=True)
        of_segments = [SCAFFOLD, TASK, *seen, SCAFFOLD]
    written = [id_ for ids, _ in segments for id_ in ids]
    groups = [
        group
        for (ids, _), group in zip(segments, of_segments, strict=True)
        for _ in range(len(ids))
    ]
    ids = list(turn.prompt_ids)
    before, after = ids[: len(ids) - len(written)], ids[len(ids) - len(written) :]
    if after != written:
        return None
    acted = _executed_groups(codec, before) if number else ([] if not before else None)
    return None if acted is None else acted + groups


def _executed_groups(codec: Codec, ids: list[int]) -> list[int] | None:
    """Return the groups of an executed action with its tags and the end of its turn."""
    opened = list(codec.action_prefix)
    closed = [*codec.stop[0], *codec.encode(codec.template.response_end)]
    action = len(ids) - len(opened) - len(closed)
    if action < 0 or ids[: len(opened)] != opened or ids[len(ids) - len(closed) :] != closed:
        return None
    return [SCAFFOLD] * len(opened) + [HISTORY] * action + [SCAFFOLD] * len(closed)


def response_tokens(codec: Codec, ids: Sequence[int]) -> Tokens:
    """Return a response up to its action's last token; nothing where it has no action.

    `ids`: of all of it, with what was prefilled.
    """
    pieces = pieces_of(codec, ids)
    text = "".join(pieces)
    opened = text.find(ACTION_OPEN)
    if opened < 0:
        return Tokens([], [])
    thought = _stripped(text, THINK_OPEN, THINK_CLOSE, 0, opened)
    action = _stripped(text, ACTION_OPEN, ACTION_CLOSE, opened, len(text))
    groups = []
    for piece, end in zip(pieces, accumulate(map(len, pieces)), strict=True):
        span = end - len(piece), end
        if _overlap(span, action):
            groups.append(ACTION)
        elif _overlap(span, thought):
            groups.append(REASONING)
        else:
            groups.append(TAGS)
    length = max((at + 1 for at, group in enumerate(groups) if group == ACTION), default=0)
    return Tokens(list(ids[:length]), groups[:length])


def _stripped(text: str, opening: str, closing: str, start: int, end: int) -> tuple[int, int]:
    """Return the span between two tags without the whitespace at its ends; empty without them."""
    start = text.find(opening, start, end)
    close = text.find(closing, max(start, 0), end)
    if start < 0 or close < 0:
        return 0, 0
    start += len(opening)
    inside = text[start:close]
    return start + len(inside) - len(inside.lstrip()), start + len(inside.rstrip())


def _overlap(span: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two spans share a character. An empty one counts where it is inside the other."""
    if span[0] == span[1]:
        return other[0] < span[0] < other[1]
    return max(span[0], other[0]) < min(span[1], other[1])
