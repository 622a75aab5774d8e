"""Policy gradient by token: the clipped ratio, estimators of a KL divergence, importance weights.

For numpy, jax and torch; gradients flow through. Arrays are [B, T] by target, log-probabilities are
in nats. Where `weights` are 0, log-probabilities are ignored, so that not even a NaN among them
reaches a result or a gradient. The log of a ratio is clipped at MOST_LOG_RATIO (20) in both
directions, so an impossible token (-inf, or -100 as a filler) gives a finite result, and no
gradient.
"""

from __future__ import annotations

import numpy as np

from cotjax.masking.arrays import Array, alike, check_same_shape, detached, namespace
from cotjax.masking.roles import MaskError

MOST_LOG_RATIO = 20.0  # nats; exp of it is finite in float32 and bfloat16
KL_ESTIMATORS = ("k1", "k2", "k3")


def log_ratios(
    log_probs: Array, others: Array, *, weights: Array | None = None, what: str = "old_log_probs"
) -> Array:
    """Return log_probs - others, clipped at MOST_LOG_RATIO, and 0 where `weights` are 0: [B, T].

    `what`: the name of `others` in errors.

    Raises:
      MaskError: shapes differ, or some arrays are of torch and others are not.
    """
    log_probs = np.asarray(log_probs) if isinstance(log_probs, list | tuple) else log_probs
    xp = namespace(log_probs)
    others = alike(others, log_probs, what)
    check_same_shape(what, others, log_probs)
    if weights is not None:
        weights = alike(weights, log_probs, "weights")
        check_same_shape("weights", weights, log_probs)
        # The inputs are masked, not the result: the gradient of a masked NaN is 0 times NaN, which
        # is NaN.
        log_probs, others = (xp.where(weights > 0, array, 0) for array in (log_probs, others))
    return xp.clip(log_probs - others, -MOST_LOG_RATIO, MOST_LOG_RATIO)


def policy_losses(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    weights: Array | None = None,
) -> Array:
    """Return the clipped policy-gradient loss of GRPO by token, [B, T], for a normalizer.

    Reduced action supervision is in the weights alone: `target_weights(roles, drop_tokens=...)`
    removes the action tokens of a sampled fraction of samples from the policy loss; the advantages
    are unchanged. A KL or entropy term takes its own weights (without dropping, and never on
    observations).

    Args:
      log_probs, old_log_probs: [B, T] log-probability of each target under the policy and under the
        policy that sampled it.
      advantages: [B] by sample, or [B, T].
      clip: how far below 1 the ratio still counts; above 1, too, where there is no `clip_high`.
      clip_high: how far above 1 (DAPO, arXiv 2503.14476: 0.28).
      dual_clip: of a negative advantage, the ratio counts up to this (arXiv 1912.09729: 3; TRL's
        `delta`). None: without limit.
      weights: [B, T] by target (see the top of this file). None: all are used.

    Raises:
      MaskError: the advantages have neither shape, `dual_clip` is not above the interval, the other
        shapes differ, or some arrays are of torch and others are not.
    """
    high = clip if clip_high is None else clip_high
    if dual_clip is not None and dual_clip <= 1 + high:
        raise MaskError(f"dual_clip is {dual_clip}; it must be more than 1 + {high}, where it acts")
    log_ratio = log_ratios(log_probs, old_log_probs, weights=weights)
    xp = namespace(log_ratio)
    advantages = _by_token(advantages, log_ratio)
    ratio = xp.exp(log_ratio)
    elements = xp.minimum(ratio * advantages, xp.clip(ratio, 1 - clip, 1 + high) * advantages)
    if dual_clip is not None:
        elements = xp.where(advantages < 0, xp.maximum(elements, dual_clip * advantages), elements)
    return -elements


def clipped(
    log_ratio: Array, advantages: Array, *, clip: float = 0.2, clip_high: float | None = None
) -> tuple[Array, Array]:
    """Return where the clip takes a token's gradient away, (low, high): each [B, T] bool.

    `low`: a negative advantage, and the ratio is below 1 - clip already. `high`: a positive one,
    and the ratio is above 1 + clip_high. `log_ratio` as `log_ratios` returns it.
    """
    xp = namespace(log_ratio)
    ratio, advantages = xp.exp(log_ratio), _by_token(advantages, log_ratio)
    high = clip if clip_high is None else clip_high
    return (ratio < 1 - clip) & (advantages < 0), (ratio > 1 + high) & (advantages > 0)


def kl_estimates(
    log_probs: Array,
    reference_log_probs: Array,
    estimator: str = "k2",
    *,
    weights: Array | None = None,
) -> Array:
    """Return an estimate of KL(policy || reference) at each token, [B, T].

    With d = log_probs - reference_log_probs, of tokens that the policy sampled:

        k1 = d        k2 = d^2 / 2        k3 = exp(-d) - 1 + d

    The values of k1 and k3 are unbiased. As a term of the loss only k2 has the gradient of
    KL(policy || reference): that of k1 is 0 on average, that of k3 is the gradient of
    KL(reference || policy) (Schulman 2020; arXiv 2512.21852).

    Raises:
      MaskError: an unknown estimator, or as `log_ratios`.
    """
    if estimator not in KL_ESTIMATORS:
        raise MaskError(f"unknown estimator {estimator!r}; there are {', '.join(KL_ESTIMATORS)}")
    d = log_ratios(log_probs, reference_log_probs, weights=weights, what="reference_log_probs")
    if estimator == "k1":
        return d
    return d**2 / 2 if estimator == "k2" else namespace(d).exp(-d) - 1 + d


def truncated_importance(
    log_probs: Array, sampler_log_probs: Array, most: float = 2.0, *, weights: Array | None = None
) -> Array:
    """Return min(p / p_sampler, most) by token, [B, T], without a gradient; 1 where unweighted.

    Corrects for a sampler that computes other probabilities than the trainer does (in bfloat16, or
    with other kernels). By token: the product over a long response would explode.

    Args:
      log_probs: of the trainer, at the beginning of the update.
      sampler_log_probs: as they were sampled.

    Raises:
      MaskError: as `log_ratios`.
    """
    log_ratio = log_ratios(log_probs, sampler_log_probs, weights=weights, what="sampler_log_probs")
    xp = namespace(log_ratio)
    return detached(xp.minimum(xp.exp(log_ratio), most * xp.ones_like(log_ratio)))


def _by_token(advantages: Array, like: Array) -> Array:
    """Return advantages, [B] or [B, T], as [B, T]. Raises MaskError for another shape."""
    advantages = alike(advantages, like, "advantages")
    if tuple(np.shape(advantages)) == tuple(np.shape(like))[:-1]:
        advantages = advantages[..., None]
    elif np.shape(advantages) != np.shape(like):
        raise MaskError(
            f"advantages have shape {tuple(np.shape(advantages))}, log-probabilities "
            f"{tuple(np.shape(like))}"
        )
    return namespace(like).broadcast_to(advantages, like.shape)
