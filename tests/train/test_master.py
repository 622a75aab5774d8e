"""bfloat16 parameters with a float32 copy in the optimizer's state: small updates add up."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.training import make_source, params_at, run, settings
from jax.sharding import AbstractMesh, AxisType

from cotjax.data.pipeline import batches, dropped_weights
from cotjax.masking import Dropping
from cotjax.model.config import LoRA
from cotjax.model.params import abstract_params, init_params, param_shardings, split_params
from cotjax.model.sharding import MESH_AXES, batch_sharding, make_mesh
from cotjax.objectives.supervised import make_objective
from cotjax.train.checkpoint import Checkpoints
from cotjax.train.optim import Mastered, configured, make_optimizer, needs_master
from cotjax.train.step import abstract_state, init_state, make_train_step, state_shardings

NARROW = tiny.model_config(vocab_size=64, layers=1, param_dtype="bfloat16")
WIDE = replace(NARROW, param_dtype="float32")
ADAM = {"b1": 0.9, "b2": 0.98, "weight_decay": 0.0, "clip_norm": 1.0}
UPDATES = 40


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(source):
    """Name -> states after 0 and UPDATES updates of 1e-5, from equal numbers on one batch."""
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    batch = dropped_weights(
        next(iter(batches(source, row_length=96, batch=8, dropping=Dropping.of(), seed=3))), 0.0
    )
    batch = jax.device_put(batch, batch_sharding(mesh))
    first = jax.tree.map(np.asarray, init_params(NARROW, jax.random.key(0)))
    found = {}
    for name, model in (("float32", WIDE), ("copy", NARROW)):
        optimizer = make_optimizer(lambda step: 1e-5, **ADAM, master=needs_master(model))
        params = jax.tree.map(lambda x, model=model: jnp.asarray(x.astype(model.params_as)), first)
        state = init_state(model, optimizer, params, mesh)
        before = jax.tree.map(np.array, state)
        step = make_train_step(model, optimizer, params, mesh, make_objective(model, mesh))
        for _ in range(UPDATES):
            state, metrics = step(state, batch)
        assert np.isfinite(metrics["loss"])
        found[name] = before, jax.tree.map(np.array, state)
    return found


def _flat(tree):
    return np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(tree)])


def test_many_small_updates_follow_the_float32_run(trained):
    wide = _flat(trained["float32"][1].params) - _flat(trained["float32"][0].params)
    assert (np.abs(wide) > 1e-4).mean() > 0.5, "forty updates of 1e-5 add up"
    copied = _flat(trained["copy"][1].opt_state.master) - _flat(trained["copy"][0].opt_state.master)
    off = np.linalg.norm(copied - wide) / np.linalg.norm(wide)
    assert off < 0.1, off
    # Of the norms' scales too, none of which bfloat16 alone would move: near 1 its numbers are at
    # least 0.004 apart.
    assert (trained["copy"][1].opt_state.master["model"]["norm"]["weight"] != 1).all()


def test_the_parameters_are_the_copy_rounded(trained):
    for state in trained["copy"]:
        assert isinstance(state.opt_state, Mastered)
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
        floats = {
            leaf.dtype
            for leaf in jax.tree.leaves(state.opt_state)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        }
        assert floats == {np.dtype(np.float32)}, "the copy and Adam's moments"
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.opt_state.master)
        jax.tree.map(np.testing.assert_array_equal, rounded, state.params)
    moved = _flat(trained["copy"][1].params) != _flat(trained["copy"][0].params)
    assert moved.mean() > 0.5


def test_float32_parameters_have_no_copy_nor_have_adapters():
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    adapted = replace(NARROW, lora=LoRA(2, 4.0, r".*_proj"))
    for model, copied in ((NARROW, True), (WIDE, False), (adapted, False)):
        _, optimizer = configured(settings(), model)
        state = abstract_state(model, optimizer, mesh)
        assert isinstance(state.opt_state, Mastered) == copied
        trained, _ = split_params(model, state.params)
        sizes = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) / sum(
            leaf.size for leaf in jax.tree.leaves(trained)
        )
        assert round(sizes, 1) == (3 if copied else 2)


def test_the_copy_lies_as_its_parameters_do():
    mesh = AbstractMesh((2, 2, 2), MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    _, optimizer = configured(settings(), NARROW)
    placed = state_shardings(NARROW, optimizer, abstract_params(NARROW), mesh)
    expected = param_shardings(NARROW, mesh)
    assert placed.opt_state.master == expected == placed.params
    assert any(axis is not None for sharding in jax.tree.leaves(expected) for axis in sharding.spec)


def _run(folder, source, **changes):
    sizes = {"steps": 6, "save_every": 3, "batch": 4, "row_length": 96}
    rates = {"learning_rate": 1e-4, "warmup": 1}
    return run(
        folder,
        source,
        model=NARROW,
        make_params=lambda mesh: init_params(NARROW, jax.random.key(0), mesh),
        **sizes | rates | changes,
    )


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(source, tmp_path):
    whole = _run(tmp_path / "whole", source)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    resumed = tmp_path / "resumed" / "checkpoints"
    shutil.rmtree(resumed / "6")
    _run(tmp_path / "resumed", source)
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    like = abstract_state(NARROW, configured(settings(), NARROW)[1], mesh)
    states = []
    for folder in (whole, resumed):
        checkpoints = Checkpoints(folder)
        states.append(checkpoints.restore(6, like)[0])
        checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, *states)
    # What is evaluated and exported are the bfloat16 parameters alone.
    jax.tree.map(
        np.testing.assert_array_equal,
        params_at(resumed, 6, NARROW),
        jax.tree.map(np.asarray, states[0].params),
    )
