"""Arithmetic of a train step by formula, what devices can do at most, and the share of it that was
used (MFU).

The count is of the model, not of a program: what remat computes again is not in it, nor norms,
softmax and the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cotjax.errors import InternalError
from cotjax.model.config import ModelConfig

PEAK_FLOPS: dict[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5": 459e12,  # v5p
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,  # v6e
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,  # a chip is two devices
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,  # SXM; the PCIe card is slower, and has another name
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""jax's device_kind -> dense bfloat16 operations a second of one device, by its data sheet."""

PEAK_BANDWIDTH: dict[str, float] = {
    "TPU v5 lite": 819e9,  # v5e
    "TPU v5": 2765e9,  # v5p
    "TPU v5p": 2765e9,
    "TPU v6 lite": 1640e9,  # v6e
    "TPU v6e": 1640e9,
    "NVIDIA A100-SXM4-40GB": 1555e9,
    "NVIDIA A100-SXM4-80GB": 2039e9,
    "NVIDIA A100 80GB PCIe": 1935e9,
    "NVIDIA H100 80GB HBM3": 3350e9,
    "NVIDIA H200": 4800e9,
}
"""jax's device_kind -> bytes of memory that one device reads a second, by its data sheet."""


def matmul_params(config: ModelConfig) -> int:
    """Return the weights that every token is multiplied with.

    All matrices except the embedding's look-up; a tied embedding counts once, as the output.
    """
    D, H = config.width, config.head_size
    attention = 2 * D * config.heads * H + 2 * D * config.kv_heads * H
    return config.layers * (attention + 3 * D * config.feed_forward) + config.vocab_size * D


def train_flops(config: ModelConfig, lengths: Iterable[int]) -> int:
    """Floating-point operations of one forward and backward pass over sequences of these lengths,
    in tokens without padding.

    A weight costs a token 2 forward and 4 backward. Attention costs 12 L N H T^2 (scores and
    values, forward and twice that backward) over the square, and half of it under a causal mask
    (Chowdhery et al., 2022, appendix B, has the whole square). With adapters, whose own arithmetic
    is left out, the other weights get no gradient, and cost 2 backward.
    """
    lengths = list(lengths)
    return _train_flops(config, sum(lengths), sum(length * length for length in lengths))


def attended_flops(config: ModelConfig, tokens: int, seen: int) -> int:
    """Return `train_flops` of branching examples.

    `tokens` that see `seen` tokens in all, each itself among them.
    """
    # A sequence of T tokens sees T (T + 1) / 2, of which its square follows.
    return _train_flops(config, tokens, 2 * seen - tokens)


def prompt_flops(config: ModelConfig, slots: int, length: int) -> int:
    """Return the operations of a forward pass over prompts up to each one's first new token.

    Logits are those of the last tokens alone; the last layer counts in full.
    """
    output = config.vocab_size * config.width
    layers = (matmul_params(config) - output) * length + output
    attention = config.layers * config.heads * config.head_size * length * length
    return 2 * slots * (layers + attention)


def _train_flops(config: ModelConfig, tokens: int, square: int) -> int:
    of_weight = 6 if config.lora is None else 4
    attention = 6 * config.layers * config.heads * config.head_size * square
    return of_weight * matmul_params(config) * tokens + attention


def decode_bytes(config: ModelConfig, cached: float) -> float:
    """Return the bytes that one decode step reads, without padding.

    Every weight once, and the keys and values of `cached` tokens in all slots, in the compute
    dtype.
    """
    values = matmul_params(config) + 2 * config.layers * config.kv_heads * config.head_size * cached
    return values * np.dtype(config.compute_as).itemsize


def peak_flops(device_kind: str) -> float | None:
    """Return a device's dense bfloat16 operations a second; None where unknown, as for any CPU."""
    return PEAK_FLOPS.get(device_kind)


def utilisation(flops: float, seconds: float, peak: float) -> float:
    """Model FLOPs utilisation: `flops` in `seconds` as a share of `peak` operations a second, of
    all devices together.

    Raises InternalError for a share over 1: then the time, the count or the peak is wrong.
    """
    share = flops / seconds / peak
    if share > 1:
        raise InternalError(
            f"MFU of {100 * share:.0f} %: {flops:.3g} operations in {seconds:.3g} s on {peak:.3g} "
            "a second cannot be; "
            "the clock did not wait for the device, or cotjax/model/flops.py is wrong about this "
            "model or device"
        )
    return share
