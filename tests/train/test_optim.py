"""The optimizer against Adam written out in numpy, and which parameters it spares."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny
from ml_collections import ConfigDict

from cotjax.config import default_config
from cotjax.errors import UsageError
from cotjax.model.config import LoRA
from cotjax.model.params import abstract_params, declared
from cotjax.train.optim import (
    Mastered,
    configured,
    is_vector,
    learning_rate_schedule,
    make_optimizer,
    needs_master,
)

PARAMS = {"matrix": jnp.ones((3, 3)), "scale": jnp.ones(3)}
GRADS = {"matrix": jnp.full((3, 3), 0.1), "scale": jnp.full(3, 0.1)}
QWEN25 = tiny.model_config(qk_norm=False, qkv_bias=True, layers=1)


def _update(**changes):
    settings = {"b1": 0.9, "b2": 0.98, "weight_decay": 0.0, "clip_norm": 0.0} | changes
    optimizer = make_optimizer(lambda step: 0.01, **settings)
    return optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)[0]


def test_vectors_move_by_their_own_rate_and_matrices_do_not():
    plain, faster = _update(), _update(vector_rate=10.0)
    np.testing.assert_allclose(faster["scale"], 10 * plain["scale"], rtol=1e-6)
    np.testing.assert_array_equal(faster["matrix"], plain["matrix"])


def test_weight_decay_spares_vectors():
    plain, decayed = _update(), _update(weight_decay=0.1)
    np.testing.assert_array_equal(decayed["scale"], plain["scale"])
    assert (decayed["matrix"] < plain["matrix"]).all()


def _settings(**changes) -> ConfigDict:
    values = default_config().train
    values.update(
        {
            "steps": 6,
            "warmup": 2,
            "schedule": "linear",
            "learning_rate": 0.01,
            "b1": 0.8,
            "b2": 0.99,
            **changes,
        }
    )
    return values


def _by_hand(settings, params, grads_of_steps):
    """Adam (Kingma and Ba, 2015) with decoupled decay (Loshchilov and Hutter, 2019), in float64."""
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    first, second = (
        {name: np.zeros_like(value) for name, value in params.items()} for _ in range(2)
    )
    peak, warmup, rest = settings.learning_rate, settings.warmup, settings.steps - settings.warmup
    for step, grads in enumerate(grads_of_steps):
        rate = peak * step / warmup if step < warmup else peak * (1 - 0.9 * (step - warmup) / rest)
        norm = np.sqrt(sum((np.asarray(grad, np.float64) ** 2).sum() for grad in grads.values()))
        shrink = min(1.0, settings.clip_norm / norm) if settings.clip_norm else 1.0
        for name, param in params.items():
            grad = np.asarray(grads[name], np.float64) * shrink
            first[name] = settings.b1 * first[name] + (1 - settings.b1) * grad
            second[name] = settings.b2 * second[name] + (1 - settings.b2) * grad**2
            unbiased = (
                first[name] / (1 - settings.b1 ** (step + 1)),
                second[name] / (1 - settings.b2 ** (step + 1)),
            )
            vector = param.ndim == 1
            change = (
                unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
                + (0.0 if vector else settings.weight_decay) * param
            )
            params[name] = param - rate * change * (settings.vector_rate if vector else 1.0)
    return params


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_norm": 0.0},
        {"clip_norm": 0.5},
        {"clip_norm": 0.5, "weight_decay": 0.3, "vector_rate": 4.0},
        {"b1": 0.0},
        {"b2": 0.5},
    ],
    ids=str,
)
def test_updates_are_those_of_adam_by_hand(changes):
    """With gradient norms from 0.02 to 20, clipping, its place, and swapped b1, b2 matter."""
    settings = _settings(**changes)
    draw = np.random.default_rng(0)
    params = {
        "matrix": draw.normal(size=(3, 4)).astype(np.float32),
        "scale": draw.normal(size=5).astype(np.float32),
    }
    sizes = (5, 0.005, 1, 0.2, 0.05)
    grads = [
        {name: np.float32(size * draw.normal(size=value.shape)) for name, value in params.items()}
        for size in sizes
    ]
    _, optimizer = configured(settings)
    moved, state = jax.tree.map(jnp.asarray, params), None
    state = optimizer.init(moved)
    for grad in grads:
        updates, state = optimizer.update(grad, state, moved)
        moved = optax.apply_updates(moved, updates)
    expected = _by_hand(settings, params, grads)
    for name in params:
        assert np.abs(expected[name] - params[name]).max() > 5e-3
        np.testing.assert_allclose(moved[name], expected[name], atol=2e-6)


def test_a_clipped_update_is_that_of_the_shorter_gradient():
    """Over two steps, for the first of Adam's is the same whatever the gradient's length."""

    def after(scale, clip_norm):
        optimizer = make_optimizer(
            lambda step: 0.01, b1=0.9, b2=0.98, weight_decay=0.0, clip_norm=clip_norm
        )
        state = optimizer.init(PARAMS)
        for factor in (1.0, scale):
            updates, state = optimizer.update(
                jax.tree.map(lambda x, factor=factor: factor * x, GRADS), state, PARAMS
            )
        return updates

    norm = float(optax.tree.norm(GRADS))
    np.testing.assert_allclose(after(100.0, norm)["matrix"], after(1.0, 0.0)["matrix"], rtol=1e-5)
    assert (np.abs(after(100.0, norm)["matrix"] - after(100.0, 0.0)["matrix"]) > 1e-4).all()


@pytest.mark.parametrize(
    "model",
    [tiny.model_config(), QWEN25, tiny.model_config(lora=LoRA(2, 4.0, ".*proj"))],
    ids=["3", "2.5", "lora"],
)
def test_vectors_are_norms_and_biases_by_their_declaration(model):
    """A matrix maps a space to another: its axes hold the model's width or an adapter's rank."""
    for path, weight in declared(model).items():
        assert is_vector(path, len(weight.shape)) == (not {"embed", "rank"} & set(weight.axes)), (
            path
        )


def test_biases_of_heads_are_vectors():
    """They have two axes, [heads, size]: spared by decay, and moved at the rate of vectors."""
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), abstract_params(QWEN25))
    assert params["model"]["layers"]["0"]["self_attn"]["q_proj"]["bias"].ndim == 2

    def updates(grad, **changes):
        _, optimizer = configured(_settings(warmup=0, clip_norm=0.0, **changes), QWEN25)
        grads = jax.tree.map(lambda x: np.full_like(x, grad), params)
        found = jax.jit(
            lambda grads, params: optimizer.update(grads, optimizer.init(params), params)[0]
        )(grads, params)
        return {
            ".".join(key.key for key in path): np.asarray(leaf)
            for path, leaf in jax.tree.leaves_with_path(found)
        }

    decayed, plain, faster = (
        updates(0.0, weight_decay=0.1),
        updates(1.0),
        updates(1.0, vector_rate=3.0),
    )
    biases = [name for name in plain if name.endswith("bias")]
    assert len(biases) == 3 * QWEN25.layers
    for name in plain:
        vector = name.endswith(("bias", "norm.weight"))
        np.testing.assert_allclose(
            decayed[name], 0.0 if vector else -0.001, rtol=1e-5, err_msg=name
        )
        np.testing.assert_allclose(
            faster[name], (3 if vector else 1) * plain[name], rtol=1e-5, err_msg=name
        )


def test_the_schedule_warms_up_and_ends_at_a_tenth():
    for name, middle in (("constant", 1.0), ("linear", 0.55), ("cosine", 0.55)):
        schedule = learning_rate_schedule(peak=1.0, steps=100, warmup=10, schedule=name)
        assert (
            float(schedule(0)) == 0.0
            and float(schedule(5)) == pytest.approx(0.5)
            and float(schedule(10)) == pytest.approx(1.0)
        )
        assert float(schedule(55)) == pytest.approx(middle, abs=0.01)
        assert float(schedule(100)) == pytest.approx(1.0 if name == "constant" else 0.1, abs=1e-6)


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(UsageError, match=r"train\.warmup"):
        learning_rate_schedule(peak=1.0, steps=10, warmup=10, schedule="cosine")


@pytest.mark.parametrize(
    ("dtype", "adapters", "copied"),
    [
        ("float32", None, False),
        ("bfloat16", None, True),
        ("bfloat16", LoRA(2, 4.0, ".*proj"), False),
    ],
    ids=str,
)
def test_parameters_get_a_float32_copy_where_training_changes_narrower_ones(
    dtype, adapters, copied
):
    model = tiny.model_config(layers=1, param_dtype=dtype, lora=adapters)
    assert needs_master(model) == copied
    _, optimizer = configured(_settings(), model)
    state = jax.eval_shape(optimizer.init, PARAMS)
    assert isinstance(state, Mastered) == copied
