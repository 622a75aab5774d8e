"""Constrained choice: the admissible action that the model finds most likely.

An action is scored with the `</action>` behind it, so that an action does not win because a longer
one begins with it ("open drawer 1", "open drawer 12"). The mean is per token, `</action>` included.
Of equal scores the first in the environment's list wins.

`cot_constrained` follows what the CoT response says before its first `<action>`, as it was sampled.
Where a response has no `<action>`, all of it is followed, without the end of its turn. A thought
that is not closed there, for one that ran into the token limit, is closed. A response that did not
reason thus leads to the choice of `prompt_constrained`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from cotjax.formats import ACTION_OPEN, THINK_CLOSE, THINK_OPEN
from cotjax.rollout.contracts import Codec
from cotjax.rollout.record import Choice
from cotjax.rollout.tokens import pieces_of


def action_branches(codec: Codec, commands: Sequence[str]) -> list[list[int]]:
    """Return the ids of each command as training has them, with those of `</action>` behind."""
    return [[*_ids(codec, command), *codec.stop[0]] for command in commands]


# The same actions come again state after state.
@lru_cache(maxsize=1 << 14)
def _ids(codec: Codec, command: str) -> tuple[int, ...]:
    return tuple(codec.encode_plain(command, "the command", lenient=True))


def reasoning_before(codec: Codec, ids: Sequence[int]) -> list[int]:
    """Return the ids of a CoT response up to and with `<action>`, as the top of this file says.

    Tokens stay as they were sampled. Only a token that also holds part of what is left out is
    encoded again, without that part.
    """
    pieces = pieces_of(codec, ids)
    ends = [0, *accumulate(map(len, pieces))]
    text = "".join(pieces)
    head, found, _ = text.partition(ACTION_OPEN)
    if found and len(head) + len(ACTION_OPEN) in ends:
        return list(ids[: ends.index(len(head) + len(ACTION_OPEN))])
    if not found:
        stops = [at for at in map(head.find, codec.stop_texts) if at >= 0]
        head = head[: min(stops, default=len(head))]
    thinks = THINK_OPEN in head
    if thinks:
        head = head.partition(THINK_CLOSE)[0]
    kept = max(index for index, end in enumerate(ends) if end <= len(head))
    # Whitespace between tokens is a tokenizer's own.
    rest = head[ends[kept] :] if head[ends[kept] :].strip() else ""
    close = codec.think_close.lstrip() if thinks else ""
    # Some templates' line break before `</think>` is encoded with the thought, as in training.
    gap = codec.think_close[: len(codec.think_close) - len(close)] if thinks else ""
    rest += "" if head.endswith(gap) else gap
    return [
        *ids[:kept],
        *(codec.encode_plain(rest, "the reasoning", lenient=True) if rest else ()),
        *(codec.encode(close) if close else ()),
        *codec.action_prefix,
    ]


def choose(
    commands: Sequence[str],
    branches: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float]],
    *,
    prefix_ids: Sequence[int],
    close: int,
    by: str,
) -> Choice:
    """Return the choice among commands.

    Args:
      branches: ids of each command, of which the last `close` are those of `</action>`.
      logprobs: of those ids.
      prefix_ids: the ids between the prompt and the branches.
      by: "total" or "mean".
    """
    # Rounded first, so that a record says what was chosen, and why.
    totals = [round(float(sum(each)), 6) for each in logprobs]
    means = [total / len(ids) for total, ids in zip(totals, branches, strict=True)]

    def best(scores: Sequence[float]) -> int:
        return scores.index(max(scores))

    total, mean = (best(totals), best(means)) if commands else (None, None)
    chosen = total if by == "total" else mean
    return Choice(
        action=None if chosen is None else commands[chosen],
        by_total=None if total is None else commands[total],
        by_mean=None if mean is None else commands[mean],
        logprobs=tuple(totals),
        tokens=tuple(map(len, branches)),
        prefix_ids=tuple(prefix_ids),
        ids=() if chosen is None else tuple(branches[chosen][:-close]),
    )
