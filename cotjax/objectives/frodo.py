"""FRODO (arXiv 2402.13950) for one decoder: prefer right reasoning, and act as reasoning says.

A state p has the expert's thought t_w and action a_w, and a counterfactual thought t_l that
supports another action a_l. Its row has one trunk and three branches, the sides of `preference`:

    1  (t_w, a_w)        2  (t_l, a_l)        3  (t_l, a_w)

    L = L_inference + lm L_LM + counterfactual L_CF + ranking L_MR

    L_inference  DPO on reasoning tokens: t_w over t_l, both behind p
    L_LM         -log pi(a_w | p, t_w), the mean over the action's tokens
    L_CF         -log pi(a_l | p, t_l), likewise
    L_MR         max(0, margin - [s(a_w | p, t_w) - s(a_w | p, t_l)]), s the mean log-probability of
                 the tokens between the action tags

The signs are those of the paper's text: L_MR falls as the right thought makes the right action more
likely than the counterfactual one does. (In the authors' code of 2026-01-13 the scores are losses,
so that the term is inverted; its term of the indirect effect is the LM loss again, and its DPO
takes batch means for log-probabilities.) L_CF is our reading of the counterfactual target: leave it
out with `counterfactual` 0. Means of tokens, not sums, as the authors' T5 has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from cotjax.data.sides import CHOSEN, CROSSED, REJECTED
from cotjax.errors import UsageError
from cotjax.masking import Role
from cotjax.objectives.objective import Pairs
from cotjax.objectives.preference import (
    by_side,
    chosen_by_role,
    contrast,
    existing,
    over,
)
from cotjax.objectives.scores import Batch, OfTargets

# A response after its reasoning: the action with its tags and the end of the turn.
ANSWER_ROLES = (Role.ACTION_OPEN, Role.ACTION, Role.ACTION_CLOSE, Role.END)


@dataclass(frozen=True)
class Frodo(OfTargets):
    """The settings of FRODO.

    beta: of the DPO on reasoning.
    lm, counterfactual, ranking: weights of L_LM, L_CF and L_MR.
    margin: of L_MR, in nats a token.

    Raises:
      UsageError: a field has an impossible value.
    """

    name: ClassVar[str] = "frodo"
    kind: ClassVar[str] = "preference"

    beta: float = 0.1
    lm: float = 1.0
    counterfactual: float = 1.0
    ranking: float = 1.0
    margin: float = 1.0

    def __post_init__(self) -> None:
        low = min(self.lm, self.counterfactual, self.ranking, self.margin)
        if not self.beta > 0 or not low >= 0:
            raise UsageError(
                f"frodo: beta is {self.beta}, and the lowest of lm, counterfactual, ranking and "
                f"margin {low}; beta must be more than 0, the others at least 0"
            )

    def pairs(self, log_probs_BT: jax.Array, batch: Batch) -> Pairs:
        """As `OfTargets.pairs`."""
        return frodo_pairs(self, log_probs_BT, batch)


def frodo_pairs(settings: Frodo, log_probs_BT: jax.Array, batch: Batch) -> Pairs:
    """Return the (sum, weight) pairs of FRODO, from log-probabilities by target."""
    reasoning_BT, answer_BT, action_BT = (
        jnp.where(jnp.isin(batch["roles"], jnp.asarray(roles)), batch["weights"], 0)
        for roles in ((Role.REASONING,), ANSWER_ROLES, (Role.ACTION,))
    )
    exists_BP = existing(batch)
    ratios_BPS = by_side(log_probs_BT, reasoning_BT, batch)
    ratios_BPS -= by_side(batch["reference"], reasoning_BT, batch)
    inference_BP, metrics = contrast(settings.beta, ratios_BPS, exists_BP)
    answers_BPS = _means(log_probs_BT, answer_BT, batch)
    actions_BPS = _means(log_probs_BT, action_BT, batch)
    lm_BP, counterfactual_BP = -answers_BPS[..., CHOSEN], -answers_BPS[..., REJECTED]
    led_BP = actions_BPS[..., CHOSEN] - actions_BPS[..., CROSSED]
    # A pair whose actions are dropped has no tokens to rank.
    ranked_BP = by_side(jnp.ones_like(log_probs_BT), action_BT, batch)[..., CHOSEN] > 0
    ranking_BP = jnp.where(ranked_BP, jnp.maximum(settings.margin - led_BP, 0), 0)
    losses_BP = inference_BP + settings.lm * lm_BP + settings.counterfactual * counterfactual_BP
    losses_BP += settings.ranking * ranking_BP
    return {
        "loss": over(losses_BP, exists_BP),
        "inference_loss": over(inference_BP, exists_BP),
        "lm_loss": over(lm_BP, exists_BP),
        "counterfactual_loss": over(counterfactual_BP, exists_BP),
        "ranking_loss": over(ranking_BP, exists_BP & ranked_BP),
        "led": over(led_BP, exists_BP & ranked_BP),
        **metrics,
        "by_role": chosen_by_role(log_probs_BT, batch),
    }


def _means(values_BT: jax.Array, weights_BT: jax.Array, batch: Batch) -> jax.Array:
    """Return the mean of values by pair and side -> [B, P, S]; 0 where there is no weight."""
    sums_BPS = by_side(values_BT, weights_BT, batch)
    counts_BPS = by_side(jnp.ones_like(values_BT), weights_BT, batch)
    return sums_BPS / jnp.maximum(counts_BPS, 1)
