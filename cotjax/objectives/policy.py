"""Policy gradient of GRPO and its variants, over rows of played episodes.

    L = (1/N) sum_t w_t c_t max(-rho_t A_t, -clip(rho_t, 1 - e_low, 1 + e_high) A_t)
        + beta (1/N) sum_t v_t KL_t - c_H (1/N) sum_t v_t H_t

rho = pi / pi_old at each token, A its advantage, c the truncated importance weight between trainer
and sampler, w the policy weight (0 on action tokens that are dropped, on prompts and observations),
H the entropy of the policy, v the weight of these two terms (without dropping). N is of the whole
batch:

| aggregation | sum over tokens, divided by | |
|---|---|---|
| `token` | tokens | DAPO, arXiv 2503.14476 |
| `trajectory` | each token by its trajectory's tokens, then by trajectories | GRPO |
| `constant` | trajectories times `tokens` | Dr. GRPO, arXiv 2503.20783 |

Fields of a batch beside those of supervised training, [B, T] by target:

    kl_weights   float32  weight of the KL and entropy terms and of metrics: that of the policy
                          before dropping
    advantages   float32  of the target's trajectory, or step
    old          float32  log-probability under the policy at the start of the batch's updates
    sampler      float32  log-probability as it was sampled
    reference    float32  log-probability under the reference
    lengths      float32  tokens of the target's trajectory, over all rows that it is in
    trajectories float32  [B, 1] trajectories that the row counts for; their sum is their number
    coefficients float32  [B, 2] beta and c_H of terms that are `adaptive`, the same in each row

`budget` and `lengths` decide what dropping does to the others' weight: counted before dropping
("fixed_budget"), the remaining tokens weigh as much as they did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cotjax.errors import UsageError
from cotjax.masking import (
    KL_ESTIMATORS,
    Role,
    clipped,
    kl_estimates,
    log_ratios,
    policy_losses,
    truncated_importance,
)
from cotjax.model.config import ModelConfig
from cotjax.model.params import Params
from cotjax.objectives.objective import MOST, Pairs
from cotjax.objectives.scores import Batch, OfTargets, log_probs_and_entropies, totals_by_role

AGGREGATIONS = ("token", "trajectory", "constant")
TERMS = ("kl", "entropy")  # of the loss, in the order of a batch's `coefficients`


@dataclass(frozen=True)
class Policy(OfTargets):
    """The settings of the policy gradient.

    aggregation: what the loss is divided by (above). tokens: what a trajectory counts as, with
      "constant".
    clip, clip_high, dual_clip: see `cotjax.masking.policy_losses`.
    kl: beta. kl_estimator: see `cotjax.masking.kl_estimates`.
    entropy: c_H.
    adaptive: of TERMS, those whose weight is the batch's instead.
    truncation: the most that an importance weight may be.

    Raises:
      UsageError: a field has an impossible value.
    """

    name: ClassVar[str] = "policy"
    kind: ClassVar[str] = "policy"

    aggregation: str = "token"
    tokens: int = 0
    clip: float = 0.2
    clip_high: float | None = None
    dual_clip: float | None = None
    kl: float = 0.01
    kl_estimator: str = "k2"
    entropy: float = 0.0
    truncation: float = 2.0
    adaptive: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in (("aggregation", AGGREGATIONS), ("kl_estimator", KL_ESTIMATORS)):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}; there are {', '.join(allowed)}"
                )
        if not {*self.adaptive} <= {*TERMS}:
            raise UsageError(f"adaptive is {self.adaptive!r}; there are {', '.join(TERMS)}")
        if (self.aggregation == "constant") != (self.tokens > 0):
            raise UsageError(
                f"tokens is {self.tokens} with the aggregation {self.aggregation!r}; 'constant' "
                "needs what a trajectory counts as, the others do not use it"
            )
        if not 0 < self.clip < 1 or not self._high > 0:
            raise UsageError(
                f"clip is {self.clip}, clip_high {self.clip_high}; clip must be between 0 and 1, "
                "clip_high above 0"
            )
        if self.dual_clip is not None and self.dual_clip <= 1 + self._high:
            raise UsageError(
                f"dual_clip is {self.dual_clip}; it must be above 1 + clip_high ({1 + self._high})"
            )
        if min(self.kl, self.entropy) < 0 or self.truncation < 1:
            raise UsageError(
                f"kl is {self.kl}, entropy {self.entropy}, truncation {self.truncation}; they must "
                "be at least 0, 0 and 1"
            )

    @property
    def _has_entropy(self) -> bool:
        return self.entropy > 0 or "entropy" in self.adaptive

    def weight(self, name: str, batch: Batch) -> Any:
        """Return the weight of one of TERMS, a number or [B, 1]."""
        if name in self.adaptive:
            column = TERMS.index(name)
            return batch["coefficients"][:, column : column + 1]
        return getattr(self, name)

    @property
    def _high(self) -> float:
        return self.clip if self.clip_high is None else self.clip_high

    def of(self, config: ModelConfig, params: Params, batch: Batch, **how: Any) -> Pairs:
        """As `OfTargets.of`, from entropies too."""
        wanted_BT = (batch["kl_weights"] > 0) | (batch["weights"] > 0)
        found = log_probs_and_entropies(
            config, params, batch, wanted_BT, gradient=self._has_entropy, **how
        )
        return policy_pairs(self, *found, batch)


def policy_pairs(
    settings: Policy, log_probs_BT: jax.Array, entropies_BT: jax.Array, batch: Batch
) -> Pairs:
    """Return the (sum, weight) pairs of the policy gradient, from log-probabilities by target.

    docs/objectives.md says what each metric means.
    """
    weights_BT, kl_weights_BT = batch["weights"], batch["kl_weights"]
    clip: dict[str, Any] = {"clip": settings.clip, "clip_high": settings.clip_high}
    importance_BT = truncated_importance(
        batch["old"], batch["sampler"], settings.truncation, weights=weights_BT
    )
    losses_BT = weights_BT * importance_BT
    losses_BT *= policy_losses(
        log_probs_BT,
        batch["old"],
        batch["advantages"],
        dual_clip=settings.dual_clip,
        weights=weights_BT,
        **clip,
    )
    elements_BT = losses_BT
    if settings.kl or "kl" in settings.adaptive:
        kl_BT = kl_estimates(
            log_probs_BT, batch["reference"], settings.kl_estimator, weights=kl_weights_BT
        )
        elements_BT = losses_BT + settings.weight("kl", batch) * kl_weights_BT * kl_BT
    if settings.entropy or "entropy" in settings.adaptive:
        weight = settings.weight("entropy", batch)
        elements_BT = elements_BT - weight * kl_weights_BT * entropies_BT
    pairs = {
        "loss": _aggregated(settings, elements_BT, batch),
        "policy_loss": _aggregated(settings, losses_BT, batch),
        "importance": _mean(importance_BT, weights_BT),
        f"{MOST}importance_cut": _most(-jnp.log(importance_BT), weights_BT),
    }
    pairs |= _moved(log_probs_BT, batch, clip) | _sampled(log_probs_BT, batch)
    return pairs | _written(log_probs_BT, entropies_BT, batch)


def _aggregated(
    settings: Policy, elements_BT: jax.Array, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    if settings.aggregation == "token":
        return elements_BT.sum(), batch["budget"].sum()
    trajectories = batch["trajectories"].sum()
    if settings.aggregation == "constant":
        return elements_BT.sum(), trajectories * settings.tokens
    return (elements_BT / jnp.maximum(batch["lengths"], 1)).sum(), trajectories


def _moved(log_probs_BT: jax.Array, batch: Batch, clip: dict[str, Any]) -> Pairs:
    """Return metrics of how far the policy is from that of the start, and from the reference."""
    weights_BT, kl_weights_BT = batch["weights"], batch["kl_weights"]
    ratios_BT = log_ratios(log_probs_BT, batch["old"], weights=weights_BT)
    low_BT, high_BT = clipped(ratios_BT, batch["advantages"], **clip)
    kl_BT, old_BT = (
        kl_estimates(log_probs_BT, batch[name], "k3", weights=kl_weights_BT)
        for name in ("reference", "old")
    )
    sizes_BT = jnp.abs(batch["advantages"])
    return {
        "clip_low": _mean(low_BT, weights_BT),
        "clip_high": _mean(high_BT, weights_BT),
        f"{MOST}ratio_up": _most(ratios_BT, weights_BT),
        f"{MOST}ratio_down": _most(-ratios_BT, weights_BT),
        "kl": _mean(kl_BT, kl_weights_BT),
        "kl_old": _mean(old_BT, kl_weights_BT),
        "advantage_size": _mean(sizes_BT, kl_weights_BT),
        "advantage_share": _mean(sizes_BT > 0, kl_weights_BT),
    }


def _sampled(log_probs_BT: jax.Array, batch: Batch) -> Pairs:
    """Return metrics of how the trainer's log-probabilities differ from the sampler's."""
    weights_BT = batch["kl_weights"]
    off_BT = log_ratios(log_probs_BT, batch["sampler"], weights=weights_BT)
    return {
        "sampler_difference": _mean(jnp.abs(off_BT), weights_BT),
        f"{MOST}sampler_difference": _most(jnp.abs(off_BT), weights_BT),
        "sampler_factor": _mean(jnp.exp(jnp.abs(off_BT)), weights_BT),
        "sampler_kl": _mean(jnp.exp(off_BT) - 1 - off_BT, weights_BT),
    }


def _written(log_probs_BT: jax.Array, entropies_BT: jax.Array, batch: Batch) -> Pairs:
    """Return metrics of the sampled tokens, by role too."""
    weights_BT, roles_BT = batch["kl_weights"], batch["roles"]
    by_role = totals_by_role(weights_BT, roles_BT, len(Role))
    surprise_BT = jnp.where(weights_BT > 0, -log_probs_BT, 0) * weights_BT
    return {
        "by_role": (totals_by_role(surprise_BT, roles_BT, len(Role)), by_role),
        "entropy": _mean(entropies_BT, weights_BT),
        "entropy_by_role": (
            totals_by_role(entropies_BT * weights_BT, roles_BT, len(Role)),
            by_role,
        ),
    }


def _mean(values_BT: jax.Array, weights_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (values_BT * weights_BT).sum(), weights_BT.sum()


def _most(values_BT: jax.Array, weights_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the largest value where there is a weight, at least 0, as a pair of `together`."""
    most = jnp.where(weights_BT > 0, values_BT, 0).max()
    return jnp.maximum(most, 0), jnp.ones_like(most)
