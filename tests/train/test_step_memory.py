"""What a compiled train step asks for, by what its backward pass keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from cotjax.model import decoder
from cotjax.model.sharding import make_mesh
from cotjax.train.optim import make_optimizer
from cotjax.train.step import BATCH_FIELDS, init_state, make_train_step


def _temporary_bytes(remat: str) -> int:
    config = tiny.model_config(layers=8, width=64, feed_forward=192)
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(optax.constant_schedule(1e-3), b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=0.0)
    params = decoder.abstract_params(config)
    state = jax.eval_shape(lambda: init_state(config, optimizer, decoder.init_params(config, jax.random.key(0)), mesh))
    kinds = dict.fromkeys(BATCH_FIELDS, jnp.int32) | dict.fromkeys(("weights", "budget"), np.float32)
    batch = {name: jax.ShapeDtypeStruct((8, 256), kind) for name, kind in kinds.items()}
    step = make_train_step(config, optimizer, params, mesh, remat=remat)
    return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes


def test_remat_saves_memory():
    """Eight layers that keep everything, projections, or only their input and attention: the compiler must not undo it."""
    none, dots, block = (_temporary_bytes(remat) for remat in ("none", "dots", "block"))
    assert dots < 0.8 * none
    assert block < 0.5 * none
