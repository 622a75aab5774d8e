"""Roles -> weights aligned with targets. The shift from tokens to targets happens here, once:

    position          0        1        2         3          4         5         6           7
    ids               p        <think>  t         </think>   <action>  go        </action>   <end>
    roles             PROMPT   REASON.  REASON.   REASON.    A_OPEN    ACTION    A_CLOSE     END
    target of it      <think>  t        </think>  <action>   go        </action> <end>       –
    weight            1        1        1         1          1         1         1           0
    weight, dropped   1        1        1         1          0         1         1           0

`weight[i]` is that of predicting `ids[i + 1]`; the last position has no target. With the action
dropped the `<action>` tag keeps its weight, so the model still learns when to stop reasoning
(arXiv 2606.26935, reduced action supervision).

All functions take numpy arrays, jax arrays, jax tracers and torch tensors, and return the same
kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from cotjax.masking.arrays import Array, checked_roles, from_tensors, namespace, to_numpy
from cotjax.masking.roles import RESPONSE_ROLES, MaskError, Role


@from_tensors
def target_weights(
    roles: Array,
    *,
    drop_action: Array | None = None,
    drop_tokens: Array | None = None,
    segment_ids: Array | None = None,
    branches: Array | None = None,
    supervised: Iterable[Role] = RESPONSE_ROLES,
    dropped: Iterable[Role] = (Role.ACTION, Role.ANSWER),
) -> Array:
    """Return loss weights by target: `weights[..., i]` is that of predicting token i + 1.

    Args:
      roles: [..., T] int, the `Role` of each token.
      drop_action: bool, true where the action is dropped: [...] by row, or [..., T] by token (None:
        nowhere).
      drop_tokens: [..., T] bool, tokens that are dropped whatever their role (`Dropping.tokens`).
      segment_ids: [..., T] int; a target in another segment than its position has weight 0 (packed
        rows).
      branches: [..., T] int, 0 on the trunk (rows in which several responses share a prompt). A
        trunk token after a branch does not continue the branch, so that target has weight 0.
      supervised: the roles that are trained on; PAD cannot be one.
      dropped: the roles that lose their weight where `drop_action` is true. By default the tokens
        of the action or the answer alone: `</action>` and the end-of-turn token stay supervised.

    Returns:
      [..., T] float32, each 0 or 1; 0 at the last position and at padding.

    Raises:
      MaskError: shapes differ, `supervised` names PAD or something that is not a role, or (of a
        numpy array) a number is not a `Role`.
    """
    xp = namespace(roles)
    if xp is np:
        roles = checked_roles(roles)
    codes = roles.astype(np.uint16)
    keep = _is_one_of(codes, trainable(supervised))
    if drop_action is not None:
        if np.shape(drop_action) == np.shape(roles)[:-1]:
            drop_action = xp.asarray(drop_action)[..., None]
        else:
            _same_shape("drop_action", drop_action, roles)
        keep = keep & ~(_is_one_of(codes, dropped) & xp.asarray(drop_action))
    if drop_tokens is not None:
        _same_shape("drop_tokens", drop_tokens, roles)
        keep = keep & ~xp.asarray(drop_tokens)
    # With padding on the left, the first token follows a PAD, which predicts nothing.
    keep = keep[..., 1:] & (codes[..., :-1] != Role.PAD)
    if segment_ids is not None:
        _same_shape("segment_ids", segment_ids, roles)
        keep = keep & (segment_ids[..., 1:] == segment_ids[..., :-1])
    if branches is not None:
        _same_shape("branches", branches, roles)
        keep = keep & ((branches[..., 1:] == branches[..., :-1]) | (branches[..., :-1] == 0))
    return _with_last(keep, roles.shape)


@from_tensors
def targets(ids: Array) -> Array:
    """Return the id that each position predicts: [..., T], shifted left by one.

    The last position (of weight 0) repeats its own id.
    """
    ids = np.asarray(ids) if isinstance(ids, list | tuple) else ids
    return namespace(ids).concatenate([ids[..., 1:], ids[..., -1:]], axis=-1)


@from_tensors
def labels(ids: Array, weights: Array, ignore_index: int = -100) -> Array:
    """Return labels [..., T] for Hugging Face models, which shift them internally.

    `labels[i]` is `ids[i]` where token i is trained on, else `ignore_index`.

    Raises:
      MaskError: shapes differ, or (of numpy arrays) a weight is neither 0 nor 1, which labels
        cannot express.
    """
    _same_shape("weights", weights, ids)
    ids, weights = (
        np.asarray(array) if isinstance(array, list | tuple) else array for array in (ids, weights)
    )
    xp = namespace(ids)
    if xp is np and not np.isin(weights, (0.0, 1.0)).all():
        raise MaskError(
            "labels can only express whether a token is trained on: its weight must be 0 or 1"
        )
    trained = xp.concatenate([xp.zeros_like(weights[..., :1]), weights[..., :-1]], axis=-1) > 0
    return xp.where(trained, ids, ids.dtype.type(ignore_index) if xp is np else ignore_index)


@from_tensors
def spread(values: Array, segment_ids: Array, fill: Any = 0) -> Array:
    """Spread one value per example over its tokens: [..., S] and [..., T] -> [..., T].

    Segment s (1..S) of a packed row gets `values[..., s - 1]`; padding (segment 0) gets `fill`.
    """
    xp = namespace(values)
    index = xp.maximum(segment_ids, 1) - 1
    return xp.where(segment_ids > 0, xp.take_along_axis(xp.asarray(values), index, axis=-1), fill)


def check_supervision(
    weights: np.ndarray,
    roles: np.ndarray,
    name: str = "the batch",
    segment_ids: np.ndarray | None = None,
) -> None:
    """Refuse the two masks of an example that mean a mistake upstream: no token, or every token.

    Give the weights before dropping: a control may drop a whole batch, which is a step of gradient
      0.

    Args:
      weights, roles: [T] of one example, or [B, T].
      name: what errors call it.
      segment_ids: [T] or [B, T] int, 0 padding, 1.. the example within a packed row (None: a row is
        an example).

    Raises:
      MaskError: no target of an example has a weight, or every target has one and its first token
        is not prompt.
    """
    roles, weights = checked_roles(roles), np.asarray(to_numpy(weights))
    _same_shape("weights", weights, roles)
    if not (roles != Role.PAD).any():
        raise MaskError(f"{name}: there are no tokens")
    segments = (
        (roles != Role.PAD).astype(np.int64)
        if segment_ids is None
        else np.asarray(to_numpy(segment_ids))
    )
    _same_shape("segment_ids", segments, roles)
    rows = zip(
        *(array.reshape(-1, roles.shape[-1]) for array in (weights, roles, segments)), strict=True
    )
    for row, (weights_T, roles_T, segments_T) in enumerate(rows):
        for example in np.unique(segments_T[segments_T > 0]):
            here = np.flatnonzero(segments_T == example)
            where = (
                name
                + (f", row {row}" if roles.ndim > 1 else "")
                + (f", segment {example}" if segment_ids is not None else "")
            )
            if not (weights_T[here] > 0).any():
                raise MaskError(
                    f"{where}: no token is supervised; do the roles contain a response, and does "
                    "`supervised` name its roles?"
                )
            # A prompt of one token is not a target, so all targets after it may be trained on.
            if roles_T[here[0]] in RESPONSE_ROLES and (weights_T[here[:-1]] > 0).all():
                raise MaskError(
                    f"{where}: every token is supervised, even the prompt; are the roles those of "
                    "the data?"
                )


def trainable(supervised: Iterable[Role]) -> tuple[Role, ...]:
    """Return the roles that are trained on, checked; ANSWER is among them where ACTION is.

    Raises:
      MaskError: one is PAD, or not a role.
    """
    roles = tuple(supervised)
    wrong = [role for role in roles if role not in Role._value2member_map_ or role == Role.PAD]
    if wrong:
        raise MaskError(
            f"{wrong[0]!r} cannot be trained on; there are "
            f"{', '.join(role.name for role in Role if role)}"
        )
    return (*roles, Role.ANSWER) if Role.ACTION in roles and Role.ANSWER not in roles else roles


def _with_last(keep: Array, shape: tuple[int, ...]) -> Array:
    """Append the last position, which has no target: [..., T - 1] bool -> float32 of `shape`."""
    xp = namespace(keep)
    if xp is np:
        weights = np.empty(shape, np.float32)
        weights[..., :-1] = keep
        weights[..., -1:] = 0
        return weights
    last = xp.zeros_like(keep, shape=(*keep.shape[:-1], min(1, shape[-1])))
    return xp.concatenate([keep, last], axis=-1).astype(np.float32)


def _is_one_of(codes: Array, roles: Iterable[Role]) -> Array:
    """[..., T] uint16 -> bool. One bit per role avoids a gather, on any device."""
    bits = 0
    for role in roles:
        bits |= 1 << int(role)
    return (np.uint16(bits) >> codes & np.uint16(1)).astype(bool)


def _same_shape(name: str, array: Array, roles: Array) -> None:
    if np.shape(array) != np.shape(roles):
        raise MaskError(f"{name} has shape {np.shape(array)}, the tokens have {np.shape(roles)}")
