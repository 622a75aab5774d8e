"""Token in, token out: a prompt grows by the ids that were sampled, never by their text encoded again.

    prompt of this state | <action>  the action's sampled ids  </action><end>  <user> next observation <assistant>
                         | what the model read and wrote stays, id for id       | and the next state's part is new

A prompt action's response goes on whole. Of a CoT response the reasoning is left out, as past reasoning is not part of a prompt
(`cotjax.formats`). Tags are found in the text that the ids stand for, whichever tokens a model wrote them with; the tags of the
next prompt are those of training. What cannot go on as ids is encoded from text: a recorded expert's action, the empty command
that an invalid response becomes, and an action of which a token holds a part of a tag too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from cotjax.errors import InternalError
from cotjax.formats import ACTION_CLOSE, ACTION_OPEN, normalize_action


def action_ids(codec: Any, ids: Sequence[int], action: str, *, opened: str) -> list[int] | None:
    """Return the sampled ids of `action` alone: the whole tokens between `<action>` and `</action>`; None where these do not
    spell it.

    `opened`: what was prefilled before `ids`. Of the tokens t</th | ink>< | action> | look | </act | ion>. only `look` is the
    action's.
    """
    pieces = _pieces(codec, ids)
    text = opened + "".join(pieces)
    start = text.find(ACTION_OPEN) + len(ACTION_OPEN)
    end = text.find(ACTION_CLOSE, start)
    if start < max(len(ACTION_OPEN), len(opened)) or end < 0:
        return None
    start, end = start - len(opened), end - len(opened)
    ends = accumulate(map(len, pieces))
    inside = [
        id
        for id, piece, until in zip(ids, pieces, ends, strict=True)
        if until - len(piece) >= start and start < until <= end
    ]
    # A token that was left out may hold blanks of the action, and no more.
    return inside if normalize_action(codec.decode(inside)) == action else None


def text_to_stop(codec: Any, ids: Sequence[int], text: str) -> str:
    """Return `text`, that of `ids`, without what their last token holds past a stop: nothing after it is looked at."""
    pieces = _pieces(codec, ids)
    joined = "".join(pieces)
    found = ((joined.find(stop), stop) for stop in codec.stop_texts)
    past = len(joined) - min((at + len(stop) for at, stop in found if at >= 0), default=len(joined))
    return text[: len(text) - past] if 0 < past < len(pieces[-1]) else text


def check_prompt(where: str, prompt: Sequence[int], cached: Sequence[int]) -> None:
    """Raise InternalError unless the policy's cache holds exactly the ids of the prompt that the loop has kept."""
    if list(cached) == list(prompt):
        return
    shorter = min(len(cached), len(prompt))
    differs = next((at for at in range(shorter) if cached[at] != prompt[at]), shorter)
    holds = f"the policy's cache holds {len(cached)} ids, the prompt has {len(prompt)}"
    raise InternalError(f"{where}: {holds}; they differ from id {differs} on")


def check_continues(where: str, piece: Sequence[int], sampled: Sequence[int], codec: Any) -> None:
    """Raise InternalError unless `piece`, which is appended to a prompt, begins with exactly the ids that were sampled for the action."""
    expected = [*codec.action_prefix, *sampled, *codec.stop[0]]
    if list(piece[: len(expected)]) != expected:
        raise InternalError(
            f"{where}: the next prompt does not go on with the sampled ids {expected}, but with {piece[: len(expected)]}"
        )


def _pieces(codec: Any, ids: Sequence[int]) -> list[str]:
    """The text of each id; of one that is no token, which a policy of another kind may make, none."""
    known = codec.pieces
    return [(known[id] or "") if id < len(known) else "" for id in ids]
