"""The decoder's layers as Flax NNX modules, with the attribute names of Hugging Face's checkpoints.

Letters are those of model/decoder.py. A module holds declarations of its weights (linear.param)
until `params.bind` merges real values into it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from cotjax.errors import UsageError
from cotjax.model.attention import ATTENDED
from cotjax.model.config import ModelConfig
from cotjax.model.linear import Linear, param
from cotjax.model.platform import forms_here
from cotjax.model.products import PRODUCT, wide_einsum
from cotjax.model.rope import Rope, rope_of, rotate
from cotjax.model.sharding import constrain, lookup

# The name that a remat policy keeps the results of attention's projections under.
PROJECTED = "projected"

# What the backward pass of a layer finds kept, and what it computes again; from most memory to
# least.
_ATTENDED_ALONE = jax.checkpoint_policies.save_only_these_names(ATTENDED)
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    # The results of all projections, so that only element-wise work is done again.
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.save_only_these_names(ATTENDED, PRODUCT),
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    ),
    # Those of attention, so that the feed-forward, whose results are the widest, is done again.
    "mlp": jax.checkpoint_policies.save_only_these_names(ATTENDED, PROJECTED),
    # Only attention's result: it is small compared with the work to compute it again.
    "block": _ATTENDED_ALONE,
}

# (q_BNTH, k_BKTH, v_BKTH) -> [B, N, T, H]; where it is `raw`, (`Raw`) -> the same.
Attend = Callable[..., jax.Array]
# The same after a layer's index.
AttendLayer = Callable[..., jax.Array]
# The same with arrays beside it, which a layer hands out; None for none.
TapLayer = Callable[..., tuple[jax.Array, Any]]


class Raw(NamedTuple):
    """What an attention gets that norms and rotates queries and keys by itself."""

    # Of each key head its G query heads, its key and its value (Attention, fused).
    qkv_BTKgH: jax.Array
    rope: Rope
    q_norm_H: jax.Array | None  # the norms' weights; None: no norm
    k_norm_H: jax.Array | None


class RMSNorm(nnx.Module):
    """Scale by the root mean square over the last axis, in float32 (Zhang and Sennrich, 2019)."""

    def __init__(self, config: ModelConfig, size: int):
        self.eps = config.norm_eps
        self.weight = param(config, (size,), ("norm",), None)

    @jax.named_scope("norm")
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        weight = self.weight[...].astype(x.dtype)
        return wide.astype(x.dtype) * weight.reshape((1,) * (x.ndim - 1) + weight.shape)


class Attention(nnx.Module):
    """Self-attention with rotary positions. The caller's `attend` relates queries and keys.

    `fused` (model/fused.py): q, k and v are one projection, `qkv_proj` [D, K, G + 2, H]: of each
    key head its G = N / K query heads, its key and its value, so that they stay on one device.
    """

    qkv_proj: Linear | None = None

    def __init__(self, config: ModelConfig, fused: bool = False):
        D, N, K, H = config.width, config.heads, config.kv_heads, config.head_size
        embed, query_heads, key_heads = (
            {"embed": D},
            {"heads": N, "head_size": H},
            {"kv_heads": K, "head_size": H},
        )
        self.group = N // K
        if fused:
            together = {"kv_heads": K, "group": self.group + 2, "head_size": H}
            self.qkv_proj = Linear(config, embed, together, 1 / sqrt(D), config.qkv_bias)
        else:
            self.q_proj = Linear(config, embed, query_heads, 1 / sqrt(D), config.qkv_bias)
            self.k_proj = Linear(config, embed, key_heads, 1 / sqrt(D), config.qkv_bias)
            self.v_proj = Linear(config, embed, key_heads, 1 / sqrt(D), config.qkv_bias)
        # Two matrices a layer write into the residual stream: this scale keeps its size at one
        # however deep the model is.
        self.o_proj = Linear(config, query_heads, embed, 1 / sqrt(N * H * 2 * config.layers))
        self.q_norm = RMSNorm(config, H) if config.qk_norm else None
        self.k_norm = RMSNorm(config, H) if config.qk_norm else None

    @jax.named_scope("attention")
    def __call__(
        self,
        x_BTD: jax.Array,
        rope: Rope,
        attend: Attend,
        at_B: jax.Array | None = None,
        raw: bool = False,
    ) -> jax.Array:
        if raw and self.qkv_proj is not None:
            norms = (
                None if norm is None else norm.weight[...] for norm in (self.q_norm, self.k_norm)
            )
            out_BTNH = _heads_first(attend(Raw(self.qkv_proj(x_BTD), rope, *norms)))
            return self.o_proj(out_BTNH)
        q_BNTH, k_BKTH, v_BKTH = (
            _heads_first(_named(each)) for each in self._projections(x_BTD, at_B)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q_BNTH, k_BKTH = self.q_norm(q_BNTH), self.k_norm(k_BKTH)
        own = rope if at_B is None else (_only(rope[0], at_B, 2), _only(rope[1], at_B, 2))
        q_BNTH, k_BKTH = rotate(q_BNTH, own), rotate(k_BKTH, rope)
        with jax.named_scope("attend"):
            out_BNTH = attend(q_BNTH, k_BKTH, v_BKTH)
        return _named(self.o_proj(_heads_first(out_BNTH)))

    def _projections(
        self, x_BTD: jax.Array, at_B: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return q [B, T, N, H], k and v [B, T, K, H]; q of tokens `at_B` alone where given."""
        if self.qkv_proj is None:
            return self.q_proj(_only(x_BTD, at_B, 1)), self.k_proj(x_BTD), self.v_proj(x_BTD)
        q_BTNH, k_BTKH, v_BTKH = split_heads(self.qkv_proj(x_BTD))
        return _only(q_BTNH, at_B, 1), k_BTKH, v_BTKH


