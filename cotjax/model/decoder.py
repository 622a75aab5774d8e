"""The decoder: a pre-norm transformer with rotary positions, grouped key heads and a gated
feed-forward (Qwen3's layout).

One alphabet for shapes, written at the end of a name (`q_BNTH`) and in every einsum:

    B batch    T query length    S key length    N heads    K kv heads    H head size
    D model width    F feed-forward    V vocabulary    L layers

It comes in two forms that compute the same. The functions take and return plain nested dicts
(`params["model"]["layers"]["0"]["self_attn"]["q_proj"]["weight"]`); the trainer and the sampler use
them, and a jitted step never handles a module. `Decoder` is a Flax NNX module that holds its
values.
"""

from __future__ import annotations

from typing import Self

import jax
import jax.numpy as jnp
from flax import nnx

from cotjax.errors import UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.fused import joined
from cotjax.model.kernels import attend_by, kernel_here
from cotjax.model.layers import AttendLayer, Transformer
from cotjax.model.params import Params, bind, init_params, leaf, nest
from cotjax.model.platform import forms_here


class Decoder(Transformer):
    """The decoder as a Flax module: it holds its parameters and returns logits.

    Its variables are nnx.Param under Hugging Face's names, with Flax's sharding metadata, so
    nnx.state, nnx.split, nnx.value_and_grad, nnx.Optimizer, nnx.get_partition_spec and
    nnx.get_abstract_model work on it.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs | None = None):
        """Draw the initial values that `init_params(config, rngs.params())` has.

        `rngs`: None leaves every parameter a jax.ShapeDtypeStruct.
        """
        super().__init__(config)
        if rngs is not None:
            self._set(init_params(config, rngs.params()))

    @classmethod
    def from_params(cls, config: ModelConfig, params: Params) -> Self:
        """Return the module that holds these arrays. Raises DataError where one is missing."""
        decoder = cls(config)
        decoder._set(params)
        return decoder

    @property
    def params(self) -> Params:
        """The values as the nested dict that the functions of this file take."""
        state = nnx.to_flat_state(nnx.state(self, nnx.Param))
        return nest({tuple(map(str, path)): value.get_value() for path, value in state})

    def __call__(
        self,
        ids_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        branches_BT: jax.Array | None = None,
        *,
        remat: str = "none",
        scan: bool = False,
        kernel: str = "auto",
    ) -> jax.Array:
        """Return float32 logits [B, T, V]; those at t predict the id at t + 1.

        `segment_ids_BT`: tokens attend within their segment (None: a row is one segment).
        `positions_BT`: None counts from each segment's start. `branches_BT` makes trees
        (attention.visible) and needs positions. `remat`, `scan`: as in `hidden_states`.

        Raises UsageError for branches without positions, or an unknown `remat` or `kernel`.
        """
        if branches_BT is not None and positions_BT is None:
            raise UsageError("decoder: branches need positions; give positions_BT too")
        if segment_ids_BT is None:
            segment_ids_BT = jnp.ones(ids_BT.shape, jnp.int32)
        if positions_BT is None:
            positions_BT = _positions_of(segment_ids_BT)
        if branches_BT is None:
            branches_BT = jnp.zeros(ids_BT.shape, jnp.int32)
        attend = _attend_rows(kernel_here(kernel, self.config), segment_ids_BT, branches_BT)
        return self.logits(self.hidden_states(ids_BT, positions_BT, attend, remat, scan))

    def _set(self, params: Params) -> None:
        state = nnx.to_flat_state(nnx.state(self, nnx.Param))
        for path, variable in state:
            variable.set_value(leaf(params, tuple(map(str, path))))
        nnx.update(self, nnx.from_flat_state(state))


def _positions_of(segment_ids_BT: jax.Array) -> jax.Array:
    """Return each token's index in its segment, int32 [B, T]."""
    index_1T = jnp.arange(segment_ids_BT.shape[1], dtype=jnp.int32)[None, :]
    before_BT = jnp.pad(segment_ids_BT, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    starts_BT = jnp.where(segment_ids_BT != before_BT, index_1T, 0)
    return index_1T - jax.lax.cummax(starts_BT, axis=1)


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
    """Return last hidden states [B, T, D] of packed rows of trees, in the compute dtype.

    attention.visible draws such a row. `remat`: what the backward pass recomputes instead of
    keeping it (layers.REMAT): "none", "dots" (element-wise work), "mlp" (the feed-forward too) or
    "block" (all projections too: much less memory for a little more arithmetic). `scan`: compile
    one layer and run it L times, which compiles faster. `kernel`: of kernels.KERNELS. On several
    devices call it under `jax.set_mesh(mesh)`, so that activations stay where the table puts them.
    """
    attend = _attend_rows(kernel, segment_ids_BT, branches_BT)
    if forms_here().joined_in_training:
        params = joined(config, params)
    return bind(config, params).hidden_states(ids_BT, positions_BT, attend, remat, scan)


def _attend_rows(kernel: str, segment_ids_BT: jax.Array, branches_BT: jax.Array) -> AttendLayer:
    """Return attention over packed rows, by this kernel, as every layer computes it."""
    attention = attend_by(kernel)

    def attend(
        _: int | jax.Array, q_BNTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array
    ) -> jax.Array:
        return attention(q_BNTH, k_BKTH, v_BKTH, segment_ids_BT, branches_BT)

    return attend


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Return float32 logits [..., V] of last hidden states [..., D]."""
    return bind(config, params).logits(hidden)


def output_weight(config: ModelConfig, params: Params) -> jax.Array:
    """Return the output projection [V, D] in the compute dtype, sharded as the parameter is.

    Logits are `hidden @ output_weight.T`.
    """
    return bind(config, params).output.weight[...].astype(config.compute_dtype)
