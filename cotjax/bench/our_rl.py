"""Steps of GRPO of a comparison, done by cotjax: with the parts that `cotjax rl` runs."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from cotjax.bench.facts import jax_facts
from cotjax.bench.jobs import MAX_LENGTH, RLJob
from cotjax.bench.tasks import RLStep, RLTask
from cotjax.config import default_config
from cotjax.data.codec import Codec
from cotjax.envs.base import plays_of
from cotjax.masking import Dropping
from cotjax.model.platform import return_freed_memory, split_cpu
from cotjax.model.sharding import make_mesh
from cotjax.rl.batches import advantages_of, step_batches
from cotjax.rl.groups import Stream
from cotjax.rl.play import Actors, play_step
from cotjax.rl.rewards import response_of
from cotjax.rl.run import RLRun, policy_of
from cotjax.rl.update import Update
from cotjax.rollout.loop import play
from cotjax.rollout.record import Episode
from cotjax.sample.sampler import Sampler
from cotjax.train.optim import configured
from cotjax.train.step import init_state
from cotjax.weights.convert import load_params, read_config
from cotjax.weights.huggingface import save_hf

# Of every side: small, so that the policy stays the one whose greedy actions were compared.
RATE = 1e-6


class CotjaxRL(RLTask):
    """The step of `cotjax rl`, but for its files: play, advantages, rows, one update."""

    def __init__(self, job: RLJob):
        split_cpu(job.cpu_devices)
        mesh, self._job, self._step = make_mesh(), job, 0
        folder, dtypes = Path(job.model), {"param_dtype": "float32", "compute_dtype": "float32"}
        model, params = read_config(folder, None, **dtypes), load_params(folder, mesh, **dtypes)
        if job.weights:
            save_hf(job.weights, model, params)
        codec = Codec.load(folder, job.template)
        sampler = Sampler(
            model,
            mesh,
            slots=job.slots,
            max_length=min(MAX_LENGTH, model.max_length),
            stop=codec.stop_texts,
            pad_id=codec.pad_id,
            max_new=job.new,
            pieces=codec.pieces,
        )
        self._pool = job.pool()
        self._actors = Actors(sampler, [self._pool], codec, job.elicitation, ("cot",))
        self._stream = Stream(job.played(), job.seed)
        settings = default_config().copy_and_resolve_references()
        settings.rl.update({"tasks": job.tasks, "group": job.group, "slots": job.slots})
        # What TRL's trainer does by default: every group counts, there is no divergence term, and
        # no penalty of single steps.
        settings.rl.update({"flat": "keep", "kl": 0.0, "format_penalty": 0.0})
        train = {"batch": job.batch, "row_length": job.row_length, "learning_rate": RATE}
        settings.train.update(train | {"warmup": 0, "schedule": "constant", "remat": "none"})
        self._run = RLRun(
            settings.train,
            dropping=Dropping.of(),
            model=model,
            make_params=lambda mesh: params,
            seed=job.seed,
            rl=settings.rl,
        )
        _, optimizer = configured(settings.train, model)
        with jax.set_mesh(mesh):
            self._state = init_state(model, optimizer, params, mesh)
            objective = policy_of(settings.rl).make(model, mesh, remat=settings.train.remat)
            self._update = Update(model, optimizer, params, mesh, objective)

    def step(self) -> RLStep:
        found, started = RLStep(), time.perf_counter()
        with self._actors.playing(self._state.params) as halves:
            found.transfer_s = time.perf_counter() - started
            rollouts, _ = play_step(
                self._actors,
                halves,
                self._stream,
                self._run.rl,
                step=self._step + 1,
                begin=self._step * self._job.tasks,
                seed=self._job.seed,
                policy="",
            )
        found.play_s = time.perf_counter() - started
        advantages = advantages_of(rollouts, self._run.rl)
        for each in step_batches(self._run, rollouts, advantages.values, self._actors.codec):
            self._state, _ = self._update(self._state, each.batches)
            found.trained += sum(int((x["segment_ids"] > 0).sum()) for x in each.batches)
        jax.block_until_ready(self._state)
        return_freed_memory()  # as `reinforce` does
        found.seconds = time.perf_counter() - started
        turns = [turn for episode in rollouts.episodes for turn in episode.steps]
        found.sampled = sum(len(response_of(turn).ids) for turn in turns)
        found.reward = sum(each.reward for each in rollouts.plays) / len(rollouts.plays)
        found.steps = len(turns)
        self._step += 1
        return found

    def greedy(self) -> dict[str, list[str]]:
        acted: dict[str, list[str]] = {}

        def keep(_: Any, episode: Episode) -> None:
            acted[episode.game.id] = [turn.executed or "" for turn in episode.steps]

        actors = self._actors
        with actors.playing(self._state.params) as ((policy, environments), *_):
            play(
                plays_of(self._job.games_of(0)),
                policy=policy,
                codec=actors.codec,
                environments=environments,
                driver="cot",
                elicitation=replace(actors.elicitation, temperature=0.0),
                seed=self._job.seed,
                on_record=keep,
                kinds=actors.kinds,
            )
        return acted

    @property
    def compiled(self) -> int:
        """Programs of the sampler; those of the update are compiled in the first step."""
        return self._actors.sampler.compilations

    def describe(self) -> dict[str, Any]:
        return jax_facts()

    def close(self) -> None:
        self._pool.close()
