"""One train step: `(state, batch) -> (state, metrics)`, pure, jitted, the state donated."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cotjax.model.config import ModelConfig
from cotjax.model.params import abstract_params, join_params, param_shardings, split_params
from cotjax.model.sharding import batch_sharding
from cotjax.objectives.objective import Objective, Pairs
from cotjax.train.optim import Mastered, apply

# What a batch holds, as data.pipeline makes it: field -> dtype. All are [B, T] but those of BATCH_WIDTHS.
BATCH_FIELDS = {
    "ids": jnp.int32, "targets": jnp.int32, "weights": jnp.float32, "budget": jnp.float32, "roles": jnp.int8,
    "segment_ids": jnp.int32, "branches": jnp.int32, "positions": jnp.int32, "dropped": jnp.int32,
}  # fmt: skip
BATCH_WIDTHS = {"budget": 1, "dropped": 3}


class TrainState(NamedTuple):
    """`step` is the number of updates made. The optimizer's state is that of what is trained (params.trainable_paths)."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def state_shardings(
    config: ModelConfig, optimizer: optax.GradientTransformation, params: dict, mesh: Mesh
) -> TrainState:
    """A NamedSharding for every leaf of the state: Adam's moments and a float32 copy lie as the parameters, counters are replicated."""
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
    """The state before the first step, sharded over `mesh`."""
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
    """Shape, dtype and place of every leaf of the state, for devices that may not be there."""
    params = abstract_params(config, mesh)
    state = jax.eval_shape(partial(_state, config, optimizer), params)
    places = state_shardings(config, optimizer, params, mesh)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state, places
    )


def abstract_batch(
    rows: int, length: int, mesh: Mesh | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of a batch, and its place where there is a mesh."""
    where = None if mesh is None else batch_sharding(mesh)
    shapes = {name: (rows, BATCH_WIDTHS.get(name, length)) for name in BATCH_FIELDS}
    return {
        name: jax.ShapeDtypeStruct(shape, BATCH_FIELDS[name], sharding=where)
        for name, shape in shapes.items()
    }


def _make_gradients(
    config: ModelConfig, objective: Objective, accumulate: int
) -> Callable[[dict, dict, dict], tuple[Pairs, dict]]:
    """(trained, frozen, batch) -> (the objective's pairs, the gradients of its loss's sum).

    Both are summed over the `accumulate` parts of the batch.
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
    config: ModelConfig, mesh: Mesh, objective: Objective, accumulate: int = 1
) -> Callable[[dict, dict], tuple[jax.Array, jax.Array]]:
    """(params, batch) -> (sum of losses, norm of its gradient), as the train step would find them; compiled when it is first called."""
    gradients = _make_gradients(config, objective, accumulate)

    def probe(params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        pairs, grads = gradients(*split_params(config, params), batch)
        return pairs["loss"][0], optax.tree.norm(optax.tree.cast(grads, jnp.float32))

    places = (param_shardings(config, mesh), dict.fromkeys(BATCH_FIELDS, batch_sharding(mesh)))
    program = jax.jit(probe, in_shardings=places, compiler_options=_compiler_options(mesh))

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
) -> Callable:
    """Compile-once train step over `mesh`; `params` gives shapes only.

    `objective`: (params, batch) -> (sum, weight) pairs, of which "loss" is minimised.
    `accumulate`: parts that the batch is worked off in.

    Metrics: `loss` (its sum over its weight), the objective's other pairs, `grad_norm` (of what is trained), `tokens` (positions
    that are not padding), `seen` (what they attend to, added up), `dropped` (by data.pipeline.DROPPED). A batch without
    supervised tokens makes a step of gradient 0.
    """
    shardings = state_shardings(config, optimizer, params, mesh)
    on_batch = dict.fromkeys(BATCH_FIELDS, batch_sharding(mesh))
    gradients = _make_gradients(config, objective, accumulate)

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        # Only what is trained is differentiated: a frozen weight has no gradient, and its buffer goes through as it is.
        trained, frozen = split_params(config, state.params)
        pairs, grads = gradients(trained, frozen, batch)
        total, weight = pairs["loss"]
        weight = jnp.where(
            weight > 0, weight, 1.0
        )  # where nothing is supervised, loss and gradient are 0, not 0 / 0
        # Divided here, once, over all parts and devices: parts with few supervised tokens weigh no more for it.
        wide = isinstance(state.opt_state, Mastered)
        grads = jax.tree.map(
            lambda grad: (grad / weight).astype(jnp.float32 if wide else grad.dtype), grads
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        params = join_params(config, apply(trained, updates, opt_state), frozen)
        real_BT = batch["segment_ids"] > 0
        metrics = pairs | {
            "loss": total / weight,
            "grad_norm": optax.tree.norm(grads),
            "tokens": real_BT.sum(),
            # A token sees those before it on its branch and itself: one more than its position.
            "seen": jnp.where(real_BT, batch["positions"] + 1, 0).sum(dtype=jnp.float32),
            "dropped": batch["dropped"].sum(axis=0),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(
        train_step,
        in_shardings=(shardings, on_batch),
        out_shardings=(shardings, None),
        donate_argnums=0,
        compiler_options=_compiler_options(mesh),
    )


def _compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """On CPU, jax 0.10 orders work by how much of it could run at once, which keeps three times the memory alive and makes remat
    save nothing; later versions order it well by themselves."""
    if mesh.devices.flat[0].platform != "cpu" or jax.__version_info__ >= (0, 11):
        return None
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def _parts(batch: dict, count: int) -> dict:
    """[B, ...] -> [count, B / count, ...]. Neighbours go to different parts, so that every device has rows of each."""
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )


def _accumulated(
    pairs_and_grads: Callable[[dict], tuple[Pairs, dict]], parts: dict
) -> tuple[Pairs, dict]:
    """What `pairs_and_grads` gives, added up over the parts, one after another."""
    count = len(parts["ids"])
    first = jax.tree.map(lambda x: x[0], parts)
    nothing = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(pairs_and_grads, first)
    )

    def add(carry: tuple, index: jax.Array) -> tuple[tuple, None]:
        found, part = carry
        following = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, (index + 1) % count, keepdims=False), parts
        )
        return (jax.tree.map(jnp.add, found, pairs_and_grads(part)), following), None

    # The part to come is cut in the round before. Cut in its own round, XLA fuses the cutting into every use of the ids, and on a
    # CPU the attention's exponentials, which ask each pair of tokens whether it is visible, take seven times as long.
    (total, _), _ = jax.lax.scan(add, (nothing, first), jnp.arange(count))
    return total


def compiled(train_step: Callable, state: TrainState, batch: dict, mesh: Mesh) -> Callable:
    """The step compiled for these shapes (arrays, or as `abstract_state` and `abstract_batch` give them), before anything is run.

    A compiler that runs on the host leaves hundreds of MB of freed memory with the process; they go back to the system here,
    before a step on CPU takes memory of its own.
    """
    with jax.set_mesh(mesh):
        program = train_step.lower(state, batch).compile()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)
    return program
