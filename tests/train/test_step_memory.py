"""What a compiled train step asks for, by what its backward pass keeps."""

import jax
import optax
import pytest
from helpers import tiny

from cotjax.model.sharding import make_mesh
from cotjax.objectives.supervised import make_objective
from cotjax.train.optim import make_optimizer
from cotjax.train.step import abstract_batch, abstract_state, make_train_step


def _temporary_bytes(remat: str) -> int:
    config = tiny.model_config(layers=8, width=64, feed_forward=192)
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(
        optax.constant_schedule(1e-3), b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=0.0
    )
    state = abstract_state(config, optimizer, mesh)
    step = make_train_step(
        config, optimizer, state.params, mesh, make_objective(config, mesh, remat=remat)
    )
    return step.lower(state, abstract_batch(8, 256)).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_remat_saves_memory():
    """Eight layers keep everything, projections, or input and attention: the compiler obeys."""
    none, dots, block = (_temporary_bytes(remat) for remat in ("none", "dots", "block"))
    assert dots < 0.8 * none
    assert block < 0.5 * none
