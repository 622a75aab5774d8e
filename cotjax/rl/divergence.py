"""The divergence from the start as a cost of each play (`rl.kl_in` "reward").

A play's cost is rl.kl times the sum over its sampled tokens of k1 = log p - log p_start, under the
policy that played. Its expectation is the divergence of whole responses, and the policy gradient of
reward minus cost is that of the penalised objective, as that of k2 in the loss is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cotjax.masking import log_ratios
from cotjax.rl.advantages import StepAdvantages
from cotjax.rl.batches import UpdateRows, advantages_of
from cotjax.rl.rollouts import Rollouts


def with_costs(
    rollouts: Rollouts, settings: Any, updates: Sequence[UpdateRows], weight: float
) -> tuple[StepAdvantages, list[UpdateRows], dict[str, np.ndarray]]:
    """Return advantages with costs, the rows with these advantages, and the costs themselves.

    A group that is not trained on has no costs. Cutting a play into several trees changes nothing.

    Args:
      settings: `config.rl`.
      updates: rows whose `old` and `reference` are filled in.
      weight: of the divergence, in the place of rl.kl.
    """
    steps = {play.name: len(play.penalties) for play in rollouts.plays}
    costs: dict[str, np.ndarray] = {}
    for update in updates:
        k1_BT = log_ratios(update.joined("old"), update.joined("reference"), what="reference")
        for name, row, places, own in update.rows.tokens_of():
            total = costs.setdefault(name, np.zeros(steps[name]))
            np.add.at(total, own, weight * k1_BT[row, places].astype(np.float64))
    advantages = advantages_of(rollouts, settings, costs)
    by_name = {
        play.name: values for play, values in zip(rollouts.plays, advantages.values, strict=True)
    }
    return advantages, [_laid(update, by_name) for update in updates], costs


def _laid(update: UpdateRows, by_name: Mapping[str, np.ndarray]) -> UpdateRows:
    """Return rows with these advantages of each step in the place of theirs."""
    advantages_BT = np.zeros_like(update.joined("advantages"))
    for name, row, places, steps in update.rows.tokens_of():
        advantages_BT[row, places] = by_name[name][steps]
    return update.replaced("advantages", advantages_BT)
