"""One train step: `(state, batch) -> (state, metrics)`, pure, jitted, the state donated."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cotjax.masking import Role
from cotjax.model import decoder
from cotjax.model.config import ModelConfig
from cotjax.model.sharding import batch_sharding, param_shardings
from cotjax.train.loss import masked_cross_entropy, normalized, totals_by_role

BATCH_FIELDS = ("ids", "targets", "weights", "budget", "roles", "segment_ids", "branches", "positions")


class TrainState(NamedTuple):
    """`step` is the number of updates made."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def state_shardings(config: ModelConfig, optimizer: optax.GradientTransformation, params: dict, mesh: Mesh) -> TrainState:
    """A NamedSharding for every leaf of the state: Adam's moments lie as their parameters do, counters are replicated."""
    replicated = NamedSharding(mesh, PartitionSpec())
    for_params = param_shardings(config, mesh)
    opt_shapes = jax.eval_shape(optimizer.init, params)
    for_opt = optax.tree_utils.tree_map_params(
        optimizer, lambda _, sharding: sharding, opt_shapes, for_params, transform_non_params=lambda _: replicated
    )
    return TrainState(replicated, for_params, for_opt)


def init_state(config: ModelConfig, optimizer: optax.GradientTransformation, params: dict, mesh: Mesh) -> TrainState:
    """The state before the first step, sharded over `mesh`."""
    shardings = state_shardings(config, optimizer, params, mesh)
    make = jax.jit(lambda params: TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params)), out_shardings=shardings)
    return make(params)


def loss_and_totals(config: ModelConfig, params: dict, batch: dict, remat: bool, normalizer: str = "token_sum") -> tuple[jax.Array, dict]:
    """The loss, divided as `normalizer` says, and the (sum, weight) totals over tokens by role behind it ([roles] each)."""
    hidden_BTD = decoder.hidden_states(
        config, params, batch["ids"], batch["positions"], batch["segment_ids"], batch["branches"], remat=remat
    )
    logits_BTV = decoder.logits(config, params, hidden_BTD)
    losses_BT, weights_BT = masked_cross_entropy(logits_BTV, batch["targets"], batch["weights"])
    totals = {
        "loss_by_role": totals_by_role(losses_BT, batch["roles"], len(Role)),
        "weight_by_role": totals_by_role(weights_BT, batch["roles"], len(Role)),
    }
    total, weight = normalized(normalizer, losses_BT, batch)
    return total / weight, totals


def make_train_step(
    config: ModelConfig, optimizer: optax.GradientTransformation, params: dict, mesh: Mesh, *, remat: bool, normalizer: str = "token_sum"
) -> Callable:
    """Compile-once train step over `mesh`; `params` gives shapes only.

    Metrics: `loss` (nats, divided as `normalizer` says), `grad_norm`, `loss_by_role` and `weight_by_role` (sums, [roles]), `tokens`
    (positions that are not padding). A batch without supervised tokens gives a NaN loss, which the loop refuses.
    """
    shardings = state_shardings(config, optimizer, params, mesh)
    on_batch = dict.fromkeys(BATCH_FIELDS, batch_sharding(mesh))

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        def loss_of(params):
            return loss_and_totals(config, params, batch, remat, normalizer)

        (loss, totals), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = totals | {"loss": loss, "grad_norm": optax.tree.norm(grads), "tokens": (batch["segment_ids"] > 0).sum()}
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(train_step, in_shardings=(shardings, on_batch), out_shardings=(shardings, None), donate_argnums=0)
