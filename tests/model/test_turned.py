"""Weights whose output axes come first, as a sampler on a CPU has them (model/fused.py)."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from cotjax.model import cache as kv
from cotjax.model.cache_layouts import Blocks
from cotjax.model.config import LoRA
from cotjax.model.decoder import logits
from cotjax.model.fused import formed, sampled_form
from cotjax.model.linear import APART, TURNED, turned_product
from cotjax.model.params import declared, form_of, init_params, leaf

MODELS = {
    "norms and biases": tiny.model_config(qk_norm=True, qkv_bias=True, kv_heads=4),
    "adapters, bfloat16": replace(
        tiny.model_config(compute_dtype="bfloat16"), lora=LoRA(2, 4.0, ".*")
    ),
}


def _computed(config, params):
    """Read eight tokens of each of two slots, make two more: hidden states and logits."""
    ids = jax.random.randint(jax.random.key(1), (2, 8), 0, config.vocab_size)
    cache = kv.empty(config, 2, 16, 4, Blocks(4))
    start = jnp.zeros((2, config.width), config.compute_as)
    read = jax.jit(lambda *arrays: kv.prefill(config, *arrays))
    step = jax.jit(lambda *arrays: kv.step(config, *arrays))
    cache, hidden = read(params, cache, start, ids, jnp.array([8, 3], jnp.int32))
    found = [hidden]
    for index in range(2):
        cache, hidden = step(params, cache, ids[:, index], jnp.int32(index))
        found += [hidden, logits(config, params, hidden)]
    return [np.asarray(each, np.float32) for each in found]


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_turned_weights_compute_the_same(config):
    params = jax.tree.map(lambda x: 2 * x, init_params(config, jax.random.key(0)))
    if config.lora is not None:  # B is zero at first, which would hide what an adapter adds
        params = jax.tree.map(lambda x: x + 0.1, params)
    assert form_of(params) == APART and sampled_form(config, tiny.mesh()) == TURNED
    expected = _computed(config, params)
    turned = formed(config, tiny.mesh(), jax.tree.map(jnp.copy, params))
    assert form_of(turned) == TURNED
    tolerance = 0.1 if config.compute_dtype == "bfloat16" else 1e-4
    for found, wanted in zip(_computed(config, turned), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


def test_every_projection_is_turned_and_nothing_else():
    config = MODELS["norms and biases"]
    params = init_params(config, jax.random.key(0))
    turned = formed(config, tiny.mesh(), jax.tree.map(jnp.copy, params))
    seen = 0
    for path, weight in declared(config, TURNED).items():
        found = leaf(turned, path)
        assert found.shape == weight.shape
        if path[-1] != "turned":
            np.testing.assert_array_equal(found, leaf(params, path))
            continue
        seen += 1
        given = leaf(params, (*path[:-1], "weight"))
        inputs = 2 if path[-2] == "o_proj" else 1
        rows = int(np.prod(given.shape[:inputs]))
        np.testing.assert_array_equal(
            found.reshape(-1, rows), np.asarray(given).reshape(rows, -1).T
        )
    assert seen == 7 * config.layers


@pytest.mark.parametrize("rows", [1, 128, 129])
def test_few_rows_and_many_have_the_same_product(rows):
    x = jax.random.normal(jax.random.key(0), (rows, 24))
    matrix = jax.random.normal(jax.random.key(1), (40, 24))
    found = jax.jit(turned_product, static_argnums=2)(x, matrix, jnp.float32)
    np.testing.assert_allclose(found, np.asarray(x) @ np.asarray(matrix).T, atol=1e-5)
    # Columns are multiplied where they are few: the compiler must not turn them around.
    program = jax.jit(turned_product, static_argnums=2).lower(x, matrix, jnp.float32).compile()
    assert (f"f32[40,{rows}]" in program.as_text()) == (rows <= 128)
