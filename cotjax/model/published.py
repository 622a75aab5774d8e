"""Published models that this decoder computes: their sizes by name, for use without weights.

Each row is the config.json of the repository of that name. A folder with weights needs no row: its
own config.json is read (weights.hf_config), and may differ where a variant does, such as the
longest sequence of an instruct model.
"""

from __future__ import annotations

import difflib
from typing import Any

from cotjax.errors import UsageError
from cotjax.model.config import ModelConfig, RopeScaling


def published(name: str, **overrides: Any) -> ModelConfig:
    """Return the sizes of a published model, such as published("qwen3-8b"), in bfloat16.

    `overrides` are fields of ModelConfig. Raises UsageError for a name that is not in PUBLISHED,
    with the nearest one.
    """
    sizes = PUBLISHED.get(name.lower())
    if sizes is None:
        close = difflib.get_close_matches(name.lower(), PUBLISHED, n=1, cutoff=0)
        raise UsageError(
            f"no published model is called {name!r}; did you mean {close[0]!r}? There are "
            f"{', '.join(PUBLISHED)}"
        )
    return ModelConfig(**(sizes | {"param_dtype": "bfloat16"} | overrides))


def _qwen3(
    width: int, layers: int, heads: int, feed_forward: int, *, tied: bool = False
) -> dict[str, Any]:
    """Return Qwen3's dense sizes. The head size is 128 whatever the width."""
    return {
        "vocab_size": 151_936,
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": 8,
        "head_size": 128,
        "feed_forward": feed_forward,
        "rope_theta": 1e6,
        "norm_eps": 1e-6,
        "tied_embeddings": tied,
        "qk_norm": True,
        "qkv_bias": False,
        "max_length": 40_960,
    }


def _qwen2(
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    feed_forward: int,
    *,
    vocab: int = 152_064,
    theta: float = 1e6,
    eps: float = 1e-6,
    max_length: int = 131_072,
    tied: bool = False,
) -> dict[str, Any]:
    """Return the sizes of Qwen2.5 and its distillations; the larger ones pad the vocabulary."""
    return {
        "vocab_size": vocab,
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_size": width // heads,
        "feed_forward": feed_forward,
        "rope_theta": theta,
        "norm_eps": eps,
        "tied_embeddings": tied,
        "qk_norm": False,
        "qkv_bias": True,
        "max_length": max_length,
    }


def _llama3(
    width: int, layers: int, heads: int, feed_forward: int, *, factor: float, tied: bool = False
) -> dict[str, Any]:
    """Return the sizes of Llama 3.1 (factor 8) and 3.2 (factor 32)."""
    return {
        "vocab_size": 128_256,
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": 8,
        "head_size": width // heads,
        "feed_forward": feed_forward,
        "rope_theta": 5e5,
        "rope_scaling": RopeScaling(factor, 1.0, 4.0, 8192),
        "norm_eps": 1e-5,
        "tied_embeddings": tied,
        "qk_norm": False,
        "qkv_bias": False,
        "max_length": 131_072,
    }


def _smollm2(
    width: int, layers: int, heads: int, kv_heads: int, feed_forward: int, *, theta: float = 1e5
) -> dict[str, Any]:
    """Return SmolLM2's sizes, an architecture of Llama's."""
    return {
        "vocab_size": 49_152,
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_size": 64,
        "feed_forward": feed_forward,
        "rope_theta": theta,
        "norm_eps": 1e-5,
        "tied_embeddings": True,
        "qk_norm": False,
        "qkv_bias": False,
        "max_length": 8192,
    }


PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, tied=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 9728, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12_288),
    "qwen3-14b": _qwen3(5120, 40, 40, 17_408),
    "qwen3-32b": _qwen3(5120, 64, 64, 25_600),
    "qwen2.5-0.5b": _qwen2(896, 24, 14, 2, 4864, vocab=151_936, max_length=32_768, tied=True),
    "qwen2.5-1.5b": _qwen2(1536, 28, 12, 2, 8960, vocab=151_936, tied=True),
    "qwen2.5-3b": _qwen2(2048, 36, 16, 2, 11_008, vocab=151_936, max_length=32_768, tied=True),
    "qwen2.5-7b": _qwen2(3584, 28, 28, 4, 18_944),
    "qwen2.5-14b": _qwen2(5120, 48, 40, 8, 13_824, eps=1e-5),
    "qwen2.5-32b": _qwen2(5120, 64, 40, 8, 27_648, eps=1e-5),
    "deepseek-r1-distill-qwen-7b": _qwen2(3584, 28, 28, 4, 18_944, theta=1e4),
    "smollm2-135m": _smollm2(576, 30, 9, 3, 1536),
    "smollm2-360m": _smollm2(960, 32, 15, 5, 2560),
    "smollm2-1.7b": _smollm2(2048, 24, 32, 32, 8192, theta=1.3e5),
    "llama-3.1-8b": _llama3(4096, 32, 32, 14_336, factor=8.0),
    "llama-3.1-70b": _llama3(8192, 80, 64, 28_672, factor=8.0),
    "llama-3.2-1b": _llama3(2048, 16, 32, 8192, factor=32.0, tied=True),
    "llama-3.2-3b": _llama3(3072, 28, 24, 8192, factor=32.0, tied=True),
}
"""Name -> fields of ModelConfig."""
