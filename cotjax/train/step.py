"""One train step: `(state, batch) -> (state, metrics)`, pure, jitted, the state donated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cotjax.model.config import ModelConfig
from cotjax.model.params import abstract_params, join_params, param_shardings, split_params
from cotjax.model.platform import compiler_options, return_freed_memory
from cotjax.model.sharding import batch_sharding
from cotjax.objectives.objective import Objective, Pairs, together
from cotjax.train.optim import Mastered, apply

# Field of a supervised batch (data.pipeline) -> dtype: [B, T], except those of BATCH_WIDTHS.
BATCH_FIELDS = {
    "ids": jnp.int32,
    "targets": jnp.int32,
    "weights": jnp.float32,
    "budget": jnp.float32,
    "roles": jnp.int8,
    "segment_ids": jnp.int32,
    "branches": jnp.int32,
    "positions": jnp.int32,
    "dropped": jnp.int32,
}
BATCH_WIDTHS = {"budget": 1, "dropped": 3, "trajectories": 1, "coefficients": 2}
_POLICY = (
    *("kl_weights", "advantages", "old", "sampler", "reference", "lengths", "trajectories"),
    "coefficients",
)
# Kind of objective -> the fields of its batches; objectives/policy.py and preference.py explain
# what they add.
_PAIRS = BATCH_FIELDS | {"pairs": jnp.int32, "sides": jnp.int8}
FIELDS = {
    "supervised": BATCH_FIELDS,
    "policy": BATCH_FIELDS | dict.fromkeys(_POLICY, jnp.float32),
    "pairs": _PAIRS,
    "preference": _PAIRS | {"reference": jnp.float32},
}


class TrainState(NamedTuple):
    """What a step updates: arrays, their shapes, or their shardings.

    step: number of updates made, int32.
    params: all parameters, frozen ones too.
    opt_state: the optimizer's state for the trained parameters (params.trainable_paths).
    """

    step: Any
    params: dict
    opt_state: optax.OptState


def state_shardings(
    config: ModelConfig, optimizer: optax.GradientTransformation, params: dict, mesh: Mesh
) -> TrainState:
    """Return the sharding of every leaf of the state.

    Adam's moments and a float32 copy are sharded as their parameters are; counters are replicated.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    for_params = param_shardings(config, mesh)
    trained, _ = split_params(config, params)
    for_trained, _ = split_params(config, for_params)
    opt_shapes = jax.eval_shape(optimizer.init, trained)
    for_opt = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        opt_shapes,
        for_trained,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(replicated, for_params, for_opt)


def init_state(
    config: ModelConfig, optimizer: optax.GradientTransformation, params: dict, mesh: Mesh
) -> TrainState:
    """Return the state before the first step, sharded over `mesh`."""
    shardings = state_shardings(config, optimizer, params, mesh)
    return jax.jit(partial(_state, config, optimizer), out_shardings=shardings)(params)


def _state(
    config: ModelConfig, optimizer: optax.GradientTransformation, params: dict
) -> TrainState:
    return TrainState(
        jnp.zeros((), jnp.int32), params, optimizer.init(split_params(config, params)[0])
    )


def abstract_state(
    config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Return shape, dtype and sharding of every leaf of the state; the devices need not exist."""
    params = abstract_params(config, mesh)
    state = jax.eval_shape(partial(_state, config, optimizer), params)
    shardings = state_shardings(config, optimizer, params, mesh)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        shardings,
    )


def abstract_batch(
    rows: int, length: int, mesh: Mesh | None = None, kind: str = "supervised"
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape and dtype of a batch of a kind, and its sharding when there is a mesh."""
    sharding = None if mesh is None else batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((rows, BATCH_WIDTHS.get(name, length)), dtype, sharding=sharding)
        for name, dtype in FIELDS[kind].items()
    }


def make_gradients(
    config: ModelConfig, objective: Objective, accumulate: int = 1
) -> Callable[[dict, dict, dict], tuple[Pairs, dict]]:
    """Return (trained, frozen, batch) -> (the objective's pairs, gradients of its loss's sum).

    Both are summed over the `accumulate` micro-batches.
    """

    def gradients(trained: dict, frozen: dict, batch: dict) -> tuple[Pairs, dict]:
        def pairs_and_grads(part: dict) -> tuple[Pairs, dict]:
            def loss_sum(trained: dict) -> tuple[jax.Array, Pairs]:
                pairs = objective(join_params(config, trained, frozen), part)
                return pairs["loss"][0], pairs

            (_, pairs), grads = jax.value_and_grad(loss_sum, has_aux=True)(trained)
            return pairs, grads

        if accumulate == 1:
            return pairs_and_grads(batch)
        return _accumulated(pairs_and_grads, _parts(batch, accumulate))

    return gradients


