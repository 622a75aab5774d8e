"""The decoder: a pre-norm transformer with rotary positions, grouped key heads and a gated feed-forward (Qwen3's layout).

One alphabet for shapes, written behind a name (`q_BNTH`) and in every einsum:

    B batch    T query length    S key length    N heads    K kv heads    H head size    D model width
    F feed-forward    V vocabulary    L layers

The modules are Flax NNX, with the attribute names of Hugging Face's checkpoints. Outside this file they are not seen: the
functions at its end take and return plain nested dicts (`params["model"]["layers"]["0"]["self_attn"]["q_proj"]["weight"]`),
and the module's graph is split off once a config, so that a jitted step never handles it.

A weight is declared once (shape, logical axes, scale of its initial values); the abstract tree, the sharding and the
initialiser follow from the declaration, and nothing is materialised before its sharding is known.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from cotjax.errors import DataError
from cotjax.model.attention import ATTENDED, tree_attention
from cotjax.model.config import ModelConfig
from cotjax.model.sharding import constrain, param_shardings

# What a remat keeps of a layer: attention's result is small beside what it takes to compute it again.
_KEEP_ATTENDED = jax.checkpoint_policies.save_only_these_names(ATTENDED)

Params = dict[str, Any]
Path = tuple[str, ...]


@dataclass(frozen=True)
class Weight:
    """The declaration of one parameter."""

    shape: tuple[int, ...]
    dtype: jnp.dtype
    axes: tuple[str, ...]  # logical axes, one a dimension; sharding.RULES places them
    std: float | None  # of its normal initial values; None: a norm's scale, which starts at one; 0: a bias


def _param(config: ModelConfig, shape: tuple[int, ...], axes: tuple[str, ...], std: float | None) -> nnx.Param:
    """A parameter that holds no values yet, only its declaration."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, config.params_as), axes=axes, std=std)


class RMSNorm(nnx.Module):
    """Scales by the root mean square over the last axis, in float32 (Zhang and Sennrich, 2019)."""

    def __init__(self, config: ModelConfig, size: int):
        self.eps = config.norm_eps
        self.weight = _param(config, (size,), ("norm",), None)

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        weight = self.weight[...].astype(x.dtype)
        return wide.astype(x.dtype) * weight.reshape((1,) * (x.ndim - 1) + weight.shape)


class Linear(nnx.Module):
    """A projection by an einsum; weights lie input axes first, as the einsum's letters say."""

    def __init__(self, config: ModelConfig, equation: str, shape: tuple[int, ...], axes: tuple[str, ...], std: float):
        self.equation = equation
        self.compute = config.compute_dtype
        self.weight = _param(config, shape, axes, std)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.einsum(self.equation, x, self.weight[...].astype(self.compute))


class HeadLinear(Linear):
    """A projection to heads, [B, T, D] -> [B, N, T, H], with a bias where the config asks for one."""

    def __init__(self, config: ModelConfig, heads: int, axis: str):
        D, H = config.width, config.head_size
        super().__init__(config, "BTD,DNH->BNTH", (D, heads, H), ("embed", axis, "head_size"), 1 / sqrt(D))
        self.bias = _param(config, (heads, H), (axis, "head_size"), 0.0) if config.qkv_bias else None

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        y_BNTH = super().__call__(x_BTD)
        if self.bias is None:
            return y_BNTH
        return y_BNTH + self.bias[...].astype(self.compute)[None, :, None, :]


