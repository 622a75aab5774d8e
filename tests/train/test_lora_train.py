"""Training with LoRA: adapters move, the base does not, and nothing is computed or kept for it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from helpers.training import LORA_MODEL as MODEL
from helpers.training import MODEL as BASE
from helpers.training import init_lora_params as make_params
from helpers.training import make_source, params_at
from helpers.training import run_lora as run
from jax.extend.core import jaxprs_in_params

from cotjax.data.pipeline import batches, dropped_weights
from cotjax.masking import Dropping
from cotjax.model.params import init_params, join_params, split_params
from cotjax.model.sharding import batch_sharding, make_mesh
from cotjax.objectives.supervised import make_objective, supervised
from cotjax.train.metrics import read_metrics
from cotjax.train.step import init_state, make_train_step

OPTIMIZER = optax.adamw(1e-2)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def begun(source):
    """(state before the first step, step, batch)"""
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    state = init_state(MODEL, OPTIMIZER, make_params(mesh), mesh)
    batch = dropped_weights(
        next(iter(batches(source, row_length=128, batch=8, dropping=Dropping.of(), seed=3))), 0.0
    )
    batch = jax.device_put(batch, batch_sharding(mesh))
    return (
        state,
        make_train_step(
            MODEL, OPTIMIZER, state.params, mesh, make_objective(MODEL, mesh, remat="block")
        ),
        batch,
    )


def test_the_optimizer_keeps_state_for_adapters_alone(begun):
    state, _, _ = begun
    adapters, _ = split_params(MODEL, state.params)
    moments = state.opt_state[0]
    assert len(jax.tree.leaves(moments.mu)) == MODEL.layers * 7 * 2
    assert (
        jax.tree.structure(moments.mu)
        == jax.tree.structure(moments.nu)
        == jax.tree.structure(adapters)
    )
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) < 2.1 * sum(
        x.size for x in jax.tree.leaves(adapters)
    )


def test_no_matmul_of_the_step_makes_a_frozen_weights_gradient(begun):
    """A [D, F] weight's gradient is a matmul of its shape; without LoRA the search finds them."""

    def results(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield frozenset(equation.outvars[0].aval.shape)
            for inner in jaxprs_in_params(equation.params):
                yield from results(inner)

    weight = frozenset((MODEL.width, MODEL.feed_forward))
    state, step, batch = begun
    assert weight not in set(results(step.trace(state, batch).jaxpr.jaxpr))
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    whole = init_state(BASE, OPTIMIZER, init_params(BASE, jax.random.key(0)), mesh)
    step_of_all = make_train_step(
        BASE, OPTIMIZER, whole.params, mesh, make_objective(BASE, mesh, remat="block")
    )
    assert weight in set(results(step_of_all.trace(whole, batch).jaxpr.jaxpr))


def test_three_steps_move_every_adapter_and_no_weight(begun):
    state, step, batch = begun
    state = jax.tree.map(lambda x: x.copy(), state)
    adapters, frozen = jax.tree.map(np.array, split_params(MODEL, state.params))
    buffers = [
        x.unsafe_buffer_pointer() for x in jax.tree.leaves(split_params(MODEL, state.params)[1])
    ]
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    moved, same = split_params(MODEL, state.params)
    jax.tree.map(np.testing.assert_array_equal, same, frozen)
    assert all(
        jax.tree.leaves(
            jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != b)), moved, adapters)
        )
    )
    assert losses[2] < losses[0]
    assert [x.unsafe_buffer_pointer() for x in jax.tree.leaves(same)] == buffers, (
        "donated weights go through without a copy"
    )


def test_the_gradient_norm_is_the_adapters(begun):
    state, step, batch = begun

    def loss(adapters, frozen):
        total, weight = supervised(MODEL, join_params(MODEL, adapters, frozen), batch)["loss"]
        return total / weight

    expected = optax.tree.norm(jax.jit(jax.grad(loss))(*split_params(MODEL, state.params)))
    _, metrics = step(jax.tree.map(lambda x: x.copy(), state), batch)
    np.testing.assert_allclose(metrics["grad_norm"], expected, rtol=1e-5)


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    """(folder, last parameters) of a run of four steps on one device."""
    folder = tmp_path_factory.mktemp("one")
    return folder, params_at(run(folder, source, steps=4, save_every=2), 4, MODEL)


def test_a_run_learns_and_keeps_its_base(finished):
    folder, last = finished
    rows = read_metrics(folder / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"]
    base = init_params(BASE, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, split_params(MODEL, last)[1], base)


def test_stopped_and_resumed_equals_uninterrupted(finished, source, tmp_path):
    folder, last = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    jax.tree.map(
        np.testing.assert_array_equal,
        params_at(run(tmp_path, source, steps=4, save_every=2), 4, MODEL),
        last,
    )


def test_a_batch_in_parts_makes_the_step_of_the_whole_batch(finished, source, tmp_path):
    parts = params_at(run(tmp_path, source, steps=4, save_every=2, accumulate=4), 4, MODEL)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), parts, finished[1])


SHARDED = """
import sys
sys.path[:0] = sys.argv[3:]
import jax
jax.config.update("jax_num_cpu_devices", 8)
from pathlib import Path
from helpers.training import make_source, run_lora as run
import json
shape = json.loads(sys.argv[2])
folder = Path(sys.argv[1])
run(folder, make_source(folder / "data"), steps=4, save_every=2, mesh_shape=shape)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [{"data": 1, "fsdp": 8, "tensor": 1}, {"data": 2, "fsdp": 2, "tensor": 2}],
    ids=["fsdp", "2x2x2"],
)
def test_eight_devices_give_the_losses_of_one(finished, tmp_path, shape):
    here = Path(__file__).parent
    command = [
        sys.executable,
        "-c",
        SHARDED,
        str(tmp_path),
        json.dumps(shape),
        str(here),
        str(here.parent),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    folder, last = finished
    one, eight = (
        [row["loss"] for row in read_metrics(where / "metrics.jsonl")]
        for where in (folder, tmp_path)
    )
    np.testing.assert_allclose(eight, one, rtol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
        params_at(tmp_path / "checkpoints", 4, MODEL),
        last,
    )
