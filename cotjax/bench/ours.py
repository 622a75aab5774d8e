"""The tasks of a comparison, done by cotjax: with the code that `train` and `evaluate` run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from cotjax.bench.facts import jax_facts, jax_peak_bytes
from cotjax.bench.jobs import (
    B1,
    B2,
    LEARNING_RATE,
    MAX_LENGTH,
    WEIGHT_DECAY,
    RolloutJob,
    SampleJob,
    TrainJob,
)
from cotjax.bench.tasks import Rollout, RolloutTask, SampleTask, TrainTask
from cotjax.data.codec import Codec
from cotjax.masking import Role, targets
from cotjax.model.config import ModelConfig
from cotjax.model.params import init_params
from cotjax.model.platform import split_cpu
from cotjax.model.sharding import batch_sharding, make_mesh, whole_slots
from cotjax.objectives.supervised import make_objective
from cotjax.rollout.elicitation import Elicitation
from cotjax.rollout.loop import play
from cotjax.rollout.record import Episode
from cotjax.sample.sampler import Sampler
from cotjax.train.optim import make_optimizer, needs_master
from cotjax.train.step import compiled, init_state, make_train_step
from cotjax.weights.convert import load_params, read_config
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
            objective = make_objective(config, self._mesh, remat=job.remat, scan=job.scan)
            step = make_train_step(config, optimizer, params, self._mesh, objective, job.accumulate)
        self._batch = jax.device_put(_batch(job.ids()), batch_sharding(self._mesh))
        self._step = compiled(step, self._state, self._batch, self._mesh)

    def step(self) -> float:
        self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready((self._state, metrics))
        return float(metrics["loss"])

    def describe(self) -> dict[str, Any]:
        return jax_facts()

    def peak_bytes(self) -> int:
        return jax_peak_bytes()


def _batch(ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return rows of one example each. Every token but a row's first is a supervised target."""
    weights = np.ones(ids.shape, np.float32)
    weights[:, -1] = 0.0
    return {
        "ids": ids,
        "targets": np.asarray(targets(ids)),
        "weights": weights,
        "budget": weights,
        "dropped": np.zeros((len(ids), 3), np.int32),
        "roles": np.full(ids.shape, Role.REASONING, np.int8),
        "segment_ids": np.ones_like(ids),
        "branches": np.zeros_like(ids),
        "positions": np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape),
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


class CotjaxRollout(RolloutTask):
    """The rollout of `cotjax evaluate`: the same loop, sampler and environments."""

    def __init__(self, job: RolloutJob):
        split_cpu(job.cpu_devices)
        self.compile_s, mesh, self._job = 0.0, make_mesh(), job
        jax.monitoring.register_event_duration_secs_listener(self._note)
        model, dtypes = Path(job.model), {"param_dtype": "float32", "compute_dtype": "float32"}
        config, params = read_config(model, None, **dtypes), load_params(model, mesh, **dtypes)
        if job.weights:
            save_hf(job.weights, config, params)
        self._codec = Codec.load(model, job.template)
        self._sampler = Sampler(
            config,
            mesh,
            slots=whole_slots(job.slots, mesh),
            max_length=min(MAX_LENGTH, config.max_length),
            stop=self._codec.stop_texts,
            pad_id=self._codec.pad_id,
            max_new=max(job.new, Elicitation.max_action_tokens),
            pieces=self._codec.pieces,
        )
        self._sampler.load(params)
        self._pool = job.pool()

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.compile_s += duration_secs

    def play(self) -> dict[str, Rollout]:
        """Also returns "alone": the same without the prompt action."""
        return {"both": self._play(both=True), "alone": self._play(both=False)}

    def _play(self, both: bool) -> Rollout:
        records: list[Episode] = []
        started_at = time.perf_counter()
        play(
            self._job.played(),
            policy=self._sampler,
            codec=self._codec,
            environments=self._pool,
            driver="cot",
            elicitation=self._job.elicitation,
            seed=self._job.seed,
            on_record=lambda game, record: records.append(record),
            both=both,
        )
        rollout = Rollout(time.perf_counter() - started_at)
        for record in records:
            rollout.acted[record.game.id] = [
                turn.executed or (turn.cot.text if turn.cot else "") for turn in record.steps
            ]
            rollout.won += record.success
            responses = [each for turn in record.steps for each in (turn.cot, turn.prompt)]
            rollout.new_tokens += sum(each.new_tokens for each in responses if each)
            rollout.environment_s += record.timing.environment_s
            rollout.waited_s += record.timing.waited_s
            rollout.sampler_s += record.timing.sampler_s
        return rollout

    def describe(self) -> dict[str, Any]:
        """Also returns "programs" and "compile_s": what has been compiled so far."""
        return {**jax_facts(), "programs": self._sampler.compilations, "compile_s": self.compile_s}

    def close(self) -> None:
        self._pool.close()