def make_probe(
    config: ModelConfig,
    mesh: Mesh,
    objective: Objective,
    accumulate: int = 1,
    kind: str = "supervised",
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return (params, batch) -> (sum of losses, norm of its gradient), as in the train step.

    It is compiled when it is first called. `kind`: of the batches, a key of FIELDS.
    """
    gradients = make_gradients(config, objective, accumulate)

    def probe(params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        pairs, grads = gradients(*split_params(config, params), batch)
        return pairs["loss"][0], optax.tree.norm(optax.tree.cast(grads, jnp.float32))

    shardings = (param_shardings(config, mesh), dict.fromkeys(FIELDS[kind], batch_sharding(mesh)))
    program = jax.jit(probe, in_shardings=shardings, compiler_options=compiler_options(mesh))

    def on_mesh(params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        with jax.set_mesh(mesh):
            return program(params, batch)

    return on_mesh


def make_train_step(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    params: dict,
    mesh: Mesh,
    objective: Objective,
    accumulate: int = 1,
    kind: str = "supervised",
) -> Callable:
    """Return the train step over `mesh`, jitted: (state, batch) -> (state, metrics).

    A batch without supervised tokens makes an update of gradient 0.

    Args:
      params: gives shapes only.
      objective: (params, batch) -> (sum, weight) pairs, of which "loss" is minimised.
      accumulate: micro-batches that the batch is processed in.
      kind: of the batches, a key of FIELDS.

    Metrics: `loss` (its sum over its weight), the objective's other pairs, `grad_norm` (of the
    trained parameters), `tokens` (positions that are not padding), `seen` (tokens that they attend
    to, summed), `dropped` (counts by data.pipeline.DROPPED).
    """
    shardings = state_shardings(config, optimizer, params, mesh)
    on_batch = dict.fromkeys(FIELDS[kind], batch_sharding(mesh))
    gradients = make_gradients(config, objective, accumulate)

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        # Only the trained parameters are differentiated. A frozen one keeps its donated buffer.
        state, metrics = applied(
            config, optimizer, state, *gradients(*split_params(config, state.params), batch)
        )
        real_BT = batch["segment_ids"] > 0
        metrics |= {
            "tokens": real_BT.sum(),
            # A token attends to those before it on its branch, and to itself.
            "seen": jnp.where(real_BT, batch["positions"] + 1, 0).sum(dtype=jnp.float32),
            "dropped": batch["dropped"].sum(axis=0),
        }
        return state, metrics

    return jax.jit(
        train_step,
        in_shardings=(shardings, on_batch),
        out_shardings=(shardings, None),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )


@jax.named_scope("optimizer")
def applied(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    pairs: Pairs,
    grads: dict,
) -> tuple[TrainState, dict]:
    """Return the state after an update, and its metrics, from sums over a whole batch.

    `pairs`, `grads`: as `make_gradients` sums them. Metrics: `loss` (its sum over its weight), the
    other pairs, and `grad_norm`. Where nothing is supervised, loss and gradient are 0, not 0 / 0.
    """
    trained, frozen = split_params(config, state.params)
    total, weight = pairs["loss"]
    weight = jnp.where(weight > 0, weight, 1.0)
    # Divided once, after the sum over micro-batches and devices: a mean of their means would give
    # those with few supervised tokens too much weight.
    wide = isinstance(state.opt_state, Mastered)
    grads = jax.tree.map(
        lambda grad: (grad / weight).astype(jnp.float32 if wide else grad.dtype), grads
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    params = join_params(config, apply(trained, updates, opt_state), frozen)
    metrics = pairs | {"loss": total / weight, "grad_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, params, opt_state), metrics


def _parts(batch: dict, count: int) -> dict:
    """Return [B, ...] as [count, B / count, ...].

    Neighbouring rows go to different parts, so that every device has rows of each part.
    """
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )


def _accumulated(
    pairs_and_grads: Callable[[dict], tuple[Pairs, dict]], parts: dict
) -> tuple[Pairs, dict]:
    """Return the sum of `pairs_and_grads` over the parts, computed one after another."""
    count = len(parts["ids"])
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(pairs_and_grads, first)
    )

    def add(carry: tuple, index: jax.Array) -> tuple[tuple, None]:
        totals, part = carry
        following = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, (index + 1) % count, keepdims=False), parts
        )
        pairs, grads = pairs_and_grads(part)
        totals = together(totals[0], pairs), jax.tree.map(jnp.add, totals[1], grads)
        return (totals, following), None

    # Each part is sliced in the iteration before its own. Sliced in its own, XLA fuses the slice
    # into every use of the ids, and on a CPU the attention, which compares the ids of each pair of
    # tokens, takes seven times as long.
    (total, _), _ = jax.lax.scan(add, (zeros, first), jnp.arange(count))
    return total


def compiled(train_step: Any, state: TrainState, batch: dict, mesh: Mesh) -> Callable:
    """Compile the step for these shapes (arrays, or `abstract_state` and `abstract_batch`).

    XLA leaves hundreds of MB of freed memory with the process. They are returned to the system
    here, before a step on CPU allocates its own.
    """
    with jax.set_mesh(mesh):
        program = train_step.lower(state, batch).compile()
    return_freed_memory()
    return program
