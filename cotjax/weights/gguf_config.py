"""A GGUF file's metadata -> ModelConfig. Every key is honoured, harmless, or refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cotjax.errors import DataError, UsageError
from cotjax.model.config import ModelConfig, RopeScaling
from cotjax.model.rope import frequencies
from cotjax.weights.gguf_file import GGUF

EMBEDDING, HEAD, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"


@dataclass(frozen=True)
class _Architecture:
    """What one of llama.cpp's architectures computes, and how its file differs."""

    qk_norm: bool
    qkv_bias: bool
    # llama.cpp turns neighbouring elements of a head where Hugging Face turns its halves.
    permuted: bool = False


ARCHITECTURES = {
    "llama": _Architecture(qk_norm=False, qkv_bias=False, permuted=True),
    "qwen2": _Architecture(qk_norm=False, qkv_bias=True),
    "qwen3": _Architecture(qk_norm=True, qkv_bias=False),
}

_SIZES = {  # our field: the key after the architecture's name
    "width": "embedding_length",
    "layers": "block_count",
    "heads": "attention.head_count",
    "feed_forward": "feed_forward_length",
    "max_length": "context_length",
}
_EPSILON = "attention.layer_norm_rms_epsilon"
_READ = frozenset(
    [
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "rope.freq_base",
        "rope.dimension_count",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scale_linear",
        "vocab_size",
    ]
) | {*_SIZES.values(), _EPSILON}
# Of scaled positions that `_check_rope` refuses or finds off, and of Meta's first files.
_HARMLESS = frozenset(
    [
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "rope.scaling.attn_factor",
        "rope.scaling.yarn_log_multiplier",
        "tensor_data_layout",
        "attention.causal",
    ]
)
_DEFAULT_THETA = 10_000.0  # llama.cpp's own, where the file has none
# The scaling of every published Llama 3.1, 3.2 and 3.3; their files hold only what follows from it.
_LLAMA3: dict[str, Any] = {"low_frequency": 1.0, "high_frequency": 4.0, "original_length": 8192}


def config_of(gguf: GGUF, param_dtype: str = "float32") -> ModelConfig:
    """Return the model of a GGUF file.

    Raises DataError for an unknown architecture, a mixture of experts, scaled positions other than
    Llama 3's, a missing size, and any further key that may change a number.
    """
    if gguf.architecture not in ARCHITECTURES:
        raise DataError(
            f"{gguf.file}: the architecture is {gguf.architecture!r}; this decoder reads "
            f"{', '.join(ARCHITECTURES)}"
        )
    prefix = f"{gguf.architecture}."
    read = {
        key.removeprefix(prefix): value
        for key, value in gguf.metadata.items()
        if key.startswith(prefix)
    }
    _check_keys(gguf, read)
    _check_rope(gguf, read)
    if EMBEDDING not in gguf.tensors:
        raise DataError(f"{gguf.file}: missing tensors: {EMBEDDING}")
    sizes: dict[str, Any] = {ours: _size(gguf, read, theirs) for ours, theirs in _SIZES.items()}
    if _EPSILON not in read:
        raise DataError(f"{gguf.file}: missing {prefix}{_EPSILON}")
    architecture = ARCHITECTURES[gguf.architecture]
    try:
        config = ModelConfig(
            vocab_size=gguf.tensors[EMBEDDING].shape[0],
            **sizes,
            kv_heads=_size(gguf, read, "attention.head_count_kv", sizes["heads"]),
            head_size=_head_size(gguf, read, sizes["width"] // max(1, sizes["heads"])),
            rope_theta=_rounded(read.get("rope.freq_base", _DEFAULT_THETA)),
            norm_eps=_rounded(read[_EPSILON]),
            tied_embeddings=HEAD not in gguf.tensors,
            qk_norm=architecture.qk_norm,
            qkv_bias=architecture.qkv_bias,
            param_dtype=param_dtype,
        )
    except UsageError as error:
        raise DataError(f"{gguf.file}: {error}") from None
    return _with_scaling(gguf, config)


def _check_keys(gguf: GGUF, read: dict[str, Any]) -> None:
    if read.get("expert_count"):
        raise DataError(
            f"{gguf.file}: a mixture of {read['expert_count']} experts, which this decoder does "
            "not compute; take a dense model"
        )
    window = read.pop("attention.sliding_window", None)
    if window and window < read.get("context_length", 0):
        raise DataError(
            f"{gguf.file}: attention.sliding_window is {window}; sliding windows are not supported"
        )
    unknown = [
        f"{key} ({value})"
        for key, value in read.items()
        if key not in _READ | _HARMLESS and value not in (None, 0, False, "", [])
    ]
    if unknown or read.get("attention.causal") is False:
        named = ", ".join(unknown) or "attention.causal (False)"
        raise DataError(
            f"{gguf.file}: this decoder does not know {named}, which may change what the model "
            "computes; take another file"
        )


def _check_rope(gguf: GGUF, read: dict[str, Any]) -> None:
    """Raise DataError for positions that are scaled otherwise than by factors in a tensor."""
    kind = read.get("rope.scaling.type") or "none"
    factor = read.get("rope.scaling.factor") or read.get("rope.scale_linear") or 1.0
    if kind not in ("none", "linear") or factor != 1.0:
        raise DataError(
            f"{gguf.file}: the rope scaling is {kind!r} with factor {factor:g}; only Llama 3's is "
            "supported"
        )


def _size(gguf: GGUF, read: dict[str, Any], key: str, missing: int | None = None) -> int:
    value = read.get(key, missing)
    if value is None:
        raise DataError(f"{gguf.file}: missing {gguf.architecture}.{key}")
    if not isinstance(value, int):
        raise DataError(
            f"{gguf.file}: {gguf.architecture}.{key} is {str(value)[:60]}; expected one number for "
            "all layers"
        )
    return value


def _head_size(gguf: GGUF, read: dict[str, Any], missing: int) -> int:
    """Return the size of one head: all of it turns, and values have the same."""
    turned = read.get("rope.dimension_count")
    size = _size(gguf, read, "attention.key_length", turned or missing)
    for key in ("rope.dimension_count", "attention.value_length"):
        if read.get(key, size) != size:
            raise DataError(
                f"{gguf.file}: {gguf.architecture}.{key} is {read[key]}, and heads have {size} "
                "elements; only equal sizes are supported"
            )
    return size


def _rounded(value: float) -> float:
    """Return the short decimal that a float32 stands for: 1e-05, not 9.999999747378752e-06."""
    return float(f"{value:.7g}")


def _with_scaling(gguf: GGUF, config: ModelConfig) -> ModelConfig:
    """Return the config with the scaling that the file's factors per frequency follow from.

    Raises DataError for factors that are not Llama 3's, and for other tensors of factors.
    """
    others = [name for name in gguf.tensors if name.startswith(("rope_factors_", "rope_factors."))]
    if others:
        raise DataError(
            f"{gguf.file}: {others[0]}: this rope scaling is not supported; only Llama 3's is"
        )
    if ROPE_FACTORS not in gguf.tensors:
        return config
    factors = gguf.tensors[ROPE_FACTORS].values().reshape(-1)
    if np.allclose(factors, 1.0):
        return config
    scaled = replace(config, rope_scaling=RopeScaling(factor=float(factors.max()), **_LLAMA3))
    expected = frequencies(config) / frequencies(scaled)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise DataError(
            f"{gguf.file}: the factors in {ROPE_FACTORS} are of an unknown rope scaling; only "
            "Llama 3's (factors 1 and 4 around 8,192 positions) is supported"
        )
    return scaled
