"""LoRA as a change of parameters: add adapters to a base, or merge them into it.

Where a config has `lora`, each targeted projection has two more parameters (linear.Linear.adapt).
Sharding, initial values, checkpoints and the sampler follow from these declarations.
weights/peft.py reads and writes adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from cotjax.errors import UsageError
from cotjax.model.config import LoRA, ModelConfig
from cotjax.model.linear import LORA_FACTORS
from cotjax.model.params import (
    Params,
    Path,
    declared,
    init_params,
    join_params,
    leaf,
    nest,
    trainable_paths,
)


def add(
    config: ModelConfig, params: Params, lora: LoRA, key: jax.Array, mesh: Mesh | None = None
) -> tuple[ModelConfig, Params]:
    """Return the base with new adapters, which do not change its outputs yet.

    The base's arrays are shared, not copied. Raises UsageError when the config has adapters
    already, or `lora.targets` matches no projection.
    """
    config = adapted_config(config, lora)
    return config, join_params(
        config, init_params(config, key, mesh, only=trainable_paths(config)), params
    )


def merge(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """Return the model with the adapters merged: W + (alpha / rank) A B.

    The sum is float32, then cast to the weight's dtype: bfloat16 loses most of a small update,
    while saved adapters (weights.peft.save_peft) lose nothing. Raises UsageError when there are no
    adapters.
    """
    lora = adapters_of(config)
    base = replace(config, lora=None)
    merged = {path: leaf(params, path) for path in declared(base)}
    for target in targets(config):
        path = (*target, "weight")
        into = _merging(lora.alpha / lora.rank, getattr(merged[path], "sharding", None))
        merged[path] = into(
            merged[path], *(leaf(params, (*target, factor)) for factor in LORA_FACTORS)
        )
    return base, nest(merged)


@lru_cache(maxsize=64)
def _merging(
    scale: float, where: Sharding | None
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    def merged(weight: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        rank = b.shape[0]
        update = jnp.matmul(a.reshape(-1, rank), b.reshape(rank, -1), precision="highest")
        return (weight.astype(jnp.float32) + scale * update.reshape(weight.shape)).astype(
            weight.dtype
        )

    return jax.jit(merged, out_shardings=where)


def targets(config: ModelConfig) -> list[Path]:
    """Return the paths of the projections that have an adapter."""
    return [path[:-1] for path in declared(config) if path[-1] == LORA_FACTORS[0]]


def adapted_config(config: ModelConfig, lora: LoRA) -> ModelConfig:
    if config.lora is not None:
        raise UsageError("lora: this model has adapters already; merge them first (lora.merge)")
    return replace(config, lora=lora)


def adapters_of(config: ModelConfig) -> LoRA:
    """Return the config's adapters. Raises UsageError when it has none."""
    if config.lora is None:
        raise UsageError("lora: this model has no adapters; add them first (lora.add)")
    return config.lora
