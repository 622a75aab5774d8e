"""Where chosen predictions get their information from: attention, and gradient along the values.

A row has groups of tokens, such as the task and the reasoning, and a few queries, the positions
that predict an action's tokens. Of a query t, with attention alpha over the tokens i that it sees:

    attention   sum of alpha_ti over the tokens of a group (mean over heads and queries)
    gradient    the loss is the sum of the queries' cross-entropies. It reaches the value vector
                v_i through the attention of the queries as sum over t of alpha_ti delta_t, where
                delta_t is its gradient at attention's result in t (arXiv 2606.26935). A group's
                is the sum of these vectors' norms over its tokens

Letters are those of model/decoder.py; besides, Q counts the queries of a row, R the groups, and X
the rows that meet one key head: all queries of all heads that it serves.

    row        p p p <think> t t </think> <action> go to      .
    groups     0 0 0 2       1 1 2        2        3  3      -1
    queries                               t=7      t=8             targets: go, to
    at_BQ      7 8 11 11                  11 (the row's length): no query
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.stages import Lowered

from cotjax.model.config import ModelConfig
from cotjax.model.kernels import attend_by, kernel_for
from cotjax.model.layers import TapLayer
from cotjax.model.params import Params, abstract_params, bind
from cotjax.model.products import wide_einsum
from cotjax.model.sharding import batch_sharding, constrain

_HIDDEN = -1e30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Asked:
    """Rows and their queries: arrays, or their shapes.

    Attributes:
      ids_BT: int32.
      groups_BT: int32, each token's group; -1 is padding, at the end of a row.
      branches_BT: int32, as in attention.visible: tokens on the trunk (0) do not see a branch.
      masked_BT: bool, the tokens that the queries, and they alone, do not see.
      at_BQ: int32, the queries; T for none.
    """

    ids_BT: Any
    groups_BT: Any
    branches_BT: Any
    masked_BT: Any
    at_BQ: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shares:
    """What was found; sums are float32.

    Attributes:
      nats_BQ: cross-entropy of each query's target; 0 where there is no query.
      likeliest_BQ: int32, the most likely id at each query.
      attention_BLR: attention by layer and group, mean over heads and queries.
      gradient_BLR: norms of the gradient at the values, summed by group; of `gradients` alone.
      input_BR: |gradient x embedding| of each token, summed by group; likewise.
    """

    nats_BQ: jax.Array
    likeliest_BQ: jax.Array
    attention_BLR: jax.Array
    gradient_BLR: jax.Array | None = None
    input_BR: jax.Array | None = None


def attention(config: ModelConfig, params: Params, rows: Asked, groups: int, kernel: str) -> Shares:
    """Return the attention of the queries by group, and how likely their targets are.

    `kernel` computes the attention of all other tokens (kernels.KERNELS).
    """
    model = bind(config, params)
    x_BTD = model.embedded(rows.ids_BT)
    nats_BQ, likeliest_BQ, taps = _predict(config, params, rows, kernel, x_BTD, None, "none")
    of_layers = [
        _attended(_attention(q_BNQH, k_BKTH, rows), rows, groups) for q_BNQH, k_BKTH in taps
    ]
    return Shares(nats_BQ, likeliest_BQ, jnp.stack(of_layers, axis=1))


def gradients(
    config: ModelConfig,
    params: Params,
    rows: Asked,
    groups: int,
    kernel: str,
    remat: str = "block",
) -> Shares:
    """Return `attention`, and the gradient of the queries' summed loss by group.

    No gradient of a parameter is made. A layer keeps its keys and what `remat` (layers.REMAT) says.
    """
    B, Q = rows.at_BQ.shape
    # delta_t: the gradient at zeros that are added to attention's results.
    zeros_LBNQH = constrain(
        jnp.zeros((config.layers, B, config.heads, Q, config.head_size), jnp.float32),
        ("layers", "batch", "heads", "length", "head_size"),
    )
    x_BTD = bind(config, params).embedded(rows.ids_BT)

    def loss(more_LBNQH: jax.Array, x_BTD: jax.Array) -> tuple[jax.Array, tuple]:
        nats_BQ, likeliest_BQ, taps = _predict(
            config, params, rows, kernel, x_BTD, more_LBNQH, remat
        )
        return nats_BQ.sum(), (nats_BQ, likeliest_BQ, taps)

    (_, (nats_BQ, likeliest_BQ, taps)), (delta_LBNQH, d_x_BTD) = jax.value_and_grad(
        loss, argnums=(0, 1), has_aux=True
    )(zeros_LBNQH, x_BTD)
    attended, reached = [], []
    for delta_BNQH, (q_BNQH, k_BKTH) in zip(delta_LBNQH, taps, strict=True):
        shares_BNQT = _attention(q_BNQH, k_BKTH, rows)
        attended.append(_attended(shares_BNQT, rows, groups))
        reached.append(
            _by_group(_at_values(shares_BNQT, delta_BNQH, k_BKTH.shape[1]), rows, groups)
        )
    product_BT = (d_x_BTD.astype(jnp.float32) * x_BTD.astype(jnp.float32)).sum(axis=-1)
    return Shares(
        nats_BQ,
        likeliest_BQ,
        jnp.stack(attended, axis=1),
        jnp.stack(reached, axis=1),
        _by_group(jnp.abs(product_BT), rows, groups),
    )


def lower(
    config: ModelConfig,
    mesh: Mesh,
    rows: int,
    length: int,
    queries: int,
    groups: int,
    with_gradient: bool,
) -> Lowered:
    """Lower `attention` or `gradients` as a program of (params in the compute dtype, Asked).

    Call it with the mesh set around. `rows` are a multiple of the batch's devices, `length` is T
    and `queries` Q.
    """
    by_row = batch_sharding(mesh)

    def of(size: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, size), dtype, sharding=by_row)

    ids = of(length, jnp.int32)
    asked = Asked(ids, ids, ids, of(length, jnp.bool_), of(queries, jnp.int32))
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, config.compute_as, sharding=x.sharding),
        abstract_params(config, mesh),
    )
    of_rows = partial(
        gradients if with_gradient else attention,
        config,
        groups=groups,
        kernel=kernel_for(config, mesh),
    )
    return jax.jit(of_rows, out_shardings=by_row).lower(params, asked)


def _predict(
    config: ModelConfig,
    params: Params,
    rows: Asked,
    kernel: str,
    x_BTD: jax.Array,
    more_LBNQH: jax.Array | None,
    remat: str,
) -> tuple[jax.Array, jax.Array, list]:
    """Return nats and most likely ids of the queries, and each layer's (q_BNQH, k_BKTH).

    `more_LBNQH` is added to the result of attention in the queries.
    """
    model, T = bind(config, params), rows.ids_BT.shape[1]
    positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], rows.ids_BT.shape)
    hidden_BTD, taps = model.tapped(
        x_BTD, positions_BT, _attend_asked(kernel, rows, more_LBNQH), remat
    )
    at_BQ1 = jnp.minimum(rows.at_BQ, T - 1)[:, :, None]
    logits_BQV = model.logits(jnp.take_along_axis(hidden_BTD, at_BQ1, axis=1))
    targets_BQ = jnp.take_along_axis(rows.ids_BT, jnp.minimum(rows.at_BQ + 1, T - 1), axis=1)
    of_target_BQ = jnp.take_along_axis(logits_BQV, targets_BQ[..., None], axis=-1)[..., 0]
    nats_BQ = jnp.where(rows.at_BQ < T, jax.nn.logsumexp(logits_BQV, axis=-1) - of_target_BQ, 0.0)
    return nats_BQ, jnp.argmax(logits_BQV, axis=-1).astype(jnp.int32), taps


def _attend_asked(kernel: str, rows: Asked, more_LBNQH: jax.Array | None) -> TapLayer:
    """Return attention in which the queries see by `masked_BT`, with (q_BNQH, k_BKTH) beside it."""
    of_all, T = attend_by(kernel), rows.ids_BT.shape[1]
    segments_BT = (rows.groups_BT >= 0).astype(jnp.int32)
    at_B1Q1 = jnp.minimum(rows.at_BQ, T - 1)[:, None, :, None]
    asked_BQT = rows.at_BQ[:, :, None] == jnp.arange(T)[None, None, :]
    asked_B1T1 = asked_BQT.any(axis=1)[:, None, :, None]

    def attend(
        index: int, q_BNTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        out_BNTH = of_all(q_BNTH, k_BKTH, v_BKTH, segments_BT, rows.branches_BT)
        q_BNQH = jnp.take_along_axis(q_BNTH, at_B1Q1, axis=2)
        own_BNQH = _weighted(_attention(q_BNQH, k_BKTH, rows), v_BKTH)
        if more_LBNQH is not None:
            own_BNQH += more_LBNQH[index]
        # A product with ones and zeros: it moves the queries' results without rounding, and is
        # sharded as attention is.
        own_BNTH = jnp.einsum(
            "BQT,BNQH->BNTH", asked_BQT.astype(out_BNTH.dtype), own_BNQH.astype(out_BNTH.dtype)
        )
        return jnp.where(asked_B1T1, own_BNTH, out_BNTH), (q_BNQH, k_BKTH)

    return attend


def _attention(q_BNQH: jax.Array, k_BKTH: jax.Array, rows: Asked) -> jax.Array:
    """Return what the queries attend to, float32 [B, N, Q, T]; rows sum to 1."""
    B, N, Q, H = q_BNQH.shape
    K, T = k_BKTH.shape[1:3]
    q_BKXH = (q_BNQH * (1 / sqrt(H))).reshape(B, K, N // K * Q, H)
    scores_BKXT = wide_einsum("BKXH,BKTH->BKXT", q_BKXH, k_BKTH)
    scores_BNQT = scores_BKXT.reshape(B, N, Q, T)
    return jax.nn.softmax(jnp.where(_seen(rows)[:, None], scores_BNQT, _HIDDEN), axis=-1)


def _seen(rows: Asked) -> jax.Array:
    """Return what each query sees, bool [B, Q, T]."""
    T = rows.ids_BT.shape[1]
    causal_BQT = jnp.arange(T)[None, None, :] <= rows.at_BQ[:, :, None]
    branch_BQ1 = jnp.take_along_axis(rows.branches_BT, jnp.minimum(rows.at_BQ, T - 1), axis=1)
    on_path_BQT = (rows.branches_BT == 0)[:, None] | (
        rows.branches_BT[:, None] == branch_BQ1[:, :, None]
    )
    real_BT = (rows.groups_BT >= 0) & ~rows.masked_BT
    return causal_BQT & on_path_BQT & real_BT[:, None]


def _weighted(shares_BNQT: jax.Array, v_BKTH: jax.Array) -> jax.Array:
    """Return the values weighted by attention, float32 [B, N, Q, H]."""
    B, N, Q, T = shares_BNQT.shape
    K, H = v_BKTH.shape[1], v_BKTH.shape[3]
    shares_BKXT = shares_BNQT.astype(v_BKTH.dtype).reshape(B, K, N // K * Q, T)
    out_BKXH = wide_einsum("BKXT,BKTH->BKXH", shares_BKXT, v_BKTH)
    return out_BKXH.reshape(B, N, Q, H)


def _at_values(shares_BNQT: jax.Array, delta_BNQH: jax.Array, K: int) -> jax.Array:
    """Return the norm over all heads of sum_t alpha_ti delta_t at each value vector, [B, T]."""
    B, N, Q, T = shares_BNQT.shape
    shares_BKXT = shares_BNQT.reshape(B, K, N // K * Q, T)
    delta_BKXH = delta_BNQH.reshape(B, K, N // K * Q, delta_BNQH.shape[-1])
    reached_BKTH = jnp.einsum("BKXT,BKXH->BKTH", shares_BKXT, delta_BKXH)
    return jnp.sqrt(jnp.square(reached_BKTH).sum(axis=(1, 3)))


def _attended(shares_BNQT: jax.Array, rows: Asked, groups: int) -> jax.Array:
    """Return attention by group, mean over heads and the row's queries, [B, R]."""
    asked_BQ = (rows.at_BQ < rows.ids_BT.shape[1]).astype(jnp.float32)
    count_B1 = jnp.maximum(asked_BQ.sum(axis=1, keepdims=True), 1)
    mean_BT = jnp.einsum("BNQT,BQ->BT", shares_BNQT, asked_BQ / count_B1) / shares_BNQT.shape[1]
    return _by_group(mean_BT, rows, groups)


def _by_group(values_BT: jax.Array, rows: Asked, groups: int) -> jax.Array:
    """Return values of tokens summed by group, [B, R]."""
    return jnp.einsum("BT,BTR->BR", values_BT, jax.nn.one_hot(rows.groups_BT, groups))
