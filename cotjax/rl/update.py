"""One update from any number of micro-batches: their sums are added up, and divided once.

A step plays other numbers of tokens each time, so its rows come as more or fewer micro-batches of
one shape: each program is compiled once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Lowered

from cotjax.model.config import ModelConfig
from cotjax.model.kernels import kernel_for
from cotjax.model.params import Params, abstract_params, param_shardings, split_params
from cotjax.model.platform import compiler_options
from cotjax.model.sharding import batch_sharding
from cotjax.objectives.objective import Objective, together
from cotjax.objectives.scores import log_probs, reference_of
from cotjax.rl.offload import to_devices, to_host
from cotjax.rl.run import RLRun
from cotjax.runtime.arrays import shared_batch
from cotjax.train.step import FIELDS, TrainState, applied, make_gradients, state_shardings

Batch = Mapping[str, np.ndarray]


class Update:
    """(state, micro-batches) -> (state, metrics). The state is donated, and rows are read once."""

    def __init__(
        self,
        config: ModelConfig,
        optimizer: optax.GradientTransformation,
        params: Params,
        mesh: Mesh,
        objective: Objective,
    ):
        """`params`: gives shapes only. `objective`: takes batches of the kind "policy"."""
        self._mesh = mesh
        shardings = state_shardings(config, optimizer, params, mesh)
        on_batch = dict.fromkeys(FIELDS["policy"], batch_sharding(mesh))
        of_trained, _ = split_params(config, param_shardings(config, mesh))
        gradients = make_gradients(config, objective, 1)
        options = compiler_options(mesh)

        def first(params: Params, batch: dict) -> tuple:
            return gradients(*split_params(config, params), batch)

        def add(sums: tuple, params: Params, batch: dict) -> tuple:
            pairs, grads = first(params, batch)
            return together(sums[0], pairs), jax.tree.map(jnp.add, sums[1], grads)

        def zeros(params: Params, batch: dict) -> tuple:
            pairs, grads = jax.eval_shape(first, params, batch)
            # A sum of many bfloat16 gradients would lose the small ones.
            wide = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), grads)
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), pairs), wide

        places = shardings.params, on_batch
        self._of_trained = of_trained
        self._zeros = jax.jit(zeros, in_shardings=places, out_shardings=(None, of_trained))
        self._add = jax.jit(
            add,
            in_shardings=((None, of_trained), *places),
            out_shardings=(None, of_trained),
            donate_argnums=0,
            compiler_options=options,
        )

        def apply(state: TrainState, sums: tuple) -> tuple[TrainState, dict]:
            return applied(config, optimizer, state, *sums)

        self._apply = jax.jit(
            apply,
            in_shardings=(shardings, (None, of_trained)),
            out_shardings=(shardings, None),
            donate_argnums=0,
            compiler_options=options,
        )

    def lowered(
        self, state: TrainState, batch: Mapping[str, Any]
    ) -> dict[str, Callable[[], Lowered]]:
        """Return what lowers each program, by name, for shapes of a state and a micro-batch."""
        pairs, grads = jax.eval_shape(self._zeros, state.params, batch)
        grads = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            grads,
            self._of_trained,
        )
        return {
            "micro-batch": lambda: self._add.lower((pairs, grads), state.params, batch),
            "update": lambda: self._apply.lower(state, (pairs, grads)),
        }

    def __call__(
        self, state: TrainState, batches: Sequence[Batch]
    ) -> tuple[TrainState, dict[str, Any]]:
        """Return the updated state, and `cotjax.train.step.applied`'s metrics on the host.

        There is at least one micro-batch.
        """
        with jax.set_mesh(self._mesh):
            sums = None
            for batch in batches:
                rows = shared_batch(batch, batch_sharding(self._mesh))
                sums = self._zeros(state.params, rows) if sums is None else sums
                sums = self._add(sums, state.params, rows)
            state, metrics = self._apply(state, sums)
        return state, jax.device_get(metrics)


class Scores:
    """Fills in log-probabilities under the policy that played, and under that of the start."""

    def __init__(self, run: RLRun, mesh: Mesh, **layers: Any):
        """`layers`: `scan` and `kernel` of `decoder.hidden_states`.

        With adapters the start is the base, which is in every state. Else its parameters are made
        again, and stay on the devices.
        """
        self._model, self._rl = run.model, run.rl
        layers["kernel"] = kernel_for(run.model, mesh, layers["kernel"])
        self._own = _make_scores(run.model, mesh, **layers)
        self._start: Params | None = None
        if run.rl.kl:
            base, _ = reference_of(run.model, abstract_params(run.model))
            self._of_start = _make_scores(base, mesh, **layers)
            self._start = None if run.model.lora else run.make_params(mesh)
            if self._start is not None and run.rl.offload:
                self._start = to_host(self._start)

    def own(self, params: Params, batch: Batch) -> np.ndarray:
        """Return the log-probabilities of a batch's targets under these parameters, [B, T]."""
        return self._own(params, batch)

    def __call__(self, params: Params, batches: Sequence[Batch]) -> list[Batch]:
        """Return the micro-batches with `old` and `reference`. `params`: those that played.

        Without a KL term there is no reference, and the sampler's log-probabilities stand for it.
        """
        start = None
        if self._rl.kl:
            start = reference_of(self._model, params)[1] if self._start is None else self._start
            if self._start is not None and self._rl.offload:
                start = to_devices(self._start)
        filled = [self._filled(params, start, batch) for batch in batches]
        if self._start is not None and self._rl.offload:
            self._start = to_host(start)
        return filled

    def _filled(self, params: Params, start: Params | None, batch: Batch) -> Batch:
        sampler = batch["sampler"]
        old = self._own(params, batch) if self._rl.old == "trainer" else sampler
        if start is None:
            return {**batch, "old": old, "reference": sampler}
        return {**batch, "old": old, "reference": self._of_start(start, batch)}


# What log-probabilities are made of, fields of a policy batch.
_SCORED = ("ids", "targets", "segment_ids", "branches", "positions", "kl_weights")


def score_program(config: ModelConfig, mesh: Mesh, **layers: Any) -> Any:
    """Return (params, rows) -> log-probability of each target that is trained on, [B, T], jitted.

    Of a policy batch the rows have the fields that it needs. `layers`: see `Scores`.
    """

    def scores(params: Params, batch: dict) -> jax.Array:
        return log_probs(config, params, batch, batch["kl_weights"] > 0, **layers)

    return jax.jit(
        scores,
        in_shardings=(
            param_shardings(config, mesh),
            dict.fromkeys(_SCORED, batch_sharding(mesh)),
        ),
        out_shardings=NamedSharding(mesh, PartitionSpec()),  # every process reads all rows
        compiler_options=compiler_options(mesh),
    )


def scored_fields(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a policy batch that `score_program` takes."""
    return {name: batch[name] for name in _SCORED}


def _make_scores(
    config: ModelConfig, mesh: Mesh, **layers: Any
) -> Callable[[Params, Batch], np.ndarray]:
    """Return (params, batch) -> the log-probabilities of `score_program` on the host."""
    program = score_program(config, mesh, **layers)

    def on_mesh(params: Params, batch: Batch) -> np.ndarray:
        rows = shared_batch(scored_fields(batch), batch_sharding(mesh))
        with jax.set_mesh(mesh):
            return np.asarray(program(params, rows))

    return on_mesh
