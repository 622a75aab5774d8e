"""Normalizers: the ways to divide a loss.

Dropping tokens changes the denominator of a mean, so each way to divide the loss has a name. A
normalizer applies the weights, once, and returns (sum, weight). Add both over micro-batches and
devices and divide once, where the weight is 0 by 1: a batch that is dropped entirely is a step of
gradient 0. For numpy, jax and torch; gradients flow through.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cotjax.masking.arrays import Array, alike, check_same_shape, is_torch, namespace

NORMALIZERS = ("token_sum", "example_mean", "fixed_budget")


def token_sum(losses: Array, weights: Array) -> tuple[Array, Array]:
    """Count every supervised token the same: (sum of weighted losses, sum of weights).

    A dropped token leaves the denominator, so the remaining tokens weigh more. losses, weights:
    [..., T]. A loss at weight 0 counts as 0, even if it is not finite.

    Raises:
      MaskError: shapes differ, or one array is of torch and the other is not.
    """
    weighted, weights = _weighted(losses, weights)
    return weighted.sum(), weights.sum()


def example_mean(
    losses: Array, weights: Array, segment_ids: Array | None = None, segments: int | None = None
) -> tuple[Array, Array]:
    """Count every example the same: (sum of the mean losses of the examples, number of examples).

    The mean is over the supervised tokens, weighted; an example without one is not counted. losses,
    weights: [B, T].

    Args:
      segment_ids: [B, T] int, 0 padding, 1.. the example within a packed row (None: a row is an
        example).
      segments: the largest number of examples in a row; needed inside `jax.jit`, where shapes are
        static.

    Raises:
      MaskError: as `token_sum`.
    """
    weighted, weights = _weighted(losses, weights)
    xp = namespace(weighted)
    if segment_ids is None:
        sums, counts = weighted.sum(-1), weights.sum(-1)
    else:
        segment_ids = alike(segment_ids, weighted, "segment_ids")
        check_same_shape("segment_ids", segment_ids, weighted)
        if segments is None:
            segments = int(segment_ids.max()) if np.prod(np.shape(segment_ids)) else 0
        sums, counts = (
            _by_segment(xp, values, segment_ids, segments) for values in (weighted, weights)
        )
    number = xp.asarray((counts > 0).sum(), dtype=xp.float32)
    return xp.where(counts > 0, sums / xp.where(counts > 0, counts, 1), 0).sum(), number


def fixed_budget(losses: Array, weights: Array, budget: Array | float) -> tuple[Array, Array]:
    """Divide by a number that does not depend on dropping: (sum of weighted losses, `budget`).

    `budget`: tokens, such as batch size times length, or the sum of the weights before dropping,
      with
    which the remaining tokens weigh as much as they did.

    Raises:
      MaskError: as `token_sum`.
    """
    xp = namespace(losses)
    return _weighted(losses, weights)[0].sum(), xp.asarray(budget, dtype=xp.float32)


def _weighted(losses: Array, weights: Array) -> tuple[Array, Array]:
    """Return (losses times weights, weights), of one library; a loss at weight 0 gives 0."""
    losses = np.asarray(losses) if isinstance(losses, list | tuple) else losses
    weights = alike(weights, losses, "weights")
    check_same_shape("weights", weights, losses)
    return namespace(losses).where(weights > 0, losses, 0) * weights, weights


def _by_segment(xp: Any, values: Array, segment_ids: Array, segments: int) -> Array:
    """Sum [B, T] over the segments 1..S of each row -> [B, S], without padding."""
    if is_torch(values):
        return values.new_zeros((values.shape[0], segments + 1)).scatter_add(
            1, segment_ids.long(), values
        )[:, 1:]
    rows = xp.broadcast_to(xp.arange(values.shape[0])[:, None], values.shape)
    sums = xp.zeros((values.shape[0], segments + 1), values.dtype)
    if xp is np:
        np.add.at(sums, (rows, segment_ids), values)
    else:
        sums = sums.at[rows, segment_ids].add(values)
    return sums[:, 1:]
