"""Rotary positions (Su et al., 2021). Letters are those of model/decoder.py; h is half of H."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cotjax.model.config import ModelConfig
from cotjax.model.platform import forms_here

Rope = tuple[jax.Array, jax.Array]  # cosines and signed sines, [B, 1, T, H]


def rope_of(positions_BT: jax.Array, config: ModelConfig) -> Rope:
    """Return cosine and signed sine of every position's angles, float32 [B, 1, T, H] each.

    The pair (i, i + H/2) turns by one angle, so x cos + rolled(x) sin is the rotated x (the pairing
    of Hugging Face's checkpoints).
    """
    half = config.head_size // 2
    angles_BTh = positions_BT.astype(jnp.float32)[:, :, None] * frequencies(config)[None, None, :]
    # The identity spreads the halves where the forms ask for a matmul.
    one_hh = jnp.eye(half, dtype=jnp.float32) if forms_here().rope_by_matmul else None

    def twice(x_BTh: jax.Array, sign: int) -> jax.Array:
        """Return [sign x, x] along the head, with an axis for the heads."""
        if one_hh is None:
            return jnp.concatenate([sign * x_BTh, x_BTh], axis=-1)[:, None]
        both_hH = jnp.concatenate([one_hh if sign > 0 else -one_hh, one_hh], axis=1)
        return jnp.einsum("BTh,hH->BTH", x_BTh, both_hH, precision="highest")[:, None]

    return twice(jnp.cos(angles_BTh), 1), twice(jnp.sin(angles_BTh), -1)


def frequencies(config: ModelConfig) -> np.ndarray:
    """Return radians a position of every pair, float32 [H/2], scaled as the config says."""
    half = config.head_size // 2
    # float32 throughout, as published implementations have it: at position 100,000 a rounding is a
    # hundredth of a turn.
    unscaled = np.float32(1) / np.float32(config.rope_theta) ** (
        np.arange(half, dtype=np.float32) / np.float32(half)
    )
    scaling = config.rope_scaling
    if scaling is None:
        return unscaled
    turns = (
        np.float32(scaling.original_length) * unscaled / np.float32(2 * np.pi)
    )  # within the original length
    share = np.clip(
        (turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency), 0, 1
    )
    return ((1 - share) * unscaled / scaling.factor + share * unscaled).astype(np.float32)


def rotate(x_BNTH: jax.Array, rope: Rope) -> jax.Array:
    """Rotate every head's pairs by their position's angles, in float32."""
    cos, sin = rope
    wide = x_BNTH.astype(jnp.float32)
    return (wide * cos + jnp.roll(wide, wide.shape[-1] // 2, axis=-1) * sin).astype(x_BNTH.dtype)
