"""Products of bfloat16 with float32 sums: right whatever stands around them, and fast on a CPU."""

import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cotjax.model.products import outer, product, transposed

BFLOAT16, FLOAT32 = jnp.bfloat16, jnp.float32
# What a program may do to an operand or to a result, and by what it multiplies it. All but the
# first transpose it.
AROUND = {
    "as it is": (lambda x: x, 1),
    "heads first": (lambda x: x.reshape(*x.shape, 1).swapaxes(0, 1)[..., 0], 1),
    "scaled, transposed": (lambda x: (x * x.dtype.type(2)).T, 2),
    "transposed": (lambda x: x.T, 1),
    "wide, transposed": (lambda x: x.astype(FLOAT32).T.astype(x.dtype), 1),
}
SIZES = (1, 2, 3, 8, 16, 17, 64, 130, 256)


def _drawn(draw, shape):
    """Numbers that bfloat16 holds, as float64."""
    return np.asarray(jnp.asarray(draw.standard_normal(shape), BFLOAT16), np.float64)


def _close(got, want, bits):
    """Off by rounding to so many bits, at the size of the largest."""
    atol = 2.0**-bits * np.abs(want).max()
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2.0**-bits, atol=atol)


# XLA's CPU compiler exchanges the operands of a product whose result is transposed, and then cannot
# run it: without barriers six of these cases end with "Unsupported element type for
# DotThunk::Execute: BF16 x BF16 = F32".
@pytest.mark.parametrize("case", range(30))
def test_the_product_and_its_gradients(case):
    choose, draw = random.Random(case), np.random.default_rng(case)
    R, D, F = (choose.choice(SIZES) for _ in range(3))
    names = [choose.choice(sorted(AROUND)) for _ in range(2)]
    (before, scale), (after, by) = (AROUND[name] for name in names)
    turns_given, turns_out = (name != "as it is" for name in names)
    param_dtype = choose.choice((BFLOAT16, FLOAT32))
    x, w, d_y = _drawn(draw, (R, D)), _drawn(draw, (D, F)), _drawn(draw, (R, F))

    def forward(given, weight):
        return after(product(before(given), weight))

    @jax.jit
    def both(given, weight, d_out):
        out, back = jax.vjp(forward, given, weight)
        return out, *back(d_out)

    given = jnp.asarray(x.T if turns_given else x, BFLOAT16)
    d_out = jnp.asarray(d_y.T if turns_out else d_y, BFLOAT16)
    out, d_given, d_weight = both(given, jnp.asarray(w, param_dtype), d_out)

    assert out.dtype == d_given.dtype == BFLOAT16 and d_weight.dtype == param_dtype
    y, d_x, sum_of = scale * by * x @ w, scale * by * d_y @ w.T, scale * by * x.T @ d_y
    _close(out, y.T if turns_out else y, 7)
    _close(d_given, d_x.T if turns_given else d_x, 7)
    # A float32 weight gets the sum as it is, not rounded to the eight bits of the operands.
    _close(d_weight, sum_of, 7 if param_dtype == BFLOAT16 else 18)
    sums = jax.jit(lambda x, y: after(outer(before(x), y)))(given, jnp.asarray(d_y, BFLOAT16))
    assert sums.dtype == FLOAT32
    _close(sums, sum_of.T if turns_out else sum_of, 18)


def test_float32_is_the_plain_product():
    draw = np.random.default_rng(0)
    x, w = (jnp.asarray(draw.standard_normal(s), FLOAT32) for s in ((2, 5, 12), (12, 7)))
    np.testing.assert_array_equal(jax.jit(product)(x, w), jax.jit(jnp.matmul)(x, w))
    wide = jax.make_jaxpr(lambda x: product(x, w))(x.astype(BFLOAT16))
    assert "preferred_element_type=float32" in str(wide)


@pytest.mark.parametrize("shape", [(6, 4), (6, 5), (2, 3, 8, 6)])
def test_transposed(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(transposed(jnp.asarray(x)), x.swapaxes(-1, -2))


def _multiplies_bfloat16():
    cpu = Path("/proc/cpuinfo")
    return jax.default_backend() == "cpu" and cpu.exists() and "avx512_bf16" in cpu.read_text()


@pytest.mark.skipif(not _multiplies_bfloat16(), reason="no CPU with instructions for bfloat16")
def test_no_operand_is_widened():
    """Each pass of a CPU's program reads bfloat16; jax's own gradient has both operands widened."""
    R, D, F = 192, 160, 224
    x, w, d_y = (jnp.zeros(s, BFLOAT16) for s in ((R, D), (D, F), (R, F)))

    def program(f, *given):
        return jax.jit(f).lower(*given).compile().as_text()

    def pull(which):
        return lambda x, w, d_y: jax.vjp(product, x, w)[1](d_y)[which]

    def widened(text, *shapes):
        return [f"f32[{a},{b}]" for a, b in shapes if f"f32[{a},{b}]" in text]

    assert not widened(program(product, x, w), (R, D), (D, F))
    assert not widened(program(pull(0), x, w, d_y), (R, F), (D, F), (F, D))
    assert not widened(program(pull(1), x, w, d_y), (R, D), (D, R), (R, F))
