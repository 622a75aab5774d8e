"""`cotjax bench data`: the input pipeline's tokens/s, and how full its rows are.

Also how many train steps of the demo's model it could feed.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import jax
import numpy as np

from cotjax.assets import BASE_FOLDER
from cotjax.config import default_config
from cotjax.data.packing import Packing, example_lengths
from cotjax.data.pipeline import batches, dropped_weights
from cotjax.data.tfds_agent import AgentConfig, prepare_dataset
from cotjax.data.trajectories import Trajectory, read_trajectories, write_trajectories
from cotjax.envs.worlds import load_world
from cotjax.masking import Dropping
from cotjax.model.params import init_params
from cotjax.model.sharding import batch_sharding, make_mesh
from cotjax.objectives.supervised import make_objective
from cotjax.rollout.collect import Collecting, collect
from cotjax.train.optim import configured
from cotjax.train.step import init_state, make_train_step
from cotjax.weights.hf_config import config_from_hf

# Row lengths whose filling is printed.
LENGTHS = (768, 1024, 2048, 4096, 8192)
# Games of each task type, episodes of each game, and copies of each episode, under other ids:
# packing is for more than a few episodes.
_GAMES, _EPISODES, _COPIES = 3, 4, 15
# Rounds, in which readers and the train step take turns, and steps a round.
_ROUNDS, _STEPS = 3, 2
# Batches that the prefetching threads may hold, and one more.
_READ_AHEAD = 9


def benchmark(
    data: Path | None = None,
    tokenizer: Path | None = None,
    *,
    length: int = 2048,
    batch: int = 8,
    seconds: float = 3.0,
) -> dict[str, float]:
    """Measure the input pipeline; prints and returns its figures.

    Figures are the tokens/s of writing the dataset ("written/s"), of reading, packing, masking and
    collating batches without and with dropping ("tokens/s", "dropping tokens/s"), and of the demo
    model's train step ("step tokens/s"); "ratio", the second over the last; and "filling at N",
    the share of rows of N tokens that is not padding. A row's tokens include its padding.

    Args:
      data: trajectories; None: the expert plays generated games, and each episode is repeated.
      tokenizer: folder with tokenizer.json; None: the shipped base's.
      length, batch: tokens a row, rows a batch.
      seconds: how long each of the pipeline's figures is measured.

    Raises:
      DataError: `data` has no trajectories, or one whose first prompt is longer than a row.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = AgentConfig(
            name="bench",
            sources={"train": str(data or play_experts(folder))},
            tokenizer=str(tokenizer or BASE_FOLDER),
            max_length=length,
            splits=(),
            won_only=False,
            no_thought="direct",
        )
        started = time.perf_counter()
        source = prepare_dataset(config, folder / "dataset").as_data_source(split="train")
        write_s = time.perf_counter() - started
        lengths = example_lengths(source)
        figures = {"written/s": float(lengths.sum() / write_s)}
        print(
            f"{len(source):,} examples of {lengths.min():,} to {lengths.max():,} tokens, "
            f"{lengths.mean():,.0f} on average; encoded and written at "
            f"{figures['written/s']:,.0f} tokens/s"
        )
        figures |= _fillings(lengths, length)
        figures |= _speeds(source, length, batch, seconds)
    return figures


def _fillings(lengths: np.ndarray, length: int) -> dict[str, float]:
    figures = {}
    for row_length in sorted({*LENGTHS, length}):
        if row_length >= lengths.max():
            packing = Packing(lengths, row_length, seed=0)
            figures[f"filling at {row_length}"] = packing.filling
            examples = len(lengths) / packing.rows
            print(
                f"rows of {row_length:,}: {packing.filling:.1%} filled, "
                f"{examples:.1f} examples a row"
            )
    return figures


def _speeds(source: Sequence[dict], length: int, batch: int, seconds: float) -> dict[str, float]:
    droppings = {"tokens/s": Dropping.of(), "dropping tokens/s": Dropping.of(fraction=0.3)}
    readers = {
        name: iter(batches(source, row_length=length, batch=batch, dropping=dropping, seed=0))
        for name, dropping in droppings.items()
    }
    step, (rows, row_length) = _train_step(next(readers["tokens/s"]))
    measured: dict[str, list[float]] = {name: [] for name in (*droppings, "step tokens/s")}
    for _ in range(_ROUNDS):
        for name, reader in readers.items():
            rate = _rate(reader, droppings[name], seconds / _ROUNDS)
            measured[name].append(batch * length * rate)
        started = time.perf_counter()
        for _ in range(_STEPS):
            step()
        step_s = (time.perf_counter() - started) / _STEPS
        measured["step tokens/s"].append(rows * row_length / step_s)
    figures = {name: median(rates) for name, rates in measured.items()}
    figures["ratio"] = figures["dropping tokens/s"] / figures["step tokens/s"]
    devices = f"{jax.device_count()} {jax.default_backend()} device(s)"
    print(
        f"batches of {batch} rows of {length:,}: {figures['tokens/s']:,.0f} tokens/s, "
        f"with dropping {figures['dropping tokens/s']:,.0f}\n"
        f"the demo model's train step, {rows} rows of {row_length:,} on {devices}: "
        f"{figures['step tokens/s']:,.0f} tokens/s\n"
        f"the pipeline could feed {figures['ratio']:,.0f} of them"
    )
    return figures


def _rate(reader: Iterator[dict], dropping: Dropping, seconds: float) -> float:
    """Return batches a second, without those that were read ahead during the others' turns."""
    for _ in range(_READ_AHEAD):
        next(reader)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        dropped_weights(next(reader), dropping.fraction_at())
        count += 1
    return count / (time.perf_counter() - started)


def _train_step(batch: dict[str, np.ndarray]) -> tuple[Callable[[], None], tuple[int, int]]:
    """Return the demo model's compiled train step on rows cut out of `batch`, and their shape."""
    settings, mesh = default_config().train, make_mesh(1, 1, 1, devices=jax.devices()[:1])
    rows = {
        name: np.resize(array[:, : settings.row_length], (settings.batch, settings.row_length))
        for name, array in batch.items()
    }
    rows = jax.device_put(dropped_weights(rows, 0.0), batch_sharding(mesh))
    config = config_from_hf(BASE_FOLDER)
    _, optimizer = configured(settings)
    with jax.set_mesh(mesh):
        state = init_state(config, optimizer, init_params(config, jax.random.key(0), mesh), mesh)
        objective = make_objective(config, mesh, remat=settings.remat)
        train_step = make_train_step(config, optimizer, state.params, mesh, objective)

    def step() -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = train_step(state, rows)
        jax.block_until_ready(metrics)

    step()
    return step, (settings.batch, settings.row_length)


def play_experts(folder: Path, copies_each: int = _COPIES) -> Path:
    """Make games, let the expert play them, and return the file of its trajectories, repeated."""
    world = load_world("alfworld")
    types = world.task_types
    print(f"making {_GAMES * len(types)} games and playing each {_EPISODES} times", flush=True)
    workers = os.cpu_count() or 1
    counts = {"train": dict.fromkeys(types, _GAMES)}
    games = world.make_games(folder / "games", counts, seed=0, workers=workers)
    settings = Collecting("expert", seed=0, episodes_per_game=_EPISODES)
    collect(world, games, folder / "played.jsonl", settings, workers=workers)

    def copies() -> Iterator[Trajectory]:
        for copy in range(copies_each):
            for trajectory in read_trajectories(folder / "played.jsonl"):
                yield replace(trajectory, id=f"{trajectory.id}/{copy}")

    write_trajectories(folder / "copies.jsonl", copies())
    return folder / "copies.jsonl"
