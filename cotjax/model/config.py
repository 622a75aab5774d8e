"""A decoder's configuration and its checks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from numbers import Integral
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from cotjax.errors import DataError, UsageError
from cotjax.runtime.files import read_json

_FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's scaling of rotary wavelengths for longer contexts.

    Wavelengths longer than original_length / low_frequency are multiplied by `factor`, those
    shorter than original_length / high_frequency stay, and those between are blended. Lengths are
    tokens.
    """

    factor: float
    low_frequency: float
    high_frequency: float
    original_length: int

    def __post_init__(self) -> None:
        numbers = (self.factor, self.low_frequency, self.high_frequency, self.original_length)
        if not all(isinstance(number, int | float) and isfinite(number) for number in numbers):
            raise UsageError(f"model: {self} makes no sense: all four are finite numbers")
        if not (
            self.factor >= 1
            and 0 < self.low_frequency < self.high_frequency
            and self.original_length >= 1
        ):
            raise UsageError(
                f"model: {self} makes no sense: the factor is 1 or more, and low_frequency is "
                "below high_frequency"
            )


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (Hu et al., 2021): W x becomes W x + (alpha / rank) B A x; only A and B
    train.

    `targets` is a regular expression that must match the whole dotted path of a projection, such as
    `model.layers.3.self_attn.q_proj` (as PEFT reads a target_modules that is one string).

    Raises UsageError for a rank below 1, an alpha that is not positive, and an invalid expression.
    """

    rank: int  # inner width of both factors
    alpha: float  # the adapters' output is multiplied by alpha / rank
    targets: str

    def __post_init__(self) -> None:
        if not (isinstance(self.rank, int) and self.rank >= 1):
            raise UsageError(
                f"lora: the rank is {self.rank!r}; it must be a whole number, 1 or more"
            )
        if not (isfinite(self.alpha) and self.alpha > 0):
            raise UsageError(f"lora: alpha is {self.alpha}; it must be more than 0")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise UsageError(
                f"lora: the targets {self.targets!r} are no regular expression: {error}"
            ) from None

    def chosen(self, projections: Iterable[str]) -> list[str]:
        """Return the paths that are targets. Raises UsageError, naming all paths, when none is."""
        projections = list(projections)
        targets = [path for path in projections if re.fullmatch(self.targets, path)]
        if not targets:
            known = dict.fromkeys(re.sub(r"\.\d+\.", ".N.", path) for path in projections)
            raise UsageError(
                f"lora: the targets {self.targets!r} match no projection; a whole path must "
                "match, and there are "
                f"{', '.join(known)} (N: a layer's number)"
            )
        return targets


@dataclass(frozen=True)
class ModelConfig:
    """A decoder's sizes, in elements. Frozen and hashable: jitted functions close over it.

    Raises UsageError when the sizes do not fit together.
    """

    vocab_size: int  # V: ids run from 0 to vocab_size - 1
    width: int  # D: of the residual stream
    layers: int  # L
    heads: int  # N: query heads
    kv_heads: int  # K: key and value heads; each serves heads / kv_heads query heads
    head_size: int  # H: of one head; even, because rotary positions turn pairs
    feed_forward: int  # F: inner width of the gated feed-forward
    rope_theta: float = 10_000.0  # base of the rotary wavelengths
    rope_scaling: RopeScaling | None = None  # stretched wavelengths (Llama 3.1)
    norm_eps: float = 1e-6  # added to the mean square before its root
    tied_embeddings: bool = True  # the output projection is the transposed embedding
    qk_norm: bool = True  # RMS norm of every query and key head (Qwen3)
    qkv_bias: bool = False  # biases on the query, key and value projections (Qwen2)
    max_length: int = 32_768  # longest sequence the rotary positions were made for, in tokens
    param_dtype: str = "float32"  # parameters and gradients
    compute_dtype: str = "float32"  # matmuls; norms, softmax and logits are always float32
    # Divides the last hidden states, and so the logits: the policy is that of this temperature,
    # wherever it is sampled or scored at 1 (rl.temperature).
    temperature: float = 1.0
    # Adapters of projections: they alone are trained. None: every weight is trained.
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rope_scaling, Mapping):  # read back from JSON
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        if isinstance(self.lora, Mapping):
            object.__setattr__(self, "lora", LoRA(**self.lora))
        for name in (
            "vocab_size",
            "width",
            "layers",
            "heads",
            "kv_heads",
            "head_size",
            "feed_forward",
            "max_length",
        ):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise UsageError(
                    f"model: {name} is {value!r}; it must be a whole number, 1 or more"
                )
        for name in ("rope_theta", "norm_eps", "temperature"):
            value = getattr(self, name)
            if (
                not isinstance(value, int | float)
                or isinstance(value, bool)
                or not 0 < value < float("inf")
            ):
                raise UsageError(f"model: {name} is {value!r}; it must be a finite number above 0")
        if self.heads % self.kv_heads:
            raise UsageError(
                f"model: heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})"
            )
        if self.head_size % 2:
            raise UsageError(
                f"model: head_size is {self.head_size}; rotary positions need an even size"
            )
        for name in ("param_dtype", "compute_dtype"):
            if getattr(self, name) not in _FLOATS:
                raise UsageError(
                    f"model: {name} is {getattr(self, name)!r}; choose one of {', '.join(_FLOATS)}"
                )

    @property
    def params_as(self) -> jnp.dtype:
        """The dtype parameters are kept in."""
        return jnp.dtype(self.param_dtype)

    @property
    def compute_as(self) -> jnp.dtype:
        """The dtype matmuls run in."""
        return jnp.dtype(self.compute_dtype)

    def check_length(self, length: int, what: str) -> None:
        """Raise UsageError when `length` tokens exceed the model's positions.

        `what`: the setting, for the message.
        """
        if length > self.max_length:
            raise UsageError(
                f"{what} is {length}; the model's positions allow 1 to {self.max_length} "
                "(max_position_embeddings), so set it no higher"
            )

    def check_ids(self, count: int) -> None:
        """Raise UsageError when a tokenizer of `count` ids exceeds the vocabulary."""
        if count > self.vocab_size:
            raise UsageError(
                f"the tokenizer has ids up to {count - 1}, the model's vocabulary ends at "
                f"{self.vocab_size - 1} (vocab_size "
                f"{self.vocab_size}): give the model's own tokenizer, or resize its embeddings "
                "(transformers' resize_token_embeddings)"
            )

    @classmethod
    def from_saved(cls, file: Path, **overrides: Any) -> ModelConfig:
        """Return the config of a model.json that cotjax wrote. Raises DataError."""
        try:
            return cls(**(read_json(file, "cotjax") | overrides))
        except (TypeError, UsageError) as error:
            raise DataError(
                f"{file}: not a model's fields as cotjax writes them: {error}"
            ) from None
