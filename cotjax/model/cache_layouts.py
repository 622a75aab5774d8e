"""How the keys and values of a cache lie in memory, a class each.

Letters are those of model/cache.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cotjax.model.cache_writes import write_keys, write_tokens, write_values
from cotjax.model.config import ModelConfig
from cotjax.model.platform import forms_of, platform_of
from cotjax.model.ragged import reads_ragged

Axes = tuple[str, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Blocks:
    """Keys [B, K, C, H, Y], C blocks of Y tokens, and values [B, K, S, H], S = C Y.

    A decode step's matmuls read both contiguously. Scores sum over H, so keys have tokens last, in
    blocks; on CPU a step then takes 0.4 of its time over [B, K, H, S], and a quarter of that over
    [B, K, S, H]. The sum of values is over tokens.
    """

    block: int  # Y, tokens
    # The t-th new token of every slot is at this index + t, whatever the slots' lengths.
    behind_capacity: ClassVar[bool] = True
    key_axes: ClassVar[Axes] = ("batch", "kv_heads", "length", "head_size", "length")
    value_axes: ClassVar[Axes] = ("batch", "kv_heads", "length", "head_size")

    def shapes(self, slots: int, K: int, tokens: int, H: int) -> tuple[Shape, Shape]:
        """Return the shapes of keys and values."""
        blocks = tokens // self.block
        return (slots, K, blocks, H, self.block), (slots, K, tokens, H)

    def tokens(self, keys: jax.Array) -> int:
        """Return S."""
        return keys.shape[2] * self.block

    def grown(self, keys: jax.Array, values: jax.Array, tokens: int) -> tuple[jax.Array, jax.Array]:
        """Return both with so many more tokens, whole blocks, behind the others."""
        more = ((0, 0), (0, 0), (0, tokens // self.block), (0, 0), (0, 0))
        return jnp.pad(keys, more), jnp.pad(values, ((0, 0), (0, 0), (0, tokens), (0, 0)))

    def at(
        self, keys: jax.Array, values: jax.Array, at_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return keys and values of these tokens, [B, K, T, H] each."""

        def keys_of(keys_KCHY: jax.Array, at_T: jax.Array) -> jax.Array:
            return keys_KCHY[:, at_T // self.block, :, at_T % self.block].swapaxes(0, 1)

        def values_of(values_KSH: jax.Array, at_T: jax.Array) -> jax.Array:
            return values_KSH[:, at_T]

        return jax.vmap(keys_of)(keys, at_BT), jax.vmap(values_of)(values, at_BT)

    def written(
        self,
        keys: jax.Array,
        values: jax.Array,
        k_BKTH: jax.Array,
        v_BKTH: jax.Array,
        start_B: jax.Array,
        counts_B: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Return both with the first `counts_B` tokens of each slot written from `start_B` on."""
        return (
            write_keys(keys, k_BKTH.swapaxes(2, 3), start_B, counts_B),
            write_values(values, v_BKTH, start_B, counts_B),
        )

    def first(self, keys: jax.Array, values: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
        """Return keys [B, K, H, S] and values [B, K, S, H] of the first `length` tokens."""
        keys_BKHCY = keys[:, :, : length // self.block].swapaxes(2, 3)
        return keys_BKHCY.reshape(*keys_BKHCY.shape[:3], length), values[:, :, :length]


@dataclass(frozen=True)
class Tokens:
    """Keys and values [B, S, K, H]. A slot's new tokens are directly behind its own length."""

    block: int  # S is a multiple of it
    behind_capacity: ClassVar[bool] = False
    key_axes: ClassVar[Axes] = ("batch", "length", "kv_heads", "head_size")
    value_axes: ClassVar[Axes] = key_axes

    def shapes(self, slots: int, K: int, tokens: int, H: int) -> tuple[Shape, Shape]:
        """Return the shapes of keys and values."""
        return (slots, tokens, K, H), (slots, tokens, K, H)

    def tokens(self, keys: jax.Array) -> int:
        """Return S."""
        return keys.shape[1]

    def grown(self, keys: jax.Array, values: jax.Array, tokens: int) -> tuple[jax.Array, jax.Array]:
        """Return both with so many more tokens behind the others."""
        more = ((0, 0), (0, tokens), (0, 0), (0, 0))
        return jnp.pad(keys, more), jnp.pad(values, more)

    def at(
        self, keys: jax.Array, values: jax.Array, at_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return keys and values of these tokens, [B, K, T, H] each."""
        at_BT11 = at_BT[:, :, None, None]
        k_BTKH, v_BTKH = (jnp.take_along_axis(x, at_BT11, axis=1) for x in (keys, values))
        return k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)

    def written(
        self,
        keys: jax.Array,
        values: jax.Array,
        k_BKTH: jax.Array,
        v_BKTH: jax.Array,
        start_B: jax.Array,
        counts_B: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Return both with the first `counts_B` tokens of each slot written from `start_B` on."""
        return (
            write_tokens(keys, k_BKTH.swapaxes(1, 2), start_B, counts_B),
            write_tokens(values, v_BKTH.swapaxes(1, 2), start_B, counts_B),
        )

    def first(self, keys: jax.Array, values: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
        """Return keys [B, K, H, S] and values [B, K, S, H] of the first `length` tokens."""
        return keys[:, :length].transpose(0, 2, 3, 1), values[:, :length].swapaxes(1, 2)


@dataclass(frozen=True)
class Pairs:
    """Each token's keys and values side by side in the place of keys, [B, S, 2 K, H]: of each key
    head its key, then its value. A slot's new tokens are directly behind its own length.

    The pages of a TPU's kernel (model/ragged.py), of `block` tokens each, are this array without a
    copy. In the place of values stands one number a slot, which nothing reads.
    """

    block: int  # S is a multiple of it
    behind_capacity: ClassVar[bool] = False
    key_axes: ClassVar[Axes] = ("batch", "length", "kv_heads", "head_size")
    value_axes: ClassVar[Axes] = ("batch",)

    def shapes(self, slots: int, K: int, tokens: int, H: int) -> tuple[Shape, Shape]:
        """Return the shapes of pairs, and of what stands in the place of values."""
        return (slots, tokens, 2 * K, H), (slots,)

    def tokens(self, keys: jax.Array) -> int:
        """Return S."""
        return keys.shape[1]

    def grown(self, keys: jax.Array, values: jax.Array, tokens: int) -> tuple[jax.Array, jax.Array]:
        """Return both with so many more tokens behind the others."""
        return jnp.pad(keys, ((0, 0), (0, tokens), (0, 0), (0, 0))), values

    def at(
        self, keys: jax.Array, values: jax.Array, at_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return keys and values of these tokens, [B, K, T, H] each."""
        pairs_BTkH = jnp.take_along_axis(keys, at_BT[:, :, None, None], axis=1)
        return pairs_BTkH[:, :, ::2].swapaxes(1, 2), pairs_BTkH[:, :, 1::2].swapaxes(1, 2)

    def written(
        self,
        keys: jax.Array,
        values: jax.Array,
        k_BKTH: jax.Array,
        v_BKTH: jax.Array,
        start_B: jax.Array,
        counts_B: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Return both with the first `counts_B` tokens of each slot written from `start_B` on."""
        B, K, T, H = k_BKTH.shape
        pairs_BKcTH = jnp.stack([k_BKTH, v_BKTH], axis=2)
        pairs_BTkH = pairs_BKcTH.reshape(B, 2 * K, T, H).swapaxes(1, 2)
        return write_tokens(keys, pairs_BTkH, start_B, counts_B), values

    def first(self, keys: jax.Array, values: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
        """Return keys [B, K, H, S] and values [B, K, S, H] of the first `length` tokens."""
        pairs_BSkH = keys[:, :length]
        return pairs_BSkH[:, :, ::2].transpose(0, 2, 3, 1), pairs_BSkH[:, :, 1::2].swapaxes(1, 2)


Layout = Blocks | Tokens | Pairs


def layout_of(config: ModelConfig, mesh: Mesh) -> Layout:
    """Return the layout of a cache of this model on these devices."""
    forms = forms_of(platform_of(mesh))
    if "ragged" in forms.token_kernels and reads_ragged(config, mesh.shape["tensor"]):
        return Pairs(forms.cache_block)
    return (Tokens if forms.cache_by_token else Blocks)(forms.cache_block)
