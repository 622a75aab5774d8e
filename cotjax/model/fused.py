"""Parameters as a sampler has them. A checkpoint has the form APART (linear.py).

FUSED, on a GPU: q, k and v of a layer are one projection, gate and up another. A decode step's
matmuls have few rows, so they take the time that reading their weights takes, and one large matmul
reads faster than three small ones.

TURNED, on a CPU: the output axes of a projection come first. A decode step's matmuls are then
products of weights and a few columns (linear.turned_product), which read the weights as they lie; a
product of a few rows and a weight takes up to 1.8 times as long.

The form is made once, when a sampler loads its weights.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cotjax.model.config import ModelConfig
from cotjax.model.linear import APART, FUSED, TURNED
from cotjax.model.params import Params, declared, param_shardings
from cotjax.model.platform import forms_of, platform_of


def sampled_form(config: ModelConfig, mesh: Mesh) -> str:
    """Return the form of a sampler's parameters on these devices: FUSED, TURNED or APART."""
    if fuses(config, mesh):
        return FUSED
    return TURNED if forms_of(platform_of(mesh)).turned_projections else APART


def formed(config: ModelConfig, mesh: Mesh, params: Params) -> Params:
    """Return `params`, which are on the mesh's devices and are given up, in `sampled_form`."""
    form = sampled_form(config, mesh)
    if form == APART:
        return params
    return fuse(config, mesh, params) if form == FUSED else turn(config, mesh, params)


def fuses(config: ModelConfig, mesh: Mesh) -> bool:
    """Return whether a sampler on these devices has fused parameters.

    Adapters keep the projections apart: theirs are float32, and of each projection its own.
    """
    return forms_of(platform_of(mesh)).fused_projections and config.lora is None


def fuse(config: ModelConfig, mesh: Mesh, params: Params) -> Params:
    """Return the fused parameters of `params`, which are on the mesh's devices and are given up.

    Layer by layer, so that no more than one layer's weights are there twice.
    """
    layers, places = params["model"]["layers"], param_shardings(config, mesh, FUSED)
    for name in list(layers):
        layer, place = layers[name], places["model"]["layers"][name]
        attention, gated = layer["self_attn"], layer["mlp"]
        apart = [attention.pop(f"{each}_proj") for each in "qkv"]
        qkv = jax.jit(_together, out_shardings=place["self_attn"]["qkv_proj"])(*apart)
        halves = gated.pop("gate_proj")["weight"], gated.pop("up_proj")["weight"]
        gate_up = jax.jit(_side_by_side, out_shardings=place["mlp"]["gate_up"])(*halves)
        # Else the host runs ahead, and all layers are there twice.
        jax.block_until_ready((qkv, gate_up))
        del apart, halves
        attention["qkv_proj"], gated["gate_up"] = qkv, gate_up
    return params


def turn(config: ModelConfig, mesh: Mesh, params: Params) -> Params:
    """Return the parameters of `params`, which are given up, with outputs first in projections.

    Weight by weight, so that no more than one is there twice.
    """
    places = param_shardings(config, mesh, TURNED)
    for path in declared(config, TURNED):
        if path[-1] != "turned":
            continue
        projection, place = params, places
        for name in path[:-1]:
            projection, place = projection[name], place[name]
        # Attention's output has two input axes, q, k and v two output axes, the others one of each.
        inputs = 2 if path[-2] == "o_proj" else 1
        weight = projection.pop("weight")
        turned = jax.jit(_outputs_first, static_argnums=1, out_shardings=place["turned"])
        projection["turned"] = jax.block_until_ready(turned(weight, inputs))
    return params


def _outputs_first(weight: jax.Array, inputs: int) -> jax.Array:
    return weight.transpose(*range(inputs, weight.ndim), *range(inputs))


def _together(q: Params, k: Params, v: Params) -> Params:
    """Return weights [D, K, G + 2, H], and biases [K, G + 2, H], of [D, N, H] and [D, K, H]."""

    def joined(q: Any, k: Any, v: Any) -> jax.Array:
        *lead, K, H = k.shape
        return jnp.concatenate(
            [q.reshape(*lead, K, -1, H), k[..., None, :], v[..., None, :]], axis=-2
        )

    return jax.tree.map(joined, q, k, v)


def _side_by_side(gate_DF: jax.Array, up_DF: jax.Array) -> jax.Array:
    return jnp.stack([gate_DF, up_DF], axis=1)
