"""Run by test_two_devices.py with two CPU devices: objectives over rows that both share."""

import jax
import numpy as np
import optax
from helpers import tiny

from cotjax.model.params import init_params
from cotjax.model.sharding import make_mesh
from cotjax.objectives.frodo import Frodo
from cotjax.objectives.policy import Policy
from cotjax.objectives.preference import Preference
from cotjax.train.reference import model_hash
from cotjax.train.step import FIELDS, init_state, make_train_step

ROWS, LENGTH = 4, 32
CONFIG = tiny.model_config(vocab_size=64, layers=1)


def batch_of(kind):
    """Random numbers, whose rows have 1 to 4 pairs or trajectories of all roles."""
    rng = np.random.default_rng(0)
    shape = (ROWS, LENGTH)
    place = np.arange(LENGTH)[None].repeat(ROWS, 0)
    ids = rng.integers(1, 64, shape)
    segments = 1 + place * np.arange(1, ROWS + 1)[:, None] // LENGTH
    number = {name: rng.uniform(-2, 0, shape) for name in ("old", "sampler", "reference")}
    weights = (rng.random(shape) < 0.8) * 1.0
    fields = number | {
        "ids": ids,
        "targets": np.roll(ids, -1, 1),
        "weights": weights * (rng.random(shape) < 0.9),
        "kl_weights": weights,
        "budget": weights.sum(1, keepdims=True),
        "roles": rng.integers(3, 8, shape),
        "segment_ids": segments,
        "branches": 0 * place,
        "positions": place,
        "dropped": np.zeros((ROWS, 3)),
        "pairs": segments,
        "sides": 1 + place % 3,
        "advantages": rng.normal(size=shape),
        "lengths": 1.0 + segments,
        "trajectories": np.ones((ROWS, 1)),
    }
    return {name: fields[name].astype(dtype) for name, dtype in FIELDS[kind].items()}


def after_a_step(spec, devices):
    """Return metrics and parameters, and the hash of the start, on this many devices."""
    mesh, optimizer = make_mesh(devices=jax.devices()[:devices]), optax.sgd(0.1)
    with jax.set_mesh(mesh):
        params = init_params(CONFIG, jax.random.key(0), mesh)
        start = model_hash(CONFIG, params)
        state = init_state(CONFIG, optimizer, params, mesh)
        objective = spec.make(CONFIG, mesh)
        step = make_train_step(CONFIG, optimizer, params, mesh, objective, kind=spec.kind)
        state, metrics = step(state, batch_of(spec.kind))
    return jax.tree.map(np.asarray, (metrics, state.params)), start


if __name__ == "__main__":
    for spec in (Preference(nll=0.1), Frodo(), Policy("trajectory", kl=0.1)):
        one, two = after_a_step(spec, 1), after_a_step(spec, 2)
        assert one[1] == two[1]
        for leaf, twin in zip(*map(jax.tree.leaves, (one[0], two[0])), strict=True):
            np.testing.assert_allclose(leaf, twin, rtol=1e-4, atol=1e-5)
