"""The weighted sum of losses in one pass is the two-pass form's, and so are its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from cotjax.model.sharding import MESH_AXES
from cotjax.objectives.cross_entropy import supervised_cross_entropy
from cotjax.objectives.weighted import weighted_cross_entropy

B, T, D, V = 3, 21, 8, 13


def _arrays(seed, dtype):
    rng = np.random.default_rng(seed)
    hidden, output = (rng.normal(size=size) for size in ((B, T, D), (V, D)))
    weights = np.where(rng.random((B, T)) < 0.6, rng.random((B, T)), 0)
    wide = jnp.promote_types(dtype, jnp.float32)
    return (
        *(jnp.asarray(x, dtype) for x in (hidden, output)),
        jnp.asarray(rng.integers(0, V, (B, T))),
        jnp.asarray(weights, wide),
    )


def _one_pass(hidden, output, targets, weights, chunk):
    return weighted_cross_entropy(hidden, output, targets, weights, chunk)


def _two_passes(hidden, output, targets, weights, chunk):
    losses = supervised_cross_entropy(hidden, output, targets, weights > 0, chunk)
    return (losses * weights).sum(), losses


def _pulled(function, arrays, chunk, scale=1.0):
    """((sum, losses), gradients of scale times the sum)"""

    def total(hidden, output):
        total, losses = function(hidden, output, *arrays[2:], chunk)
        return scale * total, (total, losses)

    (_, found), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(
        *arrays[:2]
    )
    return found, gradients


@pytest.mark.parametrize(
    ("dtype", "near"), [("float64", 1e-12), ("float32", 1e-6), ("bfloat16", 2**-8)]
)
@pytest.mark.parametrize("chunk", [4, 64])
def test_sum_losses_and_gradients_are_those_of_two_passes(dtype, near, chunk):
    with jax.enable_x64(dtype == "float64"):
        arrays = _arrays(0, dtype)
        found, gradients = _pulled(_one_pass, arrays, chunk, 0.25)
        expected, others = _pulled(_two_passes, arrays, chunk, 0.25)
        for one, two in zip((*found, *gradients), (*expected, *others), strict=True):
            assert one.dtype == two.dtype
            one, two = (np.asarray(x, np.float64) for x in (one, two))
            assert np.linalg.norm(one - two) <= near * np.linalg.norm(two)
            # Losses are float32 or wider whatever the operands are.
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-6, atol=1e-6)


def test_without_a_gradient_the_sum_is_the_same_and_returned_losses_are_constants():
    arrays = _arrays(1, "float32")
    found, _ = _pulled(_one_pass, arrays, 8)
    for one, two in zip(_one_pass(*arrays, 8), found, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)
    pull = jax.grad(lambda hidden: _one_pass(hidden, *arrays[1:], 8)[1].sum())(arrays[0])
    assert not pull.any()


@pytest.mark.parametrize("wrong", [jnp.nan, jnp.inf])
def test_what_is_not_finite_at_weight_0_reaches_nothing(wrong):
    hidden, output, targets, _ = _arrays(2, "float32")
    weights = jnp.zeros((B, T)).at[0].set(1.0).at[1, 0].set(2.0)
    here = (weights > 0)[..., None]
    poisoned = (jnp.where(here, hidden, wrong), output, targets, weights)
    clean = (jnp.where(here, hidden, 0), output, targets, weights)
    for one, two in zip(
        jax.tree.leaves(_pulled(_one_pass, poisoned, 8)),
        jax.tree.leaves(_pulled(_one_pass, clean, 8)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)


def test_nothing_supervised_gives_zeros():
    arrays = (*_arrays(3, "float32")[:3], jnp.zeros((B, T)))
    assert not any(x.any() for x in jax.tree.leaves(_pulled(_one_pass, arrays, 8)))


def _matmuls(function, *arrays):
    """The number of dot operations in the compiled program."""
    text = jax.jit(function).lower(*arrays).as_text(dialect="hlo")
    return text.count(" dot(")


def test_logits_are_computed_once_and_a_frozen_projection_has_no_gradient():
    arrays = _arrays(4, "float32")

    def total(hidden, output):
        return _one_pass(hidden, output, *arrays[2:], 8)[0]

    both = jax.grad(total, argnums=(0, 1))
    assert _matmuls(both, *arrays[:2]) == 3, "logits, and a gradient for each operand"
    compiled = jax.jit(jax.grad(total)).lower(*arrays[:2]).compile().as_text()
    assert f"f32[{V},{D}]" in compiled
    carried = [line for line in compiled.splitlines() if " while(" in line]
    assert len(carried) == 1 and carried[0].count(f"f32[{V},{D}]") == 1, "the projection alone"


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 2, 1), (2, 2, 1)])
def test_on_a_mesh_sums_and_gradients_have_the_shapes_of_one_device(sizes):
    """Values: eight_devices.py."""
    mesh = AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    arrays = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            *(((4, 16, D), "float32"), ((V, D), "float32")),
            *(((4, 16), "int32"), ((4, 16), "float32")),
        )
    ]
    loss = lambda *x: _one_pass(*x, 8)  # noqa: E731
    with jax.sharding.use_abstract_mesh(mesh):
        total, losses = jax.eval_shape(loss, *arrays)
        pulled = jax.eval_shape(jax.grad(lambda *x: loss(*x)[0], argnums=(0, 1)), *arrays)
    assert (total.shape, losses.shape) == ((), (4, 16))
    assert [x.shape for x in pulled] == [(4, 16, D), (V, D)]
