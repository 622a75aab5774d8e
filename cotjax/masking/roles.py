"""What each token is to the loss: its role, an int8 beside its id. A mask is never a magic id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np


class Role(IntEnum):
    """What a token is to the loss. `<think>` and `</think>` count as reasoning; END is the end-of-turn token of a response."""

    PAD = 0
    PROMPT = 1
    OBSERVATION = 2
    REASONING = 3
    ACTION_OPEN = 4
    ACTION = 5
    ACTION_CLOSE = 6
    END = 7


RESPONSE_ROLES = (Role.REASONING, Role.ACTION_OPEN, Role.ACTION, Role.ACTION_CLOSE, Role.END)


class MaskError(ValueError):
    """Roles or weights cannot be made from what was given; the message names the example and the place."""


class RoleTokens(NamedTuple):
    """One tokenised example: `ids` int32 [T] and `roles` int8 [T]."""

    ids: np.ndarray
    roles: np.ndarray


def roles_from_segments(segments: Iterable[tuple[Sequence[int], Role]]) -> RoleTokens:
    """Join (ids, role) segments, each tokenised by itself: exact, whatever the tokenizer would merge, so to be preferred.

    Raises:
      MaskError: a role is none of `Role`.
    """
    ids: list[int] = []
    roles: list[int] = []
    for number, (part, role) in enumerate(segments):
        if int(role) not in Role._value2member_map_:
            raise MaskError(f"segment {number}: {role!r} is no role; there are {', '.join(Role.__members__)}")
        ids.extend(int(token) for token in part)
        roles.extend([int(role)] * len(part))
    return RoleTokens(np.asarray(ids, np.int32), np.asarray(roles, np.int8))