def _named(x: jax.Array) -> jax.Array:
    return checkpoint_name(x, PROJECTED)


def split_heads(qkv_BTKgH: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return q [B, T, N, H], k and v [B, T, K, H] of a fused projection."""
    B, T, *_, H = qkv_BTKgH.shape
    q_BTNH = qkv_BTKgH[:, :, :, :-2].reshape(B, T, -1, H)
    return q_BTNH, qkv_BTKgH[:, :, :, -2], qkv_BTKgH[:, :, :, -1]


def _heads_first(x_BTNH: jax.Array) -> jax.Array:
    """Return [B, T, N, H] as [B, N, T, H], and the reverse."""
    return x_BTNH.swapaxes(1, 2)


def _only(x: jax.Array, at_B: jax.Array | None, axis: int) -> jax.Array:
    """Select index `at_B` of each row, keeping the axis; None selects everything."""
    if at_B is None:
        return x
    return jnp.take_along_axis(
        x, at_B.reshape([-1 if i == 0 else 1 for i in range(x.ndim)]), axis=axis
    )


class FeedForward(nnx.Module):
    """The gated feed-forward (Shazeer, 2020): down(silu(gate x) * up x).

    `fused` (model/fused.py): gate and up are one projection, `gate_up` [D, 2, F].
    """

    gate_up: nnx.Param | None = None

    def __init__(self, config: ModelConfig, fused: bool = False):
        D, F = {"embed": config.width}, {"feed_forward": config.feed_forward}
        self.compute = config.compute_dtype
        if fused:
            shape, axes = (config.width, 2, config.feed_forward), ("embed", "gate_up", *F)
            self.gate_up = param(config, shape, axes, 1 / sqrt(config.width))
        else:
            self.gate_proj = Linear(config, D, F, 1 / sqrt(config.width))
            self.up_proj = Linear(config, D, F, 1 / sqrt(config.width))
        self.down_proj = Linear(config, F, D, 1 / sqrt(config.feed_forward * 2 * config.layers))

    @jax.named_scope("mlp")
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        if self.gate_up is None:
            return self.down_proj(jax.nn.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        both_BTcF = jnp.einsum("BTD,DcF->BTcF", x_BTD, self.gate_up[...].astype(self.compute))
        return self.down_proj(jax.nn.silu(both_BTcF[:, :, 0]) * both_BTcF[:, :, 1])


class DecoderLayer(nnx.Module):
    """Attention, then feed-forward, each on a normed copy of the residual stream."""

    def __init__(self, config: ModelConfig, fused: bool = False):
        self.input_layernorm = RMSNorm(config, config.width)
        self.self_attn = Attention(config, fused)
        self.post_attention_layernorm = RMSNorm(config, config.width)
        self.mlp = FeedForward(config, fused)

    def __call__(
        self,
        x_BTD: jax.Array,
        rope: Rope,
        attend: Attend,
        at_B: jax.Array | None = None,
        raw: bool = False,
    ) -> jax.Array:
        """Return the residual stream; with `at_B` only of that token of each row, [B, 1, D]."""
        x_BTD = _only(x_BTD, at_B, 1) + self.self_attn(
            self.input_layernorm(x_BTD), rope, attend, at_B, raw
        )
        x_BTD = x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
        return constrain(x_BTD, ("batch", "length", "hidden"))


class Embed(nnx.Module):
    """One row a token id: [V, D]. The output projection has the same layout, tied or not."""

    def __init__(self, config: ModelConfig):
        self.compute = config.compute_dtype
        self.weight = param(config, (config.vocab_size, config.width), ("vocab", "embed"), 0.02)

    @jax.named_scope("embed")
    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        # Cast after the look-up: the gradients of a frequent token's many places are added up in
        # the parameter's own dtype.
        return lookup(self.weight[...], ids_BT, self.compute)

    @jax.named_scope("logits")
    def logits(self, hidden: jax.Array) -> jax.Array:
        """Return float32 [..., V] of [..., D]."""
        # Gathered over fsdp before use like any weight.
        weight_VD = constrain(self.weight[...].astype(self.compute), ("vocab", "hidden"))
        rows = hidden.reshape(-1, hidden.shape[-1]) if forms_here().flat_rows else hidden
        logits = wide_einsum("...D,VD->...V", rows, weight_VD)
        return logits.reshape(*hidden.shape[:-1], weight_VD.shape[0])


class Backbone(nnx.Module):
    """Embedding, layers and last norm."""

    def __init__(self, config: ModelConfig, fused: bool = False):
        self.embed_tokens = Embed(config)
        self.layers = nnx.List([DecoderLayer(config, fused) for _ in range(config.layers)])
        self.norm = RMSNorm(config, config.width)


class Transformer(nnx.Module):
    """The whole model, with a checkpoint's names, but for those of model/fused.py where `fused`."""

    def __init__(self, config: ModelConfig, fused: bool = False):
        self.config = config
        self.model = Backbone(config, fused)
        self.lm_head = None if config.tied_embeddings else Embed(config)
        if config.lora is not None:
            projections = {
                ".".join(map(str, path)): part
                for path, part in nnx.iter_modules(self)
                if isinstance(part, Linear)
            }
            for path in config.lora.chosen(projections):
                projections[path].adapt(config, config.lora)

    def embedded(self, ids_BT: jax.Array) -> jax.Array:
        """Return the embeddings [B, T, D] that enter the first layer."""
        return constrain(self.model.embed_tokens(ids_BT), ("batch", "length", "hidden"))

    def hidden_states(
        self,
        ids_BT: jax.Array,
        positions_BT: jax.Array,
        attend: AttendLayer,
        remat: str = "none",
        scan: bool = False,
        at_B: jax.Array | None = None,
        raw: bool = False,
    ) -> jax.Array:
        """Return the last hidden states [B, T, D], after the last norm, over the temperature.

        `at_B` selects one token of every row, [B, 1, D]: for the others the last layer computes
        keys and values alone, and its queries are q_BN1H. `raw`: `attend` takes `Raw`; of a fused
        model alone.
        """
        x_BTD = self.embedded(ids_BT)
        if not scan:
            return self.tapped(
                x_BTD, positions_BT, lambda *layer: (attend(*layer), None), remat, at_B, raw
            )[0]
        rope = rope_of(positions_BT, self.config)

        def apply(x_BTD: jax.Array, layer: DecoderLayer, index: int | jax.Array) -> jax.Array:
            return layer(x_BTD, rope, lambda q, k, v: attend(index, q, k, v))

        return self._last(_scanned(self.config, self.model.layers, x_BTD, apply, remat))

    def tapped(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        attend: TapLayer,
        remat: str = "none",
        at_B: jax.Array | None = None,
        raw: bool = False,
    ) -> tuple[jax.Array, list[Any]]:
        """Return the last hidden states of embeddings, and what each layer's `attend` hands out."""
        rope = rope_of(positions_BT, self.config)

        def apply(
            x_BTD: jax.Array, layer: DecoderLayer, index: int, at_B: jax.Array | None
        ) -> tuple[jax.Array, Any]:
            taps: list[Any] = []

            def attend_layer(*projected: Any) -> jax.Array:
                out, tap = attend(index, *projected)
                taps.append(tap)
                return out

            return layer(x_BTD, rope, attend_layer, at_B, raw), taps[0]

        taps: list[Any] = []
        # Decoding never scans: the sliced weights cost its loop half its speed on CPU.
        for index, layer in enumerate(self.model.layers):
            last = index == self.config.layers - 1
            step = partial(apply, layer=layer, index=index, at_B=at_B if last else None)
            x_BTD, tap = (step if remat == "none" else jax.checkpoint(step, policy=REMAT[remat]))(
                x_BTD
            )
            taps.append(tap)
        return self._last(x_BTD), taps

    def _last(self, x_BTD: jax.Array) -> jax.Array:
        hidden_BTD, temperature = self.model.norm(x_BTD), self.config.temperature
        return hidden_BTD if temperature == 1 else hidden_BTD / temperature

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Return float32 [..., V] of last hidden states [..., D]."""
        return self.output.logits(hidden)

    @property
    def output(self) -> Embed:
        """The output projection."""
        return self.model.embed_tokens if self.lm_head is None else self.lm_head


def _scanned(
    config: ModelConfig,
    layers: nnx.List,
    x_BTD: jax.Array,
    apply: Callable[..., jax.Array],
    remat: str,
) -> jax.Array:
    """Apply `apply(x_BTD, layer, index)` to every layer by a scan, which compiles one layer.

    Parameters stay separate, each under its checkpoint's name. Their copies in the compute dtype
    are stacked here: two bytes a parameter in bfloat16, sharded as the parameters are. No other
    part of the program needs a second layout.
    """
    graph = nnx.graphdef(layers[0])
    each = [nnx.state(layer) for layer in layers]
    if any(nnx.graphdef(layer) != graph for layer in layers):
        raise UsageError(
            "scan: the layers differ (LoRA in some of them?); train with scan_layers=False"
        )

    def side_by_side(*weights: nnx.Variable) -> nnx.Variable:
        together = jnp.stack([weight[...].astype(config.compute_as) for weight in weights])
        return weights[0].replace(
            constrain(together, ("layers", *weights[0].get_metadata()["out_sharding"]))
        )

    with jax.named_scope("stack"):
        together = jax.tree.map(side_by_side, *each, is_leaf=lambda x: isinstance(x, nnx.Variable))

    def body(x_BTD: jax.Array, layer: tuple[Any, jax.Array]) -> tuple[jax.Array, None]:
        weights, index = layer
        return apply(x_BTD, nnx.merge(graph, weights), index), None

    if remat != "none":
        body = jax.checkpoint(
            body, policy=REMAT[remat], prevent_cse=False
        )  # a scan's body is not merged with another
    return jax.lax.scan(body, x_BTD, (together, jnp.arange(len(each))))[0]