class Attention(nnx.Module):
    """Self-attention with rotary positions. How queries meet keys is the caller's: training rows or a cache."""

    def __init__(self, config: ModelConfig):
        D, N, K, H = config.width, config.heads, config.kv_heads, config.head_size
        self.q_proj = HeadLinear(config, N, "heads")
        self.k_proj = HeadLinear(config, K, "kv_heads")
        self.v_proj = HeadLinear(config, K, "kv_heads")
        # Two matrices a layer write into the residual stream: this scale keeps its size at one however deep the model is.
        out_std = 1 / sqrt(N * H * 2 * config.layers)
        self.o_proj = Linear(config, "BNTH,NHD->BTD", (N, H, D), ("heads", "head_size", "embed"), out_std)
        self.q_norm = RMSNorm(config, H) if config.qk_norm else None
        self.k_norm = RMSNorm(config, H) if config.qk_norm else None

    def heads(self, x_BTD: jax.Array, rope: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, N, T, H], keys and values [B, K, T, H], the first two turned to their positions."""
        q_BNTH, k_BKTH, v_BKTH = self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)
        if self.q_norm is not None:
            q_BNTH, k_BKTH = self.q_norm(q_BNTH), self.k_norm(k_BKTH)
        return _rotate(q_BNTH, rope), _rotate(k_BKTH, rope), v_BKTH


class FeedForward(nnx.Module):
    """The gated feed-forward (Shazeer, 2020): down(silu(gate x) * up x)."""

    def __init__(self, config: ModelConfig):
        D, F = config.width, config.feed_forward
        self.gate_proj = Linear(config, "BTD,DF->BTF", (D, F), ("embed", "feed_forward"), 1 / sqrt(D))
        self.up_proj = Linear(config, "BTD,DF->BTF", (D, F), ("embed", "feed_forward"), 1 / sqrt(D))
        self.down_proj = Linear(config, "BTF,FD->BTD", (F, D), ("feed_forward", "embed"), 1 / sqrt(F * 2 * config.layers))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class DecoderLayer(nnx.Module):
    """Attention, then feed-forward, each on a normed copy of the residual stream."""

    def __init__(self, config: ModelConfig):
        self.input_layernorm = RMSNorm(config, config.width)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config, config.width)
        self.mlp = FeedForward(config)

    def __call__(self, x_BTD: jax.Array, rope: tuple[jax.Array, jax.Array], attend: Any) -> jax.Array:
        """`attend(q_BNTH, k_BKTH, v_BKTH) -> [B, N, T, H]`."""
        q_BNTH, k_BKTH, v_BKTH = self.self_attn.heads(self.input_layernorm(x_BTD), rope)
        x_BTD = x_BTD + self.self_attn.o_proj(attend(q_BNTH, k_BKTH, v_BKTH))
        x_BTD = x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
        return constrain(x_BTD, ("batch", "length", "hidden"))


class Embed(nnx.Module):
    """One row a token id: [V, D]. The same layout serves the output projection, tied or not."""

    def __init__(self, config: ModelConfig):
        self.compute = config.compute_dtype
        self.weight = _param(config, (config.vocab_size, config.width), ("vocab", "embed"), 0.02)

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        return self.weight[...].astype(self.compute)[ids_BT]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Float32 [..., V] of [..., D]."""
        weight_VD = self.weight[...].astype(self.compute)
        return jnp.einsum("...D,VD->...V", hidden, weight_VD, preferred_element_type=jnp.float32)


class Backbone(nnx.Module):
    """Embedding, layers and last norm."""

    def __init__(self, config: ModelConfig):
        self.embed_tokens = Embed(config)
        # Unrolled, not scanned: a scan's sliced weights cost the decode loop half its speed on CPU.
        self.layers = nnx.List([DecoderLayer(config) for _ in range(config.layers)])
        self.norm = RMSNorm(config, config.width)


class Decoder(nnx.Module):
    """The whole model, as the names of a checkpoint have it."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.model = Backbone(config)
        self.lm_head = None if config.tied_embeddings else Embed(config)

    def hidden_states(self, ids_BT: jax.Array, positions_BT: jax.Array, attend: Any, remat: bool = False) -> jax.Array:
        """`attend(layer index, q_BNTH, k_BKTH, v_BKTH) -> [B, N, T, H]`; the result [B, T, D] has passed the last norm."""
        x_BTD = constrain(self.model.embed_tokens(ids_BT), ("batch", "length", "hidden"))
        rope = jax.lax.optimization_barrier(_rope(positions_BT, self.config))
        for index, layer in enumerate(self.model.layers):

            def apply(x_BTD: jax.Array, layer: DecoderLayer = layer, index: int = index) -> jax.Array:
                return layer(x_BTD, rope, lambda q, k, v: attend(index, q, k, v))

            x_BTD = (jax.checkpoint(apply, policy=_KEEP_ATTENDED) if remat else apply)(x_BTD)
        return self.model.norm(x_BTD)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Float32 [..., V] of last hidden states [..., D]."""
        return (self.model.embed_tokens if self.lm_head is None else self.lm_head).logits(hidden)


