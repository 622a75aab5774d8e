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
    if not _is_narrow(x):
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
    y_RF = wide_einsum("RD,DF->RF", x_RD, weight_DF.astype(x_RD.dtype))
    return y_RF.astype(x_RD.dtype)


def _forward(x_RD: jax.Array, weight_DF: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _wide(x_RD, weight_DF), (x_RD, weight_DF)


def _backward(residuals: tuple[jax.Array, ...], d_y_RF: jax.Array) -> tuple[jax.Array, ...]:
    x_RD, weight_DF = residuals
    d_x_RD = wide_einsum("RF,FD->RD", d_y_RF, transposed(weight_DF.astype(x_RD.dtype)))
    return d_x_RD.astype(x_RD.dtype), outer(x_RD, d_y_RF).astype(weight_DF.dtype)


_wide.defvjp(_forward, _backward)


def outer(x_RD: jax.Array, y_RF: jax.Array) -> jax.Array:
    """Return the sum over R of the outer products, [D, F], in float32 or what is wider: the
    gradient of a weight.
    """
    if _is_narrow(x_RD):
        return wide_einsum("DR,RF->DF", transposed(x_RD), y_RF)
    return wide_einsum("RD,RF->DF", x_RD, y_RF)


def wide_einsum(names: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return an einsum of two operands with sums in float32 or what is wider.

    XLA's CPU compiler exchanges the operands of a product whose result is transposed. With those of
    bfloat16 it does so too late for a product that it can compute, and the program would end when
    it runs. Barriers keep transpositions out of them.
    """
    if not _is_narrow(x):
        return jnp.einsum(names, x, y, preferred_element_type=wide_dtype(x))
    x, y = jax.lax.optimization_barrier((x, y))
    return jax.lax.optimization_barrier(jnp.einsum(names, x, y, preferred_element_type=jnp.float32))


def _is_narrow(x: jax.Array) -> bool:
    """Say whether the compiler would widen what a plain product multiplies."""
    return x.dtype == jnp.bfloat16 and forms_here().wide_products


def wide_dtype(x: jax.Array) -> jnp.dtype:
    """Return the dtype of logits and of sums: float32, or the operand's where that is wider."""
    return jnp.promote_types(x.dtype, jnp.float32)


def transposed(x: jax.Array) -> jax.Array:
    """Return x with its last two axes exchanged.

    A CPU's compiler would fold it into the matmul that reads it, which then takes twice the time;
    it does not where the exchange is one of three axes.
    """
    *lead, R, D = x.shape
    if D % 2 or not forms_here().transpose_in_memory:
        return x.swapaxes(-1, -2)
    return jnp.moveaxis(x.reshape(*lead, R, D // 2, 2), -3, -1).reshape(*lead, D, R)
