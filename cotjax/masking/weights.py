"""Roles -> weights aligned with targets. The shift from tokens to targets happens here, once:

    position          0        1        2         3          4         5         6           7
    ids               p        <think>  t         </think>   <action>  go        </action>   <end>
    roles             PROMPT   REASON.  REASON.   REASON.    A_OPEN    ACTION    A_CLOSE     END
    target of it      <think>  t        </think>  <action>   go        </action> <end>       –
    weight            1        1        1         1          1         1         1           0
    weight, dropped   1        1        1         1          0         1         1           0

`weight[i]` belongs to the prediction of `ids[i + 1]`; the last position has no target. With the action dropped the
`<action>` tag keeps its weight, so the model still learns when to stop reasoning (arXiv 2606.26935, reduced action supervision).

All functions take numpy arrays, jax arrays and jax tracers, and answer in kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from cotjax.masking.roles import RESPONSE_ROLES, MaskError, Role

Array = Any  # numpy.ndarray or jax.Array


def target_weights(
    roles: Array,
    *,
    drop_action: Array | None = None,
    drop_tokens: Array | None = None,
    segment_ids: Array | None = None,
    branches: Array | None = None,
    supervised: Iterable[Role] = RESPONSE_ROLES,
    dropped: Iterable[Role] = (Role.ACTION,),
) -> Array:
    """Loss weights aligned with targets: `weights[..., i]` is that of predicting token i + 1 at position i.

    Args:
      roles: [..., T] int, a `Role` a token.
      drop_action: bool, true where the action loss is dropped: [...] of whole rows, or [..., T] of tokens (None: nowhere).
      drop_tokens: [..., T] bool, tokens that lose their loss whatever their role, as `Dropping.tokens` gives them.
      segment_ids: [..., T] int; a target in another segment than its position weighs 0 (packed rows).
      branches: [..., T] int, 0 on the trunk (rows whose prompt is shared by several responses). The token before a
        trunk token that follows a branch is not what it continues, so that target weighs 0.
      supervised: the roles that are trained on.
      dropped: the roles that lose their weight where `drop_action` is true. Default: the action's own tokens, so
        `</action>` and the end-of-turn token stay supervised.

    Returns:
      [..., T] float32, each 0 or 1; the last position is 0.

    Raises:
      MaskError: shapes differ, or (of a numpy array) a role is none of `Role`.
    """
    roles = np.asarray(roles) if isinstance(roles, list | tuple) else roles
    xp = _namespace(roles)
    if xp is np and roles.size and not 0 <= roles.min() <= roles.max() < len(Role):
        raise MaskError(f"roles must be in 0..{len(Role) - 1} (see Role), these go from {roles.min()} to {roles.max()}")
    codes = roles.astype(np.uint8)
    keep = _is_one_of(codes, supervised)
    if drop_action is not None:
        if np.shape(drop_action) == np.shape(roles)[:-1]:
            drop_action = xp.asarray(drop_action)[..., None]
        else:
            _same_shape("drop_action", drop_action, roles)
        keep = keep & ~(_is_one_of(codes, dropped) & xp.asarray(drop_action))
    if drop_tokens is not None:
        _same_shape("drop_tokens", drop_tokens, roles)
        keep = keep & ~xp.asarray(drop_tokens)
    keep = keep[..., 1:]
    if segment_ids is not None:
        _same_shape("segment_ids", segment_ids, roles)
        keep = keep & (segment_ids[..., 1:] == segment_ids[..., :-1])
    if branches is not None:
        _same_shape("branches", branches, roles)
        keep = keep & ((branches[..., 1:] == branches[..., :-1]) | (branches[..., :-1] == 0))
    if xp is np:
        weights = np.empty(roles.shape, np.float32)
        weights[..., :-1] = keep
        weights[..., -1:] = 0
        return weights
    return xp.concatenate([keep, xp.zeros_like(keep, shape=(*keep.shape[:-1], min(1, roles.shape[-1])))], axis=-1).astype(np.float32)


def targets(ids: Array) -> Array:
    """The ids that the positions predict: [..., T] -> [..., T], shifted left by one; the last (weight 0) repeats its own id."""
    return _namespace(ids).concatenate([ids[..., 1:], ids[..., -1:]], axis=-1)


def labels(ids: Array, weights: Array, ignore_index: int = -100) -> Array:
    """Labels as Hugging Face models take them: `labels[i]` is `ids[i]` where token i is trained on, else `ignore_index`.

    They stand at the token itself, for those models shift within. [..., T] -> [..., T].

    Raises:
      MaskError: shapes differ, or (of numpy arrays) a weight is neither 0 nor 1, which labels cannot say.
    """
    _same_shape("weights", weights, ids)
    xp = _namespace(ids)
    if xp is np and not np.isin(weights, (0.0, 1.0)).all():
        raise MaskError("labels can only say whether a token is trained on: its weight must be 0 or 1")
    trained = xp.concatenate([xp.zeros_like(weights[..., :1]), weights[..., :-1]], axis=-1) > 0
    return xp.where(trained, ids, ids.dtype.type(ignore_index) if xp is np else ignore_index)


def spread(values: Array, segment_ids: Array, fill: Any = 0) -> Array:
    """A value an example -> a value a token: [..., S] and [..., T] -> [..., T].

    Segment s (1..S) of a packed row gets `values[..., s - 1]`; padding (segment 0) gets `fill`.
    """
    xp = _namespace(values)
    index = xp.maximum(segment_ids, 1) - 1
    return xp.where(segment_ids > 0, xp.take_along_axis(xp.asarray(values), index, axis=-1), fill)


def check_supervision(weights: np.ndarray, roles: np.ndarray, name: str = "the batch") -> None:
    """Refuse the two masks that mean a mistake upstream: nothing is trained on, or everything is.

    Raises:
      MaskError: no target has a weight, or every target that is not padding has one though there is something to leave out.
    """
    real = targets(roles) != Role.PAD
    real[..., -1] = False
    if not (weights > 0).any():
        raise MaskError(f"{name}: no token is supervised; do the roles hold a response, and does `supervised` name its roles?")
    if (weights[real] > 0).all():
        raise MaskError(f"{name}: every token is supervised, the prompt too; are the roles those of the data?")


def _is_one_of(codes: Array, roles: Iterable[Role]) -> Array:
    """[..., T] uint8 -> bool, by one bit a role: no gather, on any device."""
    bits = 0
    for role in roles:
        bits |= 1 << int(role)
    return (np.uint8(bits) >> codes & np.uint8(1)).astype(bool)


def _namespace(array: Array) -> Any:
    return array.__array_namespace__() if hasattr(array, "__array_namespace__") else np


def _same_shape(name: str, array: Array, roles: Array) -> None:
    if np.shape(array) != np.shape(roles):
        raise MaskError(f"{name} has shape {np.shape(array)}, the tokens have {np.shape(roles)}")