def _rope(positions_BT: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every position's angles, [B, 1, T, H/2], float32 (Su et al., 2021)."""
    half = config.head_size // 2
    wavelengths = config.rope_theta ** (jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions_BT.astype(jnp.float32)[:, None, :, None] / wavelengths[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x_BNTH: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns the pairs (i, i + H/2), the pairing of Hugging Face's checkpoints."""
    cos, sin = rope
    first, second = jnp.split(x_BNTH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BNTH.dtype)


# The pure boundary: nested dicts in, arrays out.


@lru_cache(maxsize=64)
def _graph(config: ModelConfig) -> tuple[Any, Any, dict[Path, Weight]]:
    """The module's graph, its state's tree, and every parameter's declaration in that tree's order."""
    graph, state = nnx.split(Decoder(config))
    weights: dict[Path, Weight] = {}
    for path, param in nnx.to_flat_state(state):
        shape, metadata = param.get_value(), param.get_metadata()
        weights[tuple(map(str, path))] = Weight(shape.shape, shape.dtype, metadata["axes"], metadata["std"])
    return graph, jax.tree.structure(state), weights


def declared(config: ModelConfig) -> Mapping[Path, Weight]:
    """Every parameter's declaration by its path, such as ("model", "layers", "0", "mlp", "up_proj", "weight")."""
    return _graph(config)[2]


def nest(by_path: Mapping[Path, Any]) -> dict[str, Any]:
    """A flat dict of paths as the nested dict that `params` is."""
    tree: dict[str, Any] = {}
    for path, leaf in by_path.items():
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = leaf
    return tree


def leaf(params: Params, path: Path) -> Any:
    """The parameter at a path. Raises DataError, naming it, when it is not there."""
    found: Any = params
    for name in path:
        if not isinstance(found, Mapping) or name not in found:
            raise DataError(f"params: there is no {'.'.join(path)}; these are not the weights of this config")
        found = found[name]
    return found


def bind(config: ModelConfig, params: Params) -> Decoder:
    """The module with these parameters in it. Only to be called while a function is traced."""
    graph, structure, weights = _graph(config)
    return nnx.merge(graph, jax.tree.unflatten(structure, [leaf(params, path) for path in weights]))


def abstract_params(config: ModelConfig, mesh: Mesh | None = None) -> Params:
    """Shape and dtype of every parameter, and its sharding where there is a mesh: what a restore asks for."""
    abstract = nest({path: jax.ShapeDtypeStruct(weight.shape, weight.dtype) for path, weight in declared(config).items()})
    if mesh is None:
        return abstract
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), abstract, param_shardings(config, mesh))


def init_params(config: ModelConfig, key: jax.Array, mesh: Mesh | None = None) -> Params:
    """Fresh parameters, made where they will live: the same values on any mesh.

    `key` is a jax.random key; each parameter's own key comes from its path, so that adding one leaves the others as they were.
    """

    def make(key: jax.Array) -> Params:
        return nest({path: _initial(weight, path, key) for path, weight in declared(config).items()})

    if mesh is None:
        return jax.jit(make)(key)
    return jax.jit(make, out_shardings=param_shardings(config, mesh))(key)


def _initial(weight: Weight, path: Path, key: jax.Array) -> jax.Array:
    if weight.std is None:
        return jnp.ones(weight.shape, weight.dtype)
    own = jax.random.fold_in(key, zlib.crc32(".".join(path).encode()))
    return (jax.random.normal(own, weight.shape, jnp.float32) * weight.std).astype(weight.dtype)


def hidden_states(
    config: ModelConfig,
    params: Params,
    ids_BT: jax.Array,
    positions_BT: jax.Array,
    segment_ids_BT: jax.Array,
    branches_BT: jax.Array,
    remat: bool = False,
) -> jax.Array:
    """Last hidden states [B, T, D] of packed rows of trees (attention.visible has a drawn row), in the compute dtype.

    `remat` computes each layer's projections and feed-forward again in the backward pass instead of keeping what they made:
    much less memory for a little more arithmetic. Call it under `jax.set_mesh(mesh)` on several devices, so that activations stay where the table says.
    """

    def attend(index: int, q_BNTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array) -> jax.Array:
        return tree_attention(q_BNTH, k_BKTH, v_BKTH, segment_ids_BT, branches_BT)

    return bind(config, params).hidden_states(ids_BT, positions_BT, attend, remat)


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Float32 logits [..., V] of last hidden states [..., D]."""
    return bind(config, params).logits(hidden)
