"""Plain forms and a CPU's compute the same; which one a program has follows its devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from cotjax.model import cache as kv
from cotjax.model import decoder, platform
from cotjax.model.attention import hidden_bias
from cotjax.model.cache_layouts import layout_of
from cotjax.model.config import LoRA
from cotjax.model.params import init_params
from cotjax.model.sharding import make_mesh
from cotjax.sample.sampling import NO_ID, Sampling, choose

ROWS = tuple(
    jnp.array(row)
    for row in (
        [[5, 9, 2, 7, 1, 3, 8, 4]],
        [[0, 1, 2, 2, 3, 0, 1, 0]],
        [[1, 1, 1, 1, 1, 2, 2, 0]],
        [[0, 0, 1, 0, 0, 0, 0, 0]],
    )
)


@pytest.fixture
def plain(monkeypatch):
    """Make this machine's forms the plain ones, in what is traced from here on."""
    return lambda: monkeypatch.setattr(platform, "FORMS", {})


def test_logits_and_gradients_are_the_same_in_both_forms(plain):
    config = tiny.model_config(qkv_bias=True, lora=LoRA(2, 4.0, r".*(q|o)_proj"))
    params = init_params(config, jax.random.key(0))

    def computed():
        def loss(params):
            logits = decoder.logits(config, params, decoder.hidden_states(config, params, *ROWS))
            return (logits**2).mean(), logits

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    cpu = computed()
    plain()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), cpu, computed())


def test_a_decode_step_is_the_same_in_both_forms(plain):
    config = tiny.model_config()
    params = init_params(config, jax.random.key(0))

    def computed():
        cache = kv.empty(config, 2, 16, 4, layout_of(config, tiny.mesh()))
        cache, hidden = jax.jit(lambda *x: kv.prefill(config, params, *x))(
            cache,
            jnp.zeros((2, config.width)),
            jnp.array([[5, 9, 2], [4, 1, 0]]),
            jnp.array([3, 2]),
        )
        again = jax.jit(lambda *x: kv.step(config, params, *x))(
            cache, jnp.array([1, 2]), jnp.int32(0)
        )
        return hidden, again[1]

    cpu = computed()
    plain()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), cpu, computed())


def test_the_first_of_the_largest_is_chosen_in_both_forms(plain):
    logits = jnp.array([[1.0, 3.0, 3.0, 0.0], [-jnp.inf] * 4, [jnp.nan, 1.0, 2.0, 0.0]])
    scalars = Sampling().scalars()

    def chosen():
        seeds, index = jnp.zeros((3, 2), jnp.uint32), jnp.zeros(3, jnp.int32)
        return np.asarray(jax.jit(lambda x: choose(x, scalars, seeds, index)[0])(logits)).tolist()

    assert chosen() == [1, NO_ID, NO_ID]
    plain()
    assert chosen() == [1, NO_ID, NO_ID]


def test_a_program_has_the_forms_of_its_devices_wherever_it_is_traced():
    """A plan traces for a TPU on a machine that has none."""
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1]).abstract_mesh
    device = type(mesh.abstract_device)(device_kind="TPU v5e", num_cores=1, platform="tpu")
    elsewhere = mesh.update(abstract_device=device)
    seen = jax.ShapeDtypeStruct((2, 3), bool)

    def barriers():
        return str(jax.make_jaxpr(lambda x: hidden_bias(x))(seen)).count("optimization_barrier")

    assert (platform.platform_here(), barriers()) == (jax.default_backend(), 1)
    with jax.sharding.use_abstract_mesh(elsewhere):
        assert (platform.platform_here(), barriers()) == ("tpu", 0)
