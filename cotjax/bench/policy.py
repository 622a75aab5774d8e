"""`cotjax bench policy`: what trees save of one row a step, and what the policy's loss costs.

The rows of both train steps are the same: episodes as trees. The supervised step trains on their
responses; the policy step has also advantages, ratios, a KL term and entropies.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import jax
import numpy as np
import optax

from cotjax.assets import BASE_FOLDER
from cotjax.bench.data import play_experts
from cotjax.config import default_config
from cotjax.data.codec import Codec
from cotjax.data.rollouts import PlayedExample, played_examples, policy_rows
from cotjax.data.tokens import TokenExample, trajectory_examples
from cotjax.data.trajectories import read_trajectories
from cotjax.errors import DataError
from cotjax.masking import RESPONSE_ROLES, Dropping
from cotjax.model.config import ModelConfig
from cotjax.model.kernels import kernel_for
from cotjax.model.params import init_params
from cotjax.model.sharding import batch_sharding, make_mesh
from cotjax.objectives.objective import Objective
from cotjax.objectives.policy import Policy
from cotjax.objectives.supervised import make_objective
from cotjax.rl.records import turns_of
from cotjax.rl.rollouts import read_rollouts
from cotjax.rl.update import score_program, scored_fields
from cotjax.train.optim import configured
from cotjax.train.step import BATCH_FIELDS, init_state, make_train_step
from cotjax.weights.hf_config import config_from_hf

Batch = dict[str, np.ndarray]


def benchmark(
    rollouts: Path | None = None,
    *,
    model: Path | None = None,
    template: str = "chatml",
    length: int = 2048,
    batch: int = 8,
    rounds: int = 5,
) -> dict[str, float]:
    """Measure; prints and returns the figures.

    Figures are "episodes", "steps", "tree tokens", "row tokens" (of one row a step) and "saving",
    the second over the first; the median seconds "policy step", "sft step" and "score" (log-
    probabilities alone, as of the reference), and "ratio", the first over the second.

    Args:
      rollouts: a step's file of `cotjax rl`; None: experts play made games.
      model: folder of the model, whose weights are random, and of its tokenizer; None: the shipped
        base.
      template: turn template of the model.
      length, batch: tokens a row, rows a step.
      rounds: how often each program runs; they take turns.

    Raises:
      DataError: the file does not hold the rollouts of a step, or nothing fits into rows.
    """
    folder = model or BASE_FOLDER
    codec = Codec.load(folder, template)
    trees = _of_rollouts(rollouts, codec, length) if rollouts else _of_experts(codec, length)
    figures = savings(trees)
    print(
        f"{figures['episodes']:,.0f} episodes of {figures['steps'] / figures['episodes']:.1f} "
        f"steps: {figures['tree tokens']:,.0f} tokens as trees, {figures['row tokens']:,.0f} as "
        f"one row a step: {figures['saving']:.2f} times as many"
    )
    rows = _rows(trees, length, batch)
    figures |= _times(config_from_hf(folder), rows, rounds)
    print(
        f"rows of {length:,}, {batch} a step: policy step {figures['policy step']:.3f} s, SFT step "
        f"of the same rows {figures['sft step']:.3f} s, ratio {figures['ratio']:.2f}; "
        f"log-probabilities alone {figures['score']:.3f} s"
    )
    return figures


def savings(trees: Sequence[TokenExample]) -> dict[str, float]:
    """Return how many tokens trees have, and how many one row a step of the same has.

    A step's own row holds all that its last token attends to.
    """
    tree_tokens = sum(len(tree.ids) for tree in trees)
    row_tokens = 0
    for tree in trees:
        for branch in np.unique(tree.branches[tree.branches > 0]):
            row_tokens += int(tree.positions[tree.branches == branch].max()) + 1
    return {
        "episodes": len({tree.id for tree in trees}),
        "steps": sum(len(tree.steps) for tree in trees),
        "tree tokens": tree_tokens,
        "row tokens": row_tokens,
        "saving": row_tokens / tree_tokens,
    }


def _of_experts(codec: Codec, length: int) -> list[PlayedExample]:
    with tempfile.TemporaryDirectory() as name:
        trajectories = list(read_trajectories(play_experts(Path(name), copies_each=1)))
    rng = np.random.default_rng(0)
    made = []
    for trajectory in trajectories:
        advantage = rng.normal()
        for tree in trajectory_examples(codec, trajectory, "cot", length):
            sampled = np.isin(tree.roles, RESPONSE_ROLES).astype(np.float32)
            noise = rng.uniform(-2, 0, len(sampled)).astype(np.float32)
            made.append(
                PlayedExample(
                    **vars(tree),
                    log_probs=noise * sampled,
                    sampled=sampled,
                    advantages=np.float32(advantage) * sampled,
                )
            )
    return made


def _of_rollouts(file: Path, codec: Codec, length: int) -> list[PlayedExample]:
    found = read_rollouts(file, default_config().rl)
    rng = np.random.default_rng(0)
    made: list[PlayedExample] = []
    for play, episode in zip(found.plays, found.episodes, strict=True):
        turns = turns_of(episode, codec)
        made += played_examples(codec, play.name, turns, [rng.normal()] * len(turns), length)
    return made


def _rows(trees: Sequence[PlayedExample], length: int, batch: int) -> Batch:
    """Return `batch` full rows of the episodes, repeated where they are too few."""
    plays: dict[str, list[PlayedExample]] = {}
    for tree in trees:
        plays.setdefault(tree.id, []).append(tree)
    steps = {name: sum(len(tree.steps) for tree in own) for name, own in plays.items()}
    if not plays:
        raise DataError(f"no step fits into a row of {length} tokens; give a larger --length")
    made = policy_rows(
        plays, steps, row_length=length, multiple=1, dropping=Dropping.of(), update=0
    ).batch
    # The fullest rows: padding costs both steps the same, and says nothing.
    fullest = np.argsort(-(made["segment_ids"] > 0).sum(1), kind="stable")
    return {
        name: np.resize(array[fullest], (batch, *array.shape[1:])) for name, array in made.items()
    }


def _times(model: ModelConfig, rows: Batch, rounds: int) -> dict[str, float]:
    """Return the median seconds of each program, which take turns, and their ratio."""
    settings, mesh = default_config().train, make_mesh(1, 1, 1, devices=jax.devices()[:1])
    _, optimizer = configured(settings, model)
    policy = Policy(kl=0.01)
    with jax.set_mesh(mesh):
        objectives = {
            "policy step": ("policy", policy.make(model, mesh, remat=settings.remat)),
            "sft step": ("supervised", make_objective(model, mesh, remat=settings.remat)),
        }
        runs: dict[str, Callable[[], object]] = {}
        for name, (kind, objective) in objectives.items():
            runs[name] = _steps(model, optimizer, mesh, rows, kind, objective)
        params = init_params(model, jax.random.key(0), mesh)
        program = score_program(model, mesh, kernel=kernel_for(model, mesh, "auto"))
        scored = jax.device_put(scored_fields(rows), batch_sharding(mesh))
        runs["score"] = lambda: program(params, scored)
        found: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds + 1):
            for name, run in runs.items():
                started = time.perf_counter()
                jax.block_until_ready(run())
                # The first call compiles.
                found[name] += [time.perf_counter() - started] if number else []
    seconds = {name: median(each) for name, each in found.items()}
    return seconds | {"ratio": seconds["policy step"] / seconds["sft step"]}


def _steps(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    rows: Batch,
    kind: str,
    objective: Objective,
) -> Callable[[], object]:
    """Return what makes one update after another on the same rows."""
    state = init_state(model, optimizer, init_params(model, jax.random.key(0), mesh), mesh)
    step = make_train_step(model, optimizer, state.params, mesh, objective, kind=kind)
    own = {name: x for name, x in rows.items() if kind == "policy" or name in BATCH_FIELDS}
    batch = jax.device_put(own, batch_sharding(mesh))

    def run() -> object:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return run
