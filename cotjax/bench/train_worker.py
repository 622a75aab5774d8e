"""One side of `cotjax bench train`, in a process of its own: it takes a job, warms up, and then steps when it is told to.

`python -m cotjax.bench.train_worker` reads lines of JSON and answers each with one. The first is a Job, answered when
the side is warm; every further one is a number of steps to take, answered by what they took. It ends with its input.
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

WARM_UP = 3  # steps before the first that is timed; the first compiles
# Adam's settings on both sides: the rate in update / step, then its decays, its epsilon, and the decay of matrices.
LEARNING_RATE, B1, B2, EPSILON, WEIGHT_DECAY = 3e-4, 0.9, 0.95, 1e-8, 0.1


@dataclass(frozen=True)
class Job:
    """What one side is to train."""

    side: str  # "cotjax", or how torch runs transformers' model: "compile" or "eager"
    model: dict[str, Any]  # the fields of ModelConfig
    batch: int  # rows a step
    length: int  # tokens a row
    accumulate: int = 1  # parts of a batch that follow one another
    remat: str = "none"  # cotjax alone
    scan: bool = False  # cotjax alone: layers as one program
    mesh: tuple[int, int, int] = (-1, 1, 1)  # cotjax alone: devices on data, fsdp and tensor
    cpu_devices: int = 1  # cotjax alone: that it splits a CPU into
    weights: str = ""  # Hugging Face folder of the first weights: cotjax writes it (empty: does not), the others read it

    def ids(self) -> np.ndarray:
        """The batch, the same for every side: random ids, int32 [batch, length]."""
        return np.random.default_rng(0).integers(
            self.model["vocab_size"], size=(self.batch, self.length), dtype=np.int32
        )


class CotjaxSide:
    """The step that `cotjax train` makes: the same function, optimizer and sharding."""

    def __init__(self, job: Job):
        import jax
        import optax

        from cotjax.model import decoder
        from cotjax.model.config import ModelConfig
        from cotjax.model.sharding import batch_sharding, make_mesh, split_cpu
        from cotjax.model.weights import save_hf
        from cotjax.train.optim import make_optimizer, needs_master
        from cotjax.train.step import compiled, init_state, make_train_step

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
            params = decoder.init_params(config, jax.random.key(0), self._mesh)
            if job.weights:
                save_hf(job.weights, config, params)
            self._state = init_state(config, optimizer, params, self._mesh)
            step = make_train_step(
                config,
                optimizer,
                params,
                self._mesh,
                remat=job.remat,
                accumulate=job.accumulate,
                scan=job.scan,
            )
        self._batch = jax.device_put(_batch(job.ids()), batch_sharding(self._mesh))
        self._step = compiled(step, self._state, self._batch, self._mesh)

    def step(self) -> float:
        """One update; returns, when the device has finished it, its loss in nats."""
        import jax

        self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready((self._state, metrics))
        return float(metrics["loss"])

    def describe(self) -> dict[str, Any]:
        """What it runs on."""
        return jax_facts()

    def peak_bytes(self) -> int:
        """Most memory held so far."""
        return jax_peak_bytes()


def _batch(ids: np.ndarray) -> dict[str, np.ndarray]:
    """Whole rows of one example each, every token but a row's first a supervised target."""
    from cotjax.masking import Role, targets

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


def serve(ask: Callable[[], str], answer: Callable[[dict], None]) -> None:
    """Work off what `ask` gives, until it gives an empty text."""
    first, begun = json.loads(ask()), time.perf_counter()
    job = Job(**first | {"mesh": tuple(first["mesh"])})
    if job.side == "cotjax":
        side: Any = CotjaxSide(job)
    else:
        from cotjax.bench.train_peer import TransformersSide

        side = TransformersSide(job)
    made = time.perf_counter() - begun
    seconds, losses = _timed(side, WARM_UP)
    answer(
        {
            "losses": losses,
            "first_step_s": made + seconds[0],
            **side.describe(),
            "cores": len(os.sched_getaffinity(0)),
        }
    )
    while line := ask():
        seconds, losses = _timed(side, int(line))
        answer({"seconds": seconds, "loss": losses[-1], "peak_bytes": side.peak_bytes()})


def _timed(side: Any, steps: int) -> tuple[list[float], list[float]]:
    seconds, losses = [], []
    for _ in range(steps):
        start = time.perf_counter()
        losses.append(side.step())
        seconds.append(time.perf_counter() - start)
    return seconds, losses


if __name__ == "__main__":
    answer_lines(serve)
