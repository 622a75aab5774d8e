"""The role of a token in the loss, an int8 next to its id. A mask is never a magic id."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from cotjax.errors import DataError


class Role(IntEnum):
    """The role of a token in the loss.

    `<think>` and `</think>` are reasoning. END is the end-of-turn token of a response. In a growing
    text ANSWER is the last action, and ACTION a query; ANSWER is trained on where ACTION is.
    """

    PAD = 0
    PROMPT = 1
    OBSERVATION = 2
    REASONING = 3
    ACTION_OPEN = 4
    ACTION = 5
    ACTION_CLOSE = 6
    END = 7
    ANSWER = 8


RESPONSE_ROLES = (
    Role.REASONING,
    Role.ACTION_OPEN,
    Role.ACTION,
    Role.ACTION_CLOSE,
    Role.END,
    Role.ANSWER,
)


class MaskError(DataError, ValueError):
    """Roles or weights cannot be made from this input; the message names example and position."""


class RoleTokens(NamedTuple):
    """One tokenised example: `ids` int32 [T] and `roles` int8 [T]."""

    ids: np.ndarray
    roles: np.ndarray


def roles_from_segments(segments: Iterable[tuple[Sequence[int], Role]]) -> RoleTokens:
    """Join (ids, role) segments, each tokenised by itself.

    This is exact, whatever the tokenizer would merge over borders, so prefer it.

    Raises:
      MaskError: a role is not one of `Role`, or an id is not an integer of 31 bits.
    """
    ids: list[int] = []
    roles: list[int] = []
    for number, segment in enumerate(segments):
        try:
            part, role = segment
            tokens = [operator.index(token) for token in part]
            known = role in Role._value2member_map_
        except (TypeError, ValueError) as error:
            raise MaskError(
                f"segment {number} is not a pair of token ids and a role ({error})"
            ) from None
        if not known:
            raise MaskError(
                f"segment {number}: {role!r} is not a role; there are {', '.join(Role.__members__)}"
            )
        if tokens and not 0 <= min(tokens) <= max(tokens) < 1 << 31:
            raise MaskError(
                f"segment {number}: token ids must be in 0..{(1 << 31) - 1}, these go from "
                f"{min(tokens)} to {max(tokens)}"
            )
        ids += tokens
        roles += [int(role)] * len(tokens)
    return RoleTokens(np.asarray(ids, np.int32), np.asarray(roles, np.int8))
