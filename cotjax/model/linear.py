"""A linear projection, and the declaration of a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod, sqrt

import jax
import jax.numpy as jnp
from flax import nnx

from cotjax.model.config import LoRA, ModelConfig
from cotjax.model.platform import forms_here
from cotjax.model.products import product
from cotjax.model.sharding import RULES

LORA_FACTORS = ("lora_A", "lora_B")  # the parameters of an adapter
Sizes = Mapping[str, int]


def param(
    config: ModelConfig,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    std: float | None,
    dtype: jnp.dtype | None = None,
) -> nnx.Param:
    """Declare a parameter (params.Weight): shape, dtype, logical axes and initial scale, no values.

    `dtype`: None takes the config's. `out_sharding` and `sharding_rules` are Flax's own metadata,
    which nnx.get_partition_spec reads.
    """
    return nnx.Param(
        jax.ShapeDtypeStruct(shape, config.params_as if dtype is None else dtype),
        out_sharding=axes,
        sharding_rules=tuple(RULES.items()),
        # Values come with their sharding; Flax would constrain each where it is created.
        eager_sharding=False,
        std=std,
    )


class Linear(nnx.Module):
    """A projection of the last axes: [..., *inputs] -> [..., *outputs], with an optional bias.

    A weight's input axes come first. The input axes are one axis of the matmul, and so are the
    output axes.
    """

    # None until `adapt` declares them.
    lora_A: nnx.Param | None = None
    lora_B: nnx.Param | None = None

    def __init__(
        self, config: ModelConfig, inputs: Sizes, outputs: Sizes, std: float, bias: bool = False
    ):
        """`inputs` and `outputs`: logical axis -> size, in the order of the weight's axes."""
        self.inputs, self.compute = tuple(inputs.values()), config.compute_dtype
        self.outputs = tuple(outputs.values())
        self.weight = param(config, self.inputs + self.outputs, (*inputs, *outputs), std)
        self.bias = param(config, self.outputs, tuple(outputs), 0.0) if bias else None

    def adapt(self, config: ModelConfig, lora: LoRA) -> None:
        """Declare an adapter: `lora_A` [*inputs, rank] and `lora_B` [rank, *outputs].

        Its output is added to the weight's. The two are not merged in training: W + BA in bfloat16
        would round small updates away. For the same reason the adapter is float32 whatever the
        weight is.
        """
        axes, count = self.weight.get_metadata()["out_sharding"], len(self.inputs)
        self.lora_scale = lora.alpha / lora.rank
        # The variance of PEFT's draw (uniform, Kaiming with a = sqrt(5)). B is zero, so that a
        # fresh adapter changes nothing.
        std = 1 / sqrt(3 * prod(self.inputs))
        self.lora_A = param(
            config, (*self.inputs, lora.rank), (*axes[:count], "rank"), std, jnp.float32
        )
        self.lora_B = param(
            config, (lora.rank, *self.outputs), ("rank", *axes[count:]), 0.0, jnp.float32
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        lead = x.shape[: x.ndim - len(self.inputs)]
        rows = (prod(lead),) if forms_here().flat_rows else lead
        x = x.reshape(*rows, prod(self.inputs))
        y = product(x, self._matrix(self.weight, prod(self.inputs)))
        if self.bias is not None:
            y += self.bias[...].astype(self.compute).reshape(*(1,) * len(rows), prod(self.outputs))
        if self.lora_A is not None and self.lora_B is not None:
            inner = product(x, self._matrix(self.lora_A, prod(self.inputs)))
            y += product(inner * self.lora_scale, self._matrix(self.lora_B, inner.shape[-1]))
        return y.reshape(*lead, *self.outputs)

    def _matrix(self, weight: nnx.Param, rows: int) -> jax.Array:
        return weight[...].reshape(rows, -1)
