"""Rollouts of a comparison, done by cotjax: with the loop and the sampler that `evaluate` runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from cotjax.bench.facts import jax_facts
from cotjax.bench.jobs import MAX_LENGTH, RolloutJob
from cotjax.bench.tasks import Rollout, RolloutTask
from cotjax.data.codec import Codec
from cotjax.envs.base import plays_of
from cotjax.envs.pool.pool import EnvPool
from cotjax.model.platform import split_cpu
from cotjax.model.sharding import make_mesh, whole_slots
from cotjax.rollout.elicitation import Elicitation
from cotjax.rollout.loop import play
from cotjax.rollout.record import Driver, Episode, Kind
from cotjax.sample.sampler import Sampler
from cotjax.weights.convert import load_params, read_config
from cotjax.weights.huggingface import save_hf


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
        sampler = partial(
            Sampler,
            config,
            mesh,
            max_length=min(MAX_LENGTH, config.max_length),
            stop=self._codec.stop_texts,
            pad_id=self._codec.pad_id,
            max_new=max(job.new, Elicitation.max_action_tokens),
            pieces=self._codec.pieces,
        )
        self._sampler = sampler(slots=whole_slots(job.slots, mesh))
        self._sampler.load(params)
        self._whole = (self._sampler, job.pool())
        self._halves: list[tuple[Sampler, EnvPool]] = []
        if job.halves:
            slots = -(-job.slots // 2)
            first = sampler(slots=whole_slots(slots, mesh))
            first.load(params)
            self._halves = [(each, job.pool(slots)) for each in (first, first.twin())]

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.compile_s += duration_secs

    def play(self) -> dict[str, Rollout]:
        """Also returns "alone": the same without the prompt action.

        With `job.halves` also "prompt", by prompt actions alone, and "alone, halves" and "prompt,
        halves", by two halves of the slots in turn.
        """
        rollouts = {"both": self._play("cot", ("cot", "prompt")), "alone": self._play("cot")}
        if self._halves:
            rollouts["alone, halves"] = self._play("cot", halves=True)
            rollouts["prompt"] = self._play("prompt")
            rollouts["prompt, halves"] = self._play("prompt", halves=True)
        return rollouts

    def _play(self, driver: Driver, kinds: Sequence[Kind] = (), halves: bool = False) -> Rollout:
        records: list[Episode] = []
        (sampler, pool), *second = self._halves if halves else [self._whole]
        started_at = time.perf_counter()
        play(
            plays_of(self._job.played()),
            policy=sampler,
            codec=self._codec,
            environments=pool,
            driver=driver,
            elicitation=self._job.elicitation,
            seed=self._job.seed,
            on_record=lambda game, record: records.append(record),
            kinds=kinds,
            second_half=second[0] if second else None,
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
        for _, pool in (self._whole, *self._halves):
            pool.close()
