"""The policy that is trained, as a number: which weights played a step's rollouts."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from cotjax.model.params import Params

_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}  # bytes of an element -> its bits


def fingerprint(params: Params) -> str:
    """Return a hash of all parameters: 32 hexadecimal digits, the same on any mesh.

    Two sums of each array's bits are made on its devices, modulo 2^32, so that no order of adding
    changes them; one counts each element by its place.
    """
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(params), strict=True)
    sums = jax.device_get(_program(leaves[0].sharding)(leaves))
    together = hashlib.blake2b(digest_size=16)
    for path, leaf, values in zip(paths, leaves, sums, strict=True):
        name = jax.tree_util.keystr(path)
        together.update(f"{name} {leaf.shape} {leaf.dtype} {values.tolist()}\n".encode())
    return together.hexdigest()


@lru_cache(maxsize=4)
def _program(sharding: Any) -> Any:
    """Return `_sums`, jitted; `sharding`: of a parameter, whose processes all get the sums."""
    if isinstance(sharding, NamedSharding):
        return jax.jit(_sums, out_shardings=NamedSharding(sharding.mesh, PartitionSpec()))
    return jax.jit(_sums)


def _sums(leaves: tuple[jax.Array, ...]) -> list[jax.Array]:
    return [_sums_of(leaf) for leaf in leaves]


def _sums_of(leaf: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(leaf, _BITS[leaf.dtype.itemsize]).astype(jnp.uint32)
    weighted = bits
    for axis, size in enumerate(leaf.shape):
        # Odd, so that no factor loses a bit; axis by axis, so that sharded arrays stay sharded.
        place = 2 * jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) + 1
        weighted = weighted * (place if size > 1 else jnp.uint32(1)) + jnp.uint32(axis)
    return jnp.stack([bits.sum(dtype=jnp.uint32), weighted.sum(dtype=jnp.uint32)])
