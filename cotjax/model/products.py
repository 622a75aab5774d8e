"""Matmuls of projections, and transpositions that a compiler leaves in memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cotjax.model.platform import forms_here

# The name that a remat policy keeps wide products under.
PRODUCT = "product"


def product(x: jax.Array, weight_DF: jax.Array) -> jax.Array:
    """Return x [..., D] @ weight [D, F] in x's dtype, to which the weight is cast."""
    if x.dtype != jnp.bfloat16 or not forms_here().wide_products:
        return x @ weight_DF.astype(x.dtype)
    y = _wide(x.reshape(-1, x.shape[-1]), weight_DF)
    # A remat policy sees no product inside a function with a gradient of its own, only its name.
    return checkpoint_name(y, PRODUCT).reshape(*x.shape[:-1], weight_DF.shape[1])


@jax.custom_vjp
def _wide(x_RD: jax.Array, weight_DF: jax.Array) -> jax.Array:
    """The product of bfloat16 with float32 sums in all three passes.

    XLA's CPU compiler multiplies bfloat16 as such only where the result is float32 and each
    operand is contracted over its last axis, or the second over its first; else it widens both
    operands. jax's own gradient would multiply the float32 cotangent.
    """
    return _dot(x_RD, weight_DF.astype(x_RD.dtype)).astype(x_RD.dtype)


def _forward(x_RD: jax.Array, weight_DF: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _wide(x_RD, weight_DF), (x_RD, weight_DF)


def _backward(residuals: tuple[jax.Array, ...], d_y_RF: jax.Array) -> tuple[jax.Array, ...]:
    x_RD, weight_DF = residuals
    d_x_RD = _dot(d_y_RF, transposed(weight_DF.astype(x_RD.dtype)))
    return d_x_RD.astype(x_RD.dtype), outer(x_RD, d_y_RF).astype(weight_DF.dtype)


_wide.defvjp(_forward, _backward)


def outer(x_RD: jax.Array, y_RF: jax.Array) -> jax.Array:
    """Return the sum over R of the outer products, [D, F], in float32 or what is wider: the
    gradient of a weight.
    """
    wide = jnp.promote_types(x_RD.dtype, jnp.float32)
    if x_RD.dtype != jnp.bfloat16 or not forms_here().wide_products:
        return jnp.einsum("RD,RF->DF", x_RD, y_RF, preferred_element_type=wide)
    return _dot(transposed(x_RD), y_RF)


def _dot(x_RD: jax.Array, y_DF: jax.Array) -> jax.Array:
    # Were an operand or the result transposed, XLA might exchange the operands too late for a
    # product that it can compute, and the program would end when it runs.
    x_RD, y_DF = jax.lax.optimization_barrier((x_RD, y_DF))
    return jax.lax.optimization_barrier(jnp.dot(x_RD, y_DF, preferred_element_type=jnp.float32))


def transposed(x: jax.Array) -> jax.Array:
    """Return x with its last two axes exchanged.

    A CPU's compiler would fold it into the matmul that reads it, which then takes twice the time;
    it does not where the exchange is one of three axes.
    """
    *lead, R, D = x.shape
    if D % 2 or not forms_here().transpose_in_memory:
        return x.swapaxes(-1, -2)
    return jnp.moveaxis(x.reshape(*lead, R, D // 2, 2), -3, -1).reshape(*lead, D, R)
