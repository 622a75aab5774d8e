"""One side of `cotjax bench sample`, in a process of its own: it takes a job, warms up, and then generates when it is told to.

`python -m cotjax.bench.sample_worker` speaks as train_speed_worker does; a step is a generation for all prompts.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cotjax.bench.facts import jax_facts, jax_peak_bytes
from cotjax.bench.sides import answer_lines


@dataclass(frozen=True)
class Job:
    """What one side is to generate, greedily."""

    side: str  # "cotjax", or the cache of transformers' generate: "dynamic" or "static"
    model: dict[str, Any]  # the fields of ModelConfig
    slots: int  # prompts
    prompt: int  # tokens a prompt
    new: int  # new tokens a prompt
    cpu_devices: int = 1  # cotjax alone: that it splits a CPU into
    weights: str = ""  # Hugging Face folder of the weights: cotjax writes it (empty: does not), the others read it

    def ids(self) -> np.ndarray:
        """The prompts, the same for every side: random ids, int32 [slots, prompt]."""
        return np.random.default_rng(0).integers(
            self.model["vocab_size"], size=(self.slots, self.prompt), dtype=np.int32
        )


class CotjaxSide:
    """The sampler that `cotjax evaluate` plays with."""

    def __init__(self, job: Job):
        import jax

        from cotjax.model import decoder
        from cotjax.model.config import ModelConfig
        from cotjax.model.sharding import make_mesh, split_cpu
        from cotjax.model.weights import save_hf
        from cotjax.sample.sampler import Sampler

        split_cpu(job.cpu_devices)
        config, mesh = ModelConfig(**job.model), make_mesh()
        params = decoder.init_params(config, jax.random.key(0), mesh)
        if job.weights:
            with jax.set_mesh(mesh):
                save_hf(job.weights, config, params)
        length = job.prompt + job.new
        self._sampler = Sampler(
            config, mesh, slots=job.slots, max_length=length, stop=[], pad_id=0, max_new=job.new
        )
        self._sampler.load(params)
        self._prompts = dict(enumerate(job.ids().tolist()))

    def generate(self, new: int) -> list[list[int]]:
        """`new` ids after each prompt."""
        self._sampler.reset(self._prompts)
        self._sampler.extend(self._prompts)
        made = self._sampler.branch(dict.fromkeys(self._prompts, ()), max_new=new)
        return [made[slot].ids for slot in self._prompts]

    def describe(self) -> dict[str, Any]:
        """What it runs on."""
        return jax_facts()

    def peak_bytes(self) -> int:
        """Most memory held so far."""
        return jax_peak_bytes()


def serve(ask: Callable[[], str], answer: Callable[[dict], None]) -> None:
    """Work off what `ask` gives, until it gives an empty text."""
    first, begun = json.loads(ask()), time.perf_counter()
    job = Job(**first)
    if job.side == "cotjax":
        side: Any = CotjaxSide(job)
    else:
        from cotjax.bench.sample_peer import TransformersSide

        side = TransformersSide(job)
    made = side.generate(job.new)
    first_step_s = time.perf_counter() - begun
    side.generate(1)
    side.generate(job.new)
    answer(
        {
            "ids": made,
            "first_step_s": first_step_s,
            **side.describe(),
            "cores": len(os.sched_getaffinity(0)),
        }
    )
    while line := ask():
        taken = [(_seconds(side, 1), _seconds(side, job.new)) for _ in range(int(line))]
        answer(
            {
                "first_token": [one for one, _ in taken],
                "seconds": [all_ for _, all_ in taken],
                "peak_bytes": side.peak_bytes(),
            }
        )


def _seconds(side: Any, new: int) -> float:
    start = time.perf_counter()
    side.generate(new)
    return time.perf_counter() - start


if __name__ == "__main__":
    answer_lines(serve)
