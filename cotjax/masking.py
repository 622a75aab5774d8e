"""Token roles -> target weights, and reduced action supervision: sampled dropping of the action-token loss.

Needs numpy alone. A token's role travels beside its id as an int8 array; a mask is never a magic id. The shift from
tokens to targets happens here, once:

    position          0        1        2         3          4         5         6           7
    ids               p        <think>  t         </think>   <action>  go        </action>   <end>
    roles             PROMPT   REASON.  REASON.   REASON.    A_OPEN    ACTION    A_CLOSE     END
    target of it      <think>  t        </think>  <action>   go        </action> <end>       –
    weight            1        1        1         1          1         1         1           0
    weight, dropped   1        1        1         1          0         1         1           0

`weight[i]` belongs to the prediction of `ids[i + 1]`; the last position has no target. With the action dropped the
`<action>` tag keeps its weight, so the model still learns when to stop reasoning (arXiv 2606.26935, reduced action supervision).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from enum import IntEnum

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


def drops_action(seed: int, example_id: str, fraction: float, epoch: int | None = None) -> bool:
    """Whether this example's action loss is dropped: a pure function of its arguments.

    The same on every host, in any order, under any packing and after a resume, and an analysis can ask it again. With
    `epoch=None` the subset is fixed for the whole run; with an epoch it is redrawn each time. Subsets are nested: what is
    dropped at fraction 0.1 is dropped at 0.3 too.

    Raises:
      ValueError: `fraction` is outside 0..1.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"the fraction of examples that drop their action must be in 0..1, not {fraction}")
    key = f"{seed}\x00{'' if epoch is None else epoch}\x00{example_id}".encode()
    draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2.0**64
    return draw < fraction


def target_weights(
    roles: np.ndarray,
    *,
    drop_action: np.ndarray | None = None,
    segment_ids: np.ndarray | None = None,
    branches: np.ndarray | None = None,
    supervised: Iterable[Role] = RESPONSE_ROLES,
    dropped: Iterable[Role] = (Role.ACTION,),
) -> np.ndarray:
    """Loss weights aligned with targets: `weights[..., i]` is that of predicting token i + 1 at position i.

    Args:
      roles: [..., T] int, a `Role` a token.
      drop_action: [..., T] bool, true on the tokens of the examples whose action loss is dropped (None: nowhere).
      segment_ids: [..., T] int; a target in another segment than its position weighs 0 (packed rows).
      branches: [..., T] int, 0 on the trunk (rows whose prompt is shared by several responses). The token before a
        trunk token that follows a branch is not what it continues, so that target weighs 0.
      supervised: the roles that are trained on.
      dropped: the roles that lose their weight where `drop_action` is true. Default: the action's own tokens, so
        `</action>` and the end-of-turn token stay supervised.

    Returns:
      [..., T] float32, each 0 or 1; the last position is 0.

    Raises:
      ValueError: shapes differ.
    """
    table = np.zeros(len(Role), np.float32)
    table[[int(role) for role in supervised]] = 1.0
    token_weights = table[roles]
    if drop_action is not None:
        if np.shape(drop_action) != np.shape(roles):
            raise ValueError(f"drop_action has shape {np.shape(drop_action)}, roles {np.shape(roles)}")
        droppable = np.zeros(len(Role), bool)
        droppable[[int(role) for role in dropped]] = True
        token_weights = np.where(droppable[roles] & drop_action, np.float32(0), token_weights)
    weights = np.zeros_like(token_weights)
    weights[..., :-1] = token_weights[..., 1:]
    for name, array in (("segment_ids", segment_ids), ("branches", branches)):
        if array is not None and np.shape(array) != np.shape(roles):
            raise ValueError(f"{name} has shape {np.shape(array)}, roles {np.shape(roles)}")
    if segment_ids is not None:
        weights[..., :-1] *= segment_ids[..., 1:] == segment_ids[..., :-1]
    if branches is not None:
        weights[..., :-1] *= (branches[..., 1:] == branches[..., :-1]) | (branches[..., :-1] == 0)
    return weights


def targets(ids: np.ndarray) -> np.ndarray:
    """The ids that the positions predict: [..., T] -> [..., T], shifted left by one; the last (weight 0) repeats its own id."""
    return np.concatenate([ids[..., 1:], ids[..., -1:]], axis=-1)
