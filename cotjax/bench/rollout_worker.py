"""One side of `cotjax bench rollout`, in a process of its own: it takes a job, plays it once to warm up, and again when it is told to.

`python -m cotjax.bench.rollout_worker` reads lines of JSON and answers each with one. The first is a Job, answered with what it
runs on and the games as it played them; every further one, whatever it says, is answered by a round. It ends with its input.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cotjax.bench.facts import jax_facts
from cotjax.bench.sides import answer_lines
from cotjax.data.codec import Codec
from cotjax.envs.alfworld.env import AlfworldEnv
from cotjax.envs.base import Game
from cotjax.envs.pool.pool import EnvPool
from cotjax.rollout.loop import Elicitation

MAX_LENGTH = 2048  # tokens that an episode's prompt and response may take, or the model's positions if they are fewer
_GAMES_KEPT = 4  # that each environment's process remembers, so that the timed rollouts reset to games that are loaded


@dataclass(frozen=True)
class Job:
    """What one side is to play."""

    side: str  # "cotjax" or "transformers"
    model: str  # folder of the model, with its tokenizer
    template: str  # of turns
    games: tuple[dict[str, Any], ...]  # the fields of Game
    folder: str  # for translated games
    slots: int = 32  # episodes at a time
    steps: int = 30  # an episode
    new: int = 64  # tokens a CoT response
    seed: int = 0
    cpu_devices: int = 1  # cotjax alone: that it splits a CPU into
    weights: str = ""  # Hugging Face folder of the model in float32: cotjax writes it (empty: does not), the other reads it

    @property
    def elicitation(self) -> Elicitation:
        """How both sides draw actions: greedily."""
        return Elicitation(max_new_tokens=self.new, max_steps=self.steps)

    def played(self) -> list[Game]:
        return [Game(**fields) for fields in self.games]

    def pool(self) -> EnvPool:
        """One process a game."""
        return EnvPool(
            partial(
                AlfworldEnv, max_steps=self.steps, cache_dir=self.folder, games_kept=_GAMES_KEPT
            ),
            self.slots,
            self.slots,
        )


@dataclass
class Rollout:
    """All games, played once. Seconds are of the whole: each episode's share of its turns, added up."""

    seconds: float = 0.0
    acted: dict[str, list[str]] = field(
        default_factory=dict
    )  # game -> its CoT actions; of an invalid response, all its text
    won: int = 0
    new_tokens: int = 0
    environment_s: float = 0.0
    waited_s: float = 0.0  # of these, those in which nothing was decoded
    sampler_s: float = 0.0


class CotjaxSide:
    """The rollout that `cotjax evaluate` makes: the same loop, sampler and environments."""

    def __init__(self, job: Job):
        import jax

        from cotjax.model.sharding import make_mesh, split_cpu, whole_slots
        from cotjax.model.weights import save_hf
        from cotjax.sample.sampler import Sampler
        from cotjax.train.convert import load_params, read_config

        split_cpu(job.cpu_devices)
        self.compile_s, mesh, self._job = 0.0, make_mesh(), job
        jax.monitoring.register_event_duration_secs_listener(self._note)
        model, as_float32 = Path(job.model), {"param_dtype": "float32", "compute_dtype": "float32"}
        config, params = read_config(model, **as_float32), load_params(model, mesh, **as_float32)
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

    def _note(self, event: str, seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.compile_s += seconds

    def round(self) -> dict[str, Any]:
        """Once with the prompt action decoded beside the CoT action, and once without."""
        return {"both": asdict(self._play(both=True)), "alone": asdict(self._play(both=False))}

    def _play(self, both: bool) -> Rollout:
        from cotjax.rollout.loop import play

        records: list[dict] = []
        started_at = time.perf_counter()
        play(
            self._job.played(), policy=self._sampler, codec=self._codec, environments=self._pool, driver="cot",
            elicitation=self._job.elicitation, seed=self._job.seed, on_record=lambda game, record: records.append(record), both=both,
        )  # fmt: skip
        rollout = Rollout(time.perf_counter() - started_at)
        for record in records:
            steps, timing = record["steps"], record["timing"]
            rollout.acted[record["game"]["id"]] = [
                step["executed"] or step["cot"]["text"] for step in steps
            ]
            rollout.won += record["success"]
            rollout.new_tokens += sum(
                step[kind]["new_tokens"]
                for step in steps
                for kind in ("cot", "prompt")
                if step[kind]
            )
            rollout.environment_s += timing["environment_s"]
            rollout.waited_s += timing["waited_s"]
            rollout.sampler_s += timing["sampler_s"]
        return rollout

    def describe(self) -> dict[str, Any]:
        """What it runs on, and what it has compiled."""
        return {**jax_facts(), "programs": self._sampler.compilations, "compile_s": self.compile_s}

    def close(self) -> None:
        self._pool.close()


def serve(ask: Callable[[], str], answer: Callable[[dict], None]) -> None:
    """Work off what `ask` gives, until it gives an empty text."""
    first = json.loads(ask())
    job = Job(**first | {"games": tuple(first["games"])})
    if job.side == "cotjax":
        side: Any = CotjaxSide(job)
    else:
        from cotjax.bench.rollout_peer import TransformersSide

        side = TransformersSide(job)
    try:
        started_at = time.perf_counter()
        warm_up = side.round()
        took = {
            "warm_up_s": time.perf_counter() - started_at,
            "cores": len(os.sched_getaffinity(0)),
        }
        answer({**warm_up, **side.describe(), **took})
        while ask():
            answer(side.round() | side.describe())
    finally:
        side.close()


if __name__ == "__main__":
    answer_lines(serve)
