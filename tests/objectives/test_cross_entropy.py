import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType

from cotjax.model.sharding import MESH_AXES
from cotjax.objectives.chunks import chunks as chunks_of
from cotjax.objectives.cross_entropy import losses_and_entropies, supervised_cross_entropy
from cotjax.objectives.supervised import masked_cross_entropy

B, T, D, V = 3, 21, 8, 13


def _arrays(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    hidden, output = (jnp.asarray(rng.normal(size=size), dtype) for size in ((B, T, D), (V, D)))
    return (
        hidden,
        output,
        jnp.asarray(rng.integers(0, V, (B, T))),
        jnp.asarray(rng.random((B, T)) < 0.4),
        rng,
    )


def _over_full_logits(hidden, output, targets, supervised):
    logits = jnp.einsum("BTD,VD->BTV", hidden, output, preferred_element_type=jnp.float32)
    return masked_cross_entropy(logits, targets, supervised)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([4, 7, 21, 64]))
def test_losses_and_gradients_are_those_over_full_logits(seed, chunk):
    hidden, output, targets, supervised, rng = _arrays(seed)
    pull = jnp.asarray(rng.normal(size=(B, T)), jnp.float32)

    def of(function):
        def total(hidden, output):
            losses = function(hidden, output)
            return (losses * pull).sum(), losses

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(hidden, output)

    (_, losses), gradients = of(
        lambda h, o: supervised_cross_entropy(h, o, targets, supervised, chunk)
    )
    (_, expected), others = of(lambda h, o: _over_full_logits(h, o, targets, supervised))
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
    assert (np.asarray(losses)[~np.asarray(supervised)] == 0).all()
    for ours, theirs in zip(gradients, others, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [4, 21])
def test_entropies_have_the_gradient_of_those_over_full_logits(chunk):
    hidden, output, targets, supervised, rng = _arrays(7)
    pulls = jnp.asarray(rng.normal(size=(2, B, T)), jnp.float32)

    def pulled(found):
        return sum((each * pull).sum() for each, pull in zip(found, pulls, strict=True))

    def ours(hidden, output):
        return pulled(
            losses_and_entropies(hidden, output, targets, supervised, chunk, gradient=True)
        )

    def full(hidden, output):
        log_p = jax.nn.log_softmax(jnp.einsum("BTD,VD->BTV", hidden, output))
        losses = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
        entropies = -(jnp.exp(log_p) * log_p).sum(-1)
        return pulled(jnp.where(supervised, each, 0) for each in (losses, entropies))

    (one, gradients), (two, others) = (
        jax.value_and_grad(of, argnums=(0, 1))(hidden, output) for of in (ours, full)
    )
    np.testing.assert_allclose(one, two, rtol=1e-5)
    for gradient, other in zip(gradients, others, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-5)

    def value(hidden):
        return losses_and_entropies(hidden, output, targets, supervised, chunk)[1].sum()

    assert not jax.grad(value)(hidden).any(), "without being asked for it there is none"


@pytest.mark.parametrize("which", ["nothing", "everything", "one row"])
def test_rows_with_nothing_and_with_everything(which):
    hidden, output, targets, _, _ = _arrays(0)
    supervised = jnp.full((B, T), which != "nothing")
    if which == "one row":
        supervised = supervised.at[1:].set(False)
    np.testing.assert_allclose(
        supervised_cross_entropy(hidden, output, targets, supervised, 8),
        _over_full_logits(hidden, output, targets, supervised),
        rtol=1e-5,
    )


def test_bfloat16_is_near_float32():
    hidden, output, targets, supervised, _ = _arrays(1)
    low = supervised_cross_entropy(
        hidden.astype(jnp.bfloat16), output.astype(jnp.bfloat16), targets, supervised, 8
    )
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(
        low, _over_full_logits(hidden, output, targets, supervised), atol=0.1
    )


def test_full_logits_of_a_large_vocabulary_never_exist():
    """8 x 4,096 positions, 151,936 ids: the temporaries stay far below one array of logits."""
    shapes = [
        ((8, 4096, 64), jnp.bfloat16),
        ((151_936, 64), jnp.bfloat16),
        ((8, 4096), jnp.int32),
        ((8, 4096), jnp.bool_),
    ]
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]

    def loss(hidden, output, targets, supervised):
        return supervised_cross_entropy(hidden, output, targets, supervised, 64).sum()

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    logits = 8 * 4096 * 151_936 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < logits / 10


@pytest.mark.parametrize("wrong", [jnp.nan, jnp.inf])
def test_what_is_not_finite_where_nothing_is_supervised_reaches_no_gradient(wrong):
    """Also within a chunk that another row reaches, and where the cotangent is not finite."""
    hidden, output, targets, _, _ = _arrays(3)
    supervised = jnp.zeros((B, T), bool).at[0].set(True).at[1, 0].set(True)
    here = supervised[..., None]
    pull = jnp.where(supervised, 1.0, wrong)

    def total(hidden, output):
        losses, back = jax.vjp(
            lambda h, o: supervised_cross_entropy(h, o, targets, supervised, 8), hidden, output
        )
        return losses, back(pull)

    losses, (of_hidden, of_output) = total(jnp.where(here, hidden, wrong), output)
    clean, (_, clean_output) = total(jnp.where(here, hidden, 0.0), output)
    np.testing.assert_allclose(losses, clean)
    np.testing.assert_allclose(of_output, clean_output)
    assert (jnp.where(here, 0.0, of_hidden) == 0).all() and np.isfinite(of_hidden).all()


def test_logits_of_chunks_that_no_row_reaches_are_not_computed():
    hidden, output, targets, _, _ = _arrays(2)
    supervised = jnp.zeros((B, T), bool).at[:, :4].set(True)
    poisoned = hidden.at[:, 4:].set(jnp.nan)

    def total(hidden):
        return supervised_cross_entropy(hidden, output, targets, supervised, 4).sum()

    gradient = jax.grad(total)(poisoned)
    assert np.isfinite(np.asarray(gradient)).all()


@pytest.mark.parametrize(("counts", "chunks"), [((0, 0), 0), ((4, 1), 1), ((1, 5), 2), ((9, 3), 3)])
def test_as_many_chunks_are_computed_as_the_longest_row_fills(counts, chunks):
    supervised = jnp.arange(12)[None] < jnp.array(counts)[:, None]
    assert chunks_of(supervised, 4) == chunks


@pytest.mark.parametrize(("chunk", "length"), [(7, 7), (64, T)])
def test_a_chunk_has_the_length_that_is_asked_for_and_at_most_that_of_a_row(chunk, length):
    hidden, output, targets, supervised, _ = _arrays(0)
    program = jax.make_jaxpr(supervised_cross_entropy, static_argnums=4)
    assert f"f32[{B},{length},{V}]" in str(program(hidden, output, targets, supervised, chunk))


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 2, 1), (2, 2, 1)])
def test_on_a_mesh_losses_and_gradients_have_the_shapes_of_one_device(sizes):
    """Each device has its rows and its columns of the output weights (values: eight_devices.py)."""
    mesh = AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    rows = (4, 16)
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((*rows, D), "float32"), ((V, D), "float32"), (rows, "int32"))
    ]
    loss = lambda h, o, t: supervised_cross_entropy(h, o, t, t > 0, 8)  # noqa: E731
    with jax.sharding.use_abstract_mesh(mesh):
        losses = jax.eval_shape(loss, *shapes)
        pulled = jax.eval_shape(jax.grad(lambda *x: loss(*x).sum(), argnums=(0, 1)), *shapes)
    assert losses.shape == rows and [x.shape for x in pulled] == [(*rows, D), (V, D)]
