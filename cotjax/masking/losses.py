"""Normalizers and the policy loss. Dropping tokens changes the denominator of a mean, so how the loss is divided has a name.

A normalizer returns (sum, weight); add both up over micro-batches and devices, and divide once. numpy and jax alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cotjax.masking.roles import MaskError
from cotjax.masking.weights import _namespace

Array = Any  # numpy.ndarray or jax.Array
NORMALIZERS = ("token_sum", "example_mean", "fixed_budget")


def token_sum(losses: Array, weights: Array) -> tuple[Array, Array]:
    """Every supervised token counts the same: (sum of weighted losses, sum of weights).

    A dropped token leaves the denominator, so the tokens that stay weigh more. losses, weights: [..., T]. A loss at weight 0
    counts as 0, even where it is not finite.
    """
    return _weighted(losses, weights).sum(), weights.sum()


def example_mean(losses: Array, weights: Array, segment_ids: Array | None = None, segments: int | None = None) -> tuple[Array, Array]:
    """Every example counts the same: (sum over examples of the mean over its supervised tokens, number of such examples).

    An example without a supervised token counts for nothing. losses, weights: [B, T].

    Args:
      segment_ids: [B, T] int, 0 padding, 1.. the example within a packed row (None: a row is an example).
      segments: the most examples in a row; needed inside `jax.jit`, where shapes are static.
    """
    xp, weighted = _namespace(losses), _weighted(losses, weights)
    if segment_ids is None:
        sums, counts = weighted.sum(-1), weights.sum(-1)
    else:
        if segments is None:
            segments = int(segment_ids.max())
        sums, counts = (_by_segment(xp, values, segment_ids, segments) for values in (weighted, weights))
    return xp.where(counts > 0, sums / xp.where(counts > 0, counts, 1), 0).sum(), (counts > 0).sum().astype(np.float32)


def fixed_budget(losses: Array, weights: Array, budget: Array | float) -> tuple[Array, Array]:
    """The denominator does not depend on what is dropped: (sum of weighted losses, `budget`).

    `budget`: tokens, such as batch size times length, or the sum of the weights without any dropping, so that what stays
    weighs what it did before.
    """
    return _weighted(losses, weights).sum(), _namespace(losses).asarray(budget, dtype=np.float32)


def policy_losses(log_probs: Array, old_log_probs: Array, advantages: Array, *, clip: float = 0.2) -> Array:
    """The clipped policy-gradient loss of GRPO a token -> [B, T], to be weighed and divided by a normalizer.

    Reduced action supervision is in the weights alone: `target_weights(roles, drop_tokens=...)` takes the action tokens of a
    sampled fraction of samples out of the policy loss, and the advantages stay as they are. A KL or entropy term takes weights
    of its own (without dropping, and never on observations).

    Args:
      log_probs, old_log_probs: [B, T] log-probability of each target under the policy and under the one that sampled, nats.
      advantages: [B] of each sample, or [B, T].
      clip: half the width of the ratio's interval around 1.

    Raises:
      MaskError: the advantages have neither shape.
    """
    xp = _namespace(log_probs)
    if np.ndim(advantages) == np.ndim(log_probs) - 1:
        advantages = advantages[..., None]
    elif np.shape(advantages) != np.shape(log_probs):
        raise MaskError(f"advantages have shape {np.shape(advantages)}, log-probabilities {np.shape(log_probs)}")
    advantages = xp.broadcast_to(advantages, log_probs.shape)
    ratio = xp.exp(log_probs - old_log_probs)
    return -xp.minimum(ratio * advantages, xp.clip(ratio, 1 - clip, 1 + clip) * advantages)


def _weighted(losses: Array, weights: Array) -> Array:
    xp = _namespace(losses)
    return xp.where(weights > 0, losses, 0) * weights


def _by_segment(xp: Any, values: Array, segment_ids: Array, segments: int) -> Array:
    """Sums of [B, T] over each row's segments 1..S -> [B, S]; padding is left out."""
    rows = xp.broadcast_to(xp.arange(values.shape[0])[:, None], values.shape)
    sums = xp.zeros((values.shape[0], segments + 1), values.dtype)
    if xp is np:
        np.add.at(sums, (rows, segment_ids), values)
    else:
        sums = sums.at[rows, segment_ids].add(values)
    return sums[:, 1:]
