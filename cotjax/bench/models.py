"""The models that are measured. Their weights are random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cotjax.errors import UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.published import PUBLISHED, published
from cotjax.weights.hf_config import config_from_hf

# Qwen3's layout at 10M parameters: small enough for two cores, and matmuls still take most of the
# time.
J1 = ModelConfig(
    vocab_size=4096, width=256, layers=8, heads=8, kv_heads=4, head_size=32, feed_forward=768
)


def named_model(name: str, dtype: str) -> ModelConfig:
    """Return the sizes that `--model` names, with parameters and matmuls in `dtype`.

    Args:
      name: "j1", a published name, or a Hugging Face folder, of which only config.json is read.
      dtype: "float32" or "bfloat16".

    Raises:
      UsageError: an unknown name.
    """
    return replace(_sizes(name), param_dtype=dtype, compute_dtype=dtype)


def _sizes(name: str) -> ModelConfig:
    if name == "j1":
        return J1
    if name in PUBLISHED:
        return published(name)
    if not Path(name).exists():
        raise UsageError(
            f"--model {name}: neither j1, nor a folder with a config.json, nor one of "
            f"{', '.join(PUBLISHED)}"
        )
    return config_from_hf(name)
