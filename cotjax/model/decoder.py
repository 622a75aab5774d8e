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

import jax

from cotjax.model.config import ModelConfig
from cotjax.model.kernels import attend_by
from cotjax.model.params import Params, bind


def hidden_states(
    config: ModelConfig,
    params: Params,
    ids_BT: jax.Array,
    positions_BT: jax.Array,
    segment_ids_BT: jax.Array,
    branches_BT: jax.Array,
    remat: str = "none",
    scan: bool = False,
    kernel: str = "xla",
) -> jax.Array:
    """Last hidden states [B, T, D] of packed rows of trees (attention.visible has a drawn row), in the compute dtype.

    `remat` names what the backward pass computes again instead of keeping it (REMAT): "none", "dots" (element-wise work) or
    "block" (a layer's projections and feed-forward too: much less memory for a little more arithmetic). `scan`: the layers are
    one program that runs once a layer, which compiles faster. `kernel` computes attention (kernels.KERNELS). Call it under
    `jax.set_mesh(mesh)` on several devices, so that activations stay where the table says.
    """
    attention = attend_by(kernel)

    def attend(
        _: int | jax.Array, q_BNTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array
    ) -> jax.Array:
        return attention(q_BNTH, k_BKTH, v_BKTH, segment_ids_BT, branches_BT)

    return bind(config, params).hidden_states(ids_BT, positions_BT, attend, remat, scan)


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Float32 logits [..., V] of last hidden states [..., D]."""
    return bind(config, params).logits(hidden)


def output_weight(config: ModelConfig, params: Params) -> jax.Array:
    """The output projection [V, D] in the compute dtype, shared out as the parameter is: logits are `hidden @ output_weight.T`."""
    return bind(config, params).output.weight[...].astype(config.compute_dtype)
