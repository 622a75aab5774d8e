"""Token in, token out: a prompt grows by the ids that were sampled, never by their text encoded again.

    prompt of this state | <action>  the action's sampled ids  </action><end>  <user> next observation <assistant>
                         | what the model read and wrote stays, id for id       | and the next state's part is new

A prompt action's response goes on whole. Of a CoT response the reasoning is left out, as past reasoning is not part of a prompt
(`cotjax.formats`). What cannot go on as ids is encoded from text: a recorded expert's action, the empty command that an invalid
response becomes, and an action whose tags a subword tokenizer has merged with their neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cotjax.errors import InternalError
from cotjax.formats import normalize_action


def action_ids(codec: Any, ids: Sequence[int], action: str, *, prefilled: bool) -> list[int] | None:
    """The sampled ids of `action` alone: those between `<action>` and `</action>`, None where the tags are not tokens of their own.

    `prefilled`: `ids` begin inside the action.
    """
    start = 0 if prefilled else _after(ids, codec.action_prefix, 0)
    end = None if start is None else _after(ids, codec.stop[0], start)
    if end is None:
        return None
    inside = list(ids[start : end - len(codec.stop[0])])
    return inside if normalize_action(codec.decode(inside)) == action else None


def check_prompt(where: str, prompt: Sequence[int], cached: int) -> None:
    """Raise InternalError unless the policy's cache holds as many ids as the prompt that the loop has kept of them."""
    if cached != len(prompt):
        raise InternalError(f"{where}: the policy's cache holds {cached} ids, the prompt has {len(prompt)}")


def check_continues(where: str, piece: Sequence[int], sampled: Sequence[int], codec: Any) -> None:
    """Raise InternalError unless `piece`, which is appended to a prompt, begins with exactly the ids that were sampled for the action."""
    expected = [*codec.action_prefix, *sampled, *codec.stop[0]]
    if list(piece[: len(expected)]) != expected:
        raise InternalError(f"{where}: the next prompt does not go on with the sampled ids {expected}, but with {piece[: len(expected)]}")


def _after(ids: Sequence[int], tag: Sequence[int], start: int) -> int | None:
    """Where the first `tag` from `start` on ends; None where there is none."""
    tag = list(tag)
    return next((i + len(tag) for i in range(start, len(ids) - len(tag) + 1) if list(ids[i : i + len(tag)]) == tag), None)
