"""Run by test_two_devices.py in a process with two CPU devices: losses of two updates."""

import jax
import numpy as np
from helpers import tiny, training

from cotjax.model.params import init_params
from cotjax.model.sharding import make_mesh
from cotjax.objectives.supervised import make_objective
from cotjax.train.optim import configured
from cotjax.train.step import BATCH_FIELDS, init_state, make_train_step

ROWS, LENGTH = 4, 32


def losses(model, devices):
    """Return the losses of two updates on `devices` devices."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    _, optimizer = configured(training.settings(warmup=0), model)
    ids = np.random.default_rng(0).integers(1, 64, (ROWS, LENGTH))
    ones = np.ones((ROWS, LENGTH))
    fields = {
        "ids": ids,
        "targets": np.roll(ids, -1, 1),
        "weights": ones,
        "budget": ones[:, :1],
        "roles": 3 * ones,
        "segment_ids": ones,
        "branches": 0 * ones,
        "positions": np.arange(LENGTH)[None].repeat(ROWS, 0),
        "dropped": np.zeros((ROWS, 3)),
    }
    batch = {name: array.astype(BATCH_FIELDS[name]) for name, array in fields.items()}
    with jax.set_mesh(mesh):
        params = init_params(model, jax.random.key(0), mesh)
        state = init_state(model, optimizer, params, mesh)
        step = make_train_step(model, optimizer, params, mesh, make_objective(model, mesh))
        found = []
        for _ in range(2):
            state, metrics = step(state, batch)
            found.append(float(metrics["loss"]))
    return found


if __name__ == "__main__":
    model = tiny.model_config(
        vocab_size=64, layers=1, param_dtype="bfloat16", compute_dtype="bfloat16"
    )
    one, two = losses(model, 1), losses(model, 2)
    np.testing.assert_allclose(one, two, rtol=1e-2)
    assert one[1] < one[0]
