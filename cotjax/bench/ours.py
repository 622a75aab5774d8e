"""The tasks of a comparison, done by cotjax: with the code that `train` and `evaluate` run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from cotjax.bench.facts import jax_facts, jax_peak_bytes
from cotjax.bench.jobs import (
    B1,
    B2,
    LEARNING_RATE,
    WEIGHT_DECAY,
    SampleJob,
    TrainJob,
    rows_of,
)
from cotjax.bench.tasks import SampleTask, TrainTask
from cotjax.masking import Role, targets
from cotjax.model.config import ModelConfig
from cotjax.model.kernels import kernel_for
from cotjax.model.params import init_params
from cotjax.model.platform import split_cpu
from cotjax.model.sharding import batch_sharding, make_mesh
from cotjax.objectives.objective import Objective
from cotjax.objectives.supervised import make_objective
from cotjax.sample.sampler import Sampler
from cotjax.train.memory import memory_here
from cotjax.train.optim import make_optimizer, needs_master
from cotjax.train.remat import AUTO, least_remat
from cotjax.train.step import compiled, init_state, make_train_step
from cotjax.weights.huggingface import save_hf


class CotjaxTrain(TrainTask):
    """The step of `cotjax train`: the same function, optimizer and sharding."""

    def __init__(self, job: TrainJob):
        split_cpu(job.cpu_devices)
        config = ModelConfig(**job.model)
        self._mesh = make_mesh(*job.mesh)
        optimizer = make_optimizer(
            optax.constant_schedule(LEARNING_RATE),
            b1=B1,
            b2=B2,
            weight_decay=WEIGHT_DECAY,
            clip_norm=0.0,
            master=needs_master(config),
        )
        with jax.set_mesh(self._mesh):
            params = init_params(config, jax.random.key(0), self._mesh)
            if job.weights:
                save_hf(job.weights, config, params)
            self._state = init_state(config, optimizer, params, self._mesh)
        kernel = kernel_for(config, self._mesh, job.attention, alone=lambda: job.rows == "plain")
        make = partial(make_objective, config, self._mesh, scan=job.scan, kernel=kernel)
        self._remat = job.remat if job.remat != AUTO else self._least_remat(job, config, make)
        objective = make(remat=self._remat)
        with jax.set_mesh(self._mesh):
            step = make_train_step(config, optimizer, params, self._mesh, objective, job.accumulate)
        batch = batch_of(job.ids(), job.rows)
        self._batch = jax.device_put(batch, batch_sharding(self._mesh))
        self._step: Any = compiled(step, self._state, self._batch, self._mesh)

    def _least_remat(
        self, job: TrainJob, config: ModelConfig, make: Callable[..., Objective]
    ) -> str:
        chosen, _ = least_remat(
            config,
            self._state,
            lambda remat: make(remat=remat),
            batch=job.batch // job.accumulate,
            length=job.length,
            sums=job.accumulate > 1,
            scan=job.scan,
            mesh=self._mesh,
            available=memory_here(self._mesh),
        )
        return chosen

    def step(self) -> float:
        self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready((self._state, metrics))
        return float(metrics["loss"])

    def describe(self) -> dict[str, Any]:
        return jax_facts() | {"remat": self._remat}

    def peak_bytes(self) -> int:
        return jax_peak_bytes()

    @property
    def program(self) -> str:
        """The text of the compiled step."""
        return self._step.as_text()


def batch_of(ids: np.ndarray, rows: str = "plain") -> dict[str, np.ndarray]:
    """Return rows of one example each, or as `rows_of` divides them.

    Every token but a row's first is a supervised target.
    """
    weights = np.ones(ids.shape, np.float32)
    weights[:, -1] = 0.0
    segment_ids, branches, positions = rows_of(rows, *ids.shape)
    return {
        "ids": ids,
        "targets": np.asarray(targets(ids)),
        "weights": weights,
        "budget": weights.sum(axis=-1, keepdims=True),
        "dropped": np.zeros((len(ids), 3), np.int32),
        "roles": np.full(ids.shape, Role.REASONING, np.int8),
        "segment_ids": segment_ids,
        "branches": branches,
        "positions": positions,
    }


class CotjaxSample(SampleTask):
    """The sampler of `cotjax evaluate`."""

    def __init__(self, job: SampleJob):
        split_cpu(job.cpu_devices)
        config, mesh = ModelConfig(**job.model), make_mesh()
        params = init_params(config, jax.random.key(0), mesh)
        if job.weights:
            with jax.set_mesh(mesh):
                save_hf(job.weights, config, params)
        length = job.prompt + job.new
        self._sampler = Sampler(
            config, mesh, slots=job.slots, max_length=length, stop=[], pad_id=0, max_new=job.new
        )
        self._sampler.load(params)
        self._prompts = dict(enumerate(job.ids().tolist()))
        self.new = job.new

    def generate(self, new: int) -> list[list[int]]:
        self._sampler.reset(self._prompts)
        self._sampler.extend(self._prompts)
        samples = self._sampler.sample(dict.fromkeys(self._prompts, ()), max_new=new)
        return [samples[slot].ids for slot in self._prompts]

    def describe(self) -> dict[str, Any]:
        return jax_facts()

    def peak_bytes(self) -> int:
        return jax_peak_bytes()
