"""Token in, token out: prompts grow by the sampled ids, never by their text encoded again.

    prompt of this state | <action>  sampled ids of the action  </action><end>  <user> observation …
                         | stays as the model read and wrote it; the next state's part is appended

A prompt response goes into the next prompt as it is. Of a CoT response the reasoning is left out,
because past reasoning is not part of a prompt (`cotjax.formats`). Tags are found in the text of
the ids, whichever tokens a model wrote them with; the tags of the next prompt are those of
training. A constrained action goes on with the ids that were scored. Three actions are encoded from
text: a recorded expert's, the empty command of an invalid response, and one whose first or last
token also holds part of a tag.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from cotjax.errors import InternalError
from cotjax.formats import ACTION_CLOSE, ACTION_OPEN, normalize_action
from cotjax.rollout.contracts import Codec


def action_ids(codec: Codec, ids: Sequence[int], action: str, *, opened: str) -> list[int] | None:
    """Return the ids of `action` alone: the whole tokens between `<action>` and `</action>`.

    Returns None where these tokens do not spell the action. `opened`: the text prefilled before
    `ids`. Example: of the tokens t</th | ink>< | action> | look | </act | ion>. only `look` is the
    action's.
    """
    pieces = pieces_of(codec, ids)
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
    # A token outside may hold whitespace of the action, but nothing else of it.
    return inside if normalize_action(codec.decode(inside)) == action else None


def text_to_stop(codec: Codec, ids: Sequence[int], text: str) -> str:
    """Return `text`, the text of `ids`, without what their last token holds after a stop text."""
    pieces = pieces_of(codec, ids)
    joined = "".join(pieces)
    stops = ((joined.find(stop), stop) for stop in codec.stop_texts)
    end = min((at + len(stop) for at, stop in stops if at >= 0), default=len(joined))
    past = len(joined) - end
    return text[: len(text) - past] if 0 < past < len(pieces[-1]) else text


def check_prompt(where: str, prompt: Sequence[int], cached: Sequence[int]) -> None:
    """Raise InternalError unless the policy's cache holds exactly the ids of the loop's prompt."""
    if list(cached) == list(prompt):
        return
    shorter = min(len(cached), len(prompt))
    differs = next((at for at in range(shorter) if cached[at] != prompt[at]), shorter)
    raise InternalError(
        f"{where}: the policy's cache holds {len(cached)} ids, the prompt has {len(prompt)}; they "
        f"differ from id {differs} on"
    )


def check_continues(where: str, piece: Sequence[int], sampled: Sequence[int], codec: Codec) -> None:
    """Raise InternalError unless the piece to append begins with the action's sampled ids."""
    expected = [*codec.action_prefix, *sampled, *codec.stop[0]]
    if list(piece[: len(expected)]) != expected:
        raise InternalError(
            f"{where}: the next prompt does not go on with the sampled ids {expected}, but with "
            f"{piece[: len(expected)]}"
        )


def pieces_of(codec: Codec, ids: Sequence[int]) -> list[str]:
    """Return the text of each id; "" for an id that is no token (another kind of policy)."""
    known = codec.pieces
    return [(known[id] or "") if id < len(known) else "" for id in ids]
