"""Normalizers and the policy loss. Dropping tokens changes the denominator of a mean, so how the loss is divided has a name.

A normalizer returns (sum, weight); add both up over micro-batches and devices, and divide once, by at least 1: a batch of which all is
dropped has weight 0, and is a step of gradient 0. numpy, jax and torch alike; gradients go through.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cotjax.masking.arrays import Array, alike, is_torch, namespace
from cotjax.masking.roles import MaskError

MOST_LOG_RATIO = 20.0  # nats; exp of it is finite in float32 and bfloat16
NORMALIZERS = ("token_sum", "example_mean", "fixed_budget")


def token_sum(losses: Array, weights: Array) -> tuple[Array, Array]:
    """Every supervised token counts the same: (sum of weighted losses, sum of weights).

    A dropped token leaves the denominator, so the tokens that stay weigh more. losses, weights: [..., T]. A loss at weight 0
    counts as 0, even where it is not finite.

    Raises:
      MaskError: shapes differ, or the arrays are of torch and of another library.
    """
    weighted, weights = _weighted(losses, weights)
    return weighted.sum(), weights.sum()


def example_mean(
    losses: Array, weights: Array, segment_ids: Array | None = None, segments: int | None = None
) -> tuple[Array, Array]:
    """Every example counts the same: (sum over examples of the mean over its supervised tokens, number of such examples).

    An example without a supervised token counts for nothing. losses, weights: [B, T].

    Args:
      segment_ids: [B, T] int, 0 padding, 1.. the example within a packed row (None: a row is an example).
      segments: the most examples in a row; needed inside `jax.jit`, where shapes are static.

    Raises:
      MaskError: as `token_sum`.
    """
    weighted, weights = _weighted(losses, weights)
    xp = namespace(weighted)
    if segment_ids is None:
        sums, counts = weighted.sum(-1), weights.sum(-1)
    else:
        segment_ids = alike(segment_ids, weighted, "segment_ids")
        _same_shape("segment_ids", segment_ids, weighted)
        if segments is None:
            segments = int(segment_ids.max()) if np.prod(np.shape(segment_ids)) else 0
        sums, counts = (
            _by_segment(xp, values, segment_ids, segments) for values in (weighted, weights)
        )
    number = xp.asarray((counts > 0).sum(), dtype=xp.float32)
    return xp.where(counts > 0, sums / xp.where(counts > 0, counts, 1), 0).sum(), number


def fixed_budget(losses: Array, weights: Array, budget: Array | float) -> tuple[Array, Array]:
    """The denominator does not depend on what is dropped: (sum of weighted losses, `budget`).

    `budget`: tokens, such as batch size times length, or the sum of the weights without any dropping, so that what stays
    weighs what it did before.

    Raises:
      MaskError: as `token_sum`.
    """
    xp = namespace(losses)
    return _weighted(losses, weights)[0].sum(), xp.asarray(budget, dtype=xp.float32)


def policy_losses(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    *,
    clip: float = 0.2,
    weights: Array | None = None,
) -> Array:
    """The clipped policy-gradient loss of GRPO a token -> [B, T], to be weighed and divided by a normalizer.

    Reduced action supervision is in the weights alone: `target_weights(roles, drop_tokens=...)` takes the action tokens of a
    sampled fraction of samples out of the policy loss, and the advantages stay as they are. A KL or entropy term takes weights
    of its own (without dropping, and never on observations).

    Args:
      log_probs, old_log_probs: [B, T] log-probability of each target under the policy and under the one that sampled, nats.
      advantages: [B] of each sample, or [B, T].
      clip: half the width of the ratio's interval around 1.
      weights: [B, T] of the targets. Where they are 0 the log-probabilities are not looked at, so that not even a NaN among them
        reaches the loss or a gradient. None: all are looked at.

    The log of the ratio is cut at MOST_LOG_RATIO (20) either way, so an impossible token (-inf, or -100 as a filler) in
    `old_log_probs` gives a finite loss, and no gradient.

    Raises:
      MaskError: the advantages have neither shape, the other shapes differ, or the arrays are of torch and of another library.
    """
    log_probs = np.asarray(log_probs) if isinstance(log_probs, list | tuple) else log_probs
    xp = namespace(log_probs)
    old_log_probs = alike(old_log_probs, log_probs, "old_log_probs")
    advantages = alike(advantages, log_probs, "advantages")
    _same_shape("old_log_probs", old_log_probs, log_probs)
    if tuple(np.shape(advantages)) == tuple(np.shape(log_probs))[:-1]:
        advantages = advantages[..., None]
    elif np.shape(advantages) != np.shape(log_probs):
        raise MaskError(
            f"advantages have shape {tuple(np.shape(advantages))}, log-probabilities {tuple(np.shape(log_probs))}"
        )
    advantages = xp.broadcast_to(advantages, log_probs.shape)
    if weights is not None:
        weights = alike(weights, log_probs, "weights")
        _same_shape("weights", weights, log_probs)
        # The inputs are masked, not the loss: the gradient of a masked NaN is 0 times NaN, which is NaN.
        log_probs, old_log_probs = (
            xp.where(weights > 0, array, 0) for array in (log_probs, old_log_probs)
        )
    ratio = xp.exp(xp.clip(log_probs - old_log_probs, -MOST_LOG_RATIO, MOST_LOG_RATIO))
    return -xp.minimum(ratio * advantages, xp.clip(ratio, 1 - clip, 1 + clip) * advantages)


def _weighted(losses: Array, weights: Array) -> tuple[Array, Array]:
    """(losses times weights, weights), both arrays of one library; a loss at weight 0 gives 0."""
    losses = np.asarray(losses) if isinstance(losses, list | tuple) else losses
    weights = alike(weights, losses, "weights")
    _same_shape("weights", weights, losses)
    return namespace(losses).where(weights > 0, losses, 0) * weights, weights


def _same_shape(what: str, array: Array, other: Array) -> None:
    if np.shape(array) != np.shape(other):
        raise MaskError(
            f"{what} have shape {tuple(np.shape(array))}, the losses {tuple(np.shape(other))}"
        )


def _by_segment(xp: Any, values: Array, segment_ids: Array, segments: int) -> Array:
    """Sums of [B, T] over each row's segments 1..S -> [B, S]; padding is left out."""
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
