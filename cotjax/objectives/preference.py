"""DPO (arXiv 2305.18290): of two responses, or episodes, raise the chosen over the rejected one.

    L = -log sigmoid(beta [(lp_w - ref_w) - (lp_l - ref_l)]) + alpha NLL_w

lp is the summed log-probability of a side's tokens, ref the same under the reference. A token that
is dropped (reduced action supervision) leaves lp and ref of its side. Both sides of a pair have one
draw, or their margin would be a difference of lengths.

Fields of a batch beside those of supervised training, [B, T] by target:

    pairs      int32    0, or the pair of the target within its row, from 1
    sides      int8     0, 1 (chosen), 2 (rejected), 3 (of FRODO)
    reference  float32  log-probability of the target under the reference

A pair lies in one row: as two branches of one trunk, or as two trees.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp

from cotjax.data.sides import CHOSEN, CROSSED, REJECTED
from cotjax.errors import UsageError
from cotjax.masking import Role
from cotjax.objectives.objective import Pairs
from cotjax.objectives.scores import Batch, OfTargets, totals_by_role

_SIDES = 1 + CROSSED
_LEAST = 4  # positions that a pair takes in a row, at least


@dataclass(frozen=True)
class Preference(OfTargets):
    """The settings of DPO.

    beta: how strongly the policy is held to the reference.
    length_normalised: divide each side's log-ratio by its tokens (TRL's `sigmoid_norm`).
    nll: alpha, the weight of the mean NLL of the chosen side's tokens (arXiv 2404.19733), against
      falling probabilities of the chosen side; 0: none.

    Raises:
      UsageError: a field has an impossible value.
    """

    name: ClassVar[str] = "dpo"
    kind: ClassVar[str] = "preference"

    beta: float = 0.1
    length_normalised: bool = False
    nll: float = 0.0

    def __post_init__(self) -> None:
        if not self.beta > 0 or not self.nll >= 0:
            raise UsageError(
                f"preference: beta is {self.beta}, nll {self.nll}; beta must be more than 0, nll "
                "at least 0"
            )

    def pairs(self, log_probs_BT: jax.Array, batch: Batch) -> Pairs:
        """As `OfTargets.pairs`."""
        return preference_pairs(self, log_probs_BT, batch)


def preference_pairs(settings: Preference, log_probs_BT: jax.Array, batch: Batch) -> Pairs:
    """Return the (sum, weight) pairs of DPO, from log-probabilities by target."""
    weights_BT = batch["weights"]
    policy_BPS = by_side(log_probs_BT, weights_BT, batch)
    reference_BPS = by_side(batch["reference"], weights_BT, batch)
    counts_BPS = by_side(jnp.ones_like(log_probs_BT), weights_BT, batch)
    exists_BP = existing(batch)
    ratios_BPS = policy_BPS - reference_BPS
    if settings.length_normalised:
        ratios_BPS /= jnp.maximum(counts_BPS, 1)
    losses_BP, metrics = contrast(settings.beta, ratios_BPS, exists_BP)
    nll_BP = -policy_BPS[..., CHOSEN] / jnp.maximum(counts_BPS[..., CHOSEN], 1)
    if settings.nll:
        losses_BP += settings.nll * nll_BP
    return {
        "loss": over(losses_BP, exists_BP),
        "chosen_log_prob": over(policy_BPS[..., CHOSEN], exists_BP),
        "rejected_log_prob": over(policy_BPS[..., REJECTED], exists_BP),
        "chosen_nll": over(nll_BP, exists_BP),
        **metrics,
        "by_role": chosen_by_role(log_probs_BT, batch),
    }


def contrast(beta: float, ratios_BPS: jax.Array, exists_BP: jax.Array) -> tuple[jax.Array, Pairs]:
    """Return the loss of each pair, -log sigmoid(beta (chosen - rejected)), and its metrics.

    `ratios_BPS`: log-ratio of policy and reference by pair and side.
    """
    rewards_BPS = beta * ratios_BPS
    margins_BP = rewards_BPS[..., CHOSEN] - rewards_BPS[..., REJECTED]
    return -jax.nn.log_sigmoid(margins_BP), {
        "chosen_reward": over(rewards_BPS[..., CHOSEN], exists_BP),
        "rejected_reward": over(rewards_BPS[..., REJECTED], exists_BP),
        "margin": over(margins_BP, exists_BP),
        "accuracy": over(margins_BP > 0, exists_BP),
    }


def by_side(values_BT: jax.Array, weights_BT: jax.Array, batch: Batch) -> jax.Array:
    """Sum weighted values by pair and side -> [B, P, S]. A value at weight 0 counts as 0.

    Pair 0 and side 0 are those of targets that belong to none.
    """
    values_BT = jnp.where(weights_BT > 0, values_BT, 0) * weights_BT
    count = 1 + values_BT.shape[1] // _LEAST
    index_BT = batch["pairs"] * _SIDES + batch["sides"].astype(jnp.int32)
    summed = jax.vmap(partial(jax.ops.segment_sum, num_segments=count * _SIDES))(
        values_BT, index_BT
    )
    return summed.reshape(-1, count, _SIDES)


def existing(batch: Batch) -> jax.Array:
    """Return which pairs there are, dropped or not: [B, P] bool, false for pair 0."""
    ones_BT = jnp.ones(batch["pairs"].shape, jnp.float32)
    return by_side(ones_BT, ones_BT, batch)[..., 1:].any(-1).at[:, 0].set(False)


def over(values_BP: jax.Array, exists_BP: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the (sum, number) of values over the pairs that exist."""
    return jnp.where(exists_BP, values_BP, 0).sum(), exists_BP.sum().astype(jnp.float32)


def chosen_by_role(log_probs_BT: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return the NLL of the chosen sides' tokens by role, and their weights, [roles] each."""
    weights_BT = jnp.where(batch["sides"] == CHOSEN, batch["weights"], 0)
    surprise_BT = jnp.where(weights_BT > 0, -log_probs_BT, 0) * weights_BT
    return (
        totals_by_role(surprise_BT, batch["roles"], len(Role)),
        totals_by_role(weights_BT, batch["roles"], len(Role)),
    )
