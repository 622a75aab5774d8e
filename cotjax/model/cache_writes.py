"""Writing tokens into a key-value cache, each slot's at its own length.

Letters are those of model/cache.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def write_keys(
    old_BKCHY: jax.Array, new_BKHT: jax.Array, start_B: jax.Array, counts_B: jax.Array
) -> jax.Array:
    """Write the first `counts_B` of the `new` tokens of each slot into `old`, from index `start_B`
    on.

    Only the blocks that they touch are read, changed and written back.
    """
    blocks, block, T = old_BKCHY.shape[2], old_BKCHY.shape[4], new_BKHT.shape[3]
    touched = min((T + block - 2) // block + 1, blocks)

    def write(
        old_KCHY: jax.Array, new_KHT: jax.Array, begun: jax.Array, count: jax.Array
    ) -> jax.Array:
        # A window that would reach past the end is moved back (a slice update would move it
        # silently).
        start = jnp.minimum(begun // block, blocks - touched)
        window_KCHY = jax.lax.dynamic_slice_in_dim(old_KCHY, start, touched, axis=1)
        ahead_S, new_KHS = _shifted(new_KHT, begun - start * block, touched * block, axis=2)
        new_KCHY = new_KHS.reshape(*new_KHS.shape[:2], touched, block).swapaxes(1, 2)
        is_new_CY = ((ahead_S >= 0) & (ahead_S < count)).reshape(1, touched, 1, block)
        return jax.lax.dynamic_update_slice_in_dim(
            old_KCHY, jnp.where(is_new_CY, new_KCHY, window_KCHY), start, axis=1
        )

    return jax.vmap(write)(old_BKCHY, new_BKHT, start_B, counts_B)


def write_values(
    old_BKSH: jax.Array, new_BKTH: jax.Array, start_B: jax.Array, counts_B: jax.Array
) -> jax.Array:
    """Like `write_keys`, for values, which are not in blocks."""
    S, T = old_BKSH.shape[2], new_BKTH.shape[2]

    def write(
        old_KSH: jax.Array, new_KTH: jax.Array, begun: jax.Array, count: jax.Array
    ) -> jax.Array:
        start = jnp.minimum(begun, S - T)
        window_KTH = jax.lax.dynamic_slice_in_dim(old_KSH, start, T, axis=1)
        ahead_T, new_KTH = _shifted(new_KTH, begun - start, T, axis=1)
        is_new_T = ((ahead_T >= 0) & (ahead_T < count)).reshape(1, T, 1)
        return jax.lax.dynamic_update_slice_in_dim(
            old_KSH, jnp.where(is_new_T, new_KTH, window_KTH), start, axis=1
        )

    return jax.vmap(write)(old_BKSH, new_BKTH, start_B, counts_B)


def write_tokens(
    old_BSKH: jax.Array, new_BTKH: jax.Array, start_B: jax.Array, counts_B: jax.Array
) -> jax.Array:
    """Like `write_keys`, for a cache by token: a scatter, which leaves the other tokens alone."""
    S, T = old_BSKH.shape[1], new_BTKH.shape[1]
    ahead_1T = jnp.arange(T)[None, :]
    # Past the end nothing is written.
    at_BT = jnp.where(ahead_1T < counts_B[:, None], start_B[:, None] + ahead_1T, S)
    rows_B1 = jnp.arange(old_BSKH.shape[0])[:, None]
    return old_BSKH.at[rows_B1, at_BT].set(new_BTKH, mode="drop")


def _shifted(new: jax.Array, by: jax.Array, length: int, axis: int) -> tuple[jax.Array, jax.Array]:
    """Return `new` padded to `length` and rolled by `by`, after the index of the token at each
    place.

    The index is negative before the first token.
    """
    filled = jnp.pad(
        new, [(0, length - new.shape[axis]) if i == axis else (0, 0) for i in range(new.ndim)]
    )
    return jnp.arange(length) - by, jnp.roll(filled, by, axis)
