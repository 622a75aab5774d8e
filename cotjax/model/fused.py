"""Parameters with q, k and v of a layer as one, gate and up as one.

A decode step's matmuls have few rows, so they take the time that reading their weights takes, and
one large matmul reads faster than three small ones. A sampler on an accelerator joins the weights
once, when it loads them (`fuse`); a checkpoint has them apart (layers.Attention,
layers.FeedForward).

A train step can join them too, each time it runs (`joined`): matmuls of many rows gain little, and
the sum of their inputs' gradients is one result less to write and read for each that is joined.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cotjax.model.config import ModelConfig
from cotjax.model.params import Params, are_fused, param_shardings
from cotjax.model.platform import forms_of, platform_of


def fuses(config: ModelConfig, mesh: Mesh) -> bool:
    """Return whether a sampler on these devices has fused parameters.

    Adapters keep the projections apart: theirs are float32, and of each projection its own.
    """
    return forms_of(platform_of(mesh)).fused_projections and config.lora is None


def fuse(config: ModelConfig, mesh: Mesh, params: Params) -> Params:
    """Return the fused parameters of `params`, which are on the mesh's devices and are given up.

    Layer by layer, so that no more than one layer's weights are there twice.
    """
    layers, places = params["model"]["layers"], param_shardings(config, mesh, fused=True)
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


def joined(config: ModelConfig, params: Params) -> Params:
    """Return fused parameters of `params` in the compute dtype, for one trace; they keep their own
    gradients.

    Parameters that are fused, and those with adapters, are returned as they are.
    """
    if config.lora is not None or are_fused(params):
        return params

    def cast(weights: Params) -> Params:
        return jax.tree.map(lambda x: x.astype(config.compute_as), weights)

    def layer(apart: Params) -> Params:
        attention, gated = dict(apart["self_attn"]), dict(apart["mlp"])
        qkv = _together(*(cast(attention.pop(f"{each}_proj")) for each in "qkv"))
        halves = (cast(gated.pop(f"{each}_proj"))["weight"] for each in ("gate", "up"))
        attention["qkv_proj"], gated["gate_up"] = qkv, _side_by_side(*halves)
        return apart | {"self_attn": attention, "mlp": gated}

    model = params["model"]
    layers = {name: layer(apart) for name, apart in model["layers"].items()}
    return params | {"model": model | {"layers": layers}}


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
