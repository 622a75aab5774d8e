"""What a train step minimises: a function of the parameters and a batch that returns sums.

Sums and weights are added over micro-batches and devices, and divided once, so that a part with few
supervised tokens does not weigh more than they do.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

# name -> (sum, weight). "loss" is minimised: its sum over its weight, both scalars. The others are
# metrics, of any one shape each.
Pairs = dict[str, tuple[jax.Array, jax.Array]]
Objective = Callable[[dict, dict[str, jax.Array]], Pairs]  # (params, batch) -> pairs
