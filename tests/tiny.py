"""Tiny things that several tests share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cotjax.model.config import ModelConfig

_TINY = ModelConfig(
    vocab_size=61, width=32, layers=2, heads=4, kv_heads=2, head_size=8, feed_forward=48, rope_theta=10_000.0, max_length=512
)


def model_config(**changes: Any) -> ModelConfig:
    """A decoder that compiles in a second or two: 2 layers, width 32, vocabulary 61."""
    return replace(_TINY, **changes)
