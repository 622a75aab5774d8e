"""What a decoder is made of, and how that reads and writes as Hugging Face's config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from cotjax.errors import DataError, UsageError

_FLOATS = ("float32", "bfloat16", "float16")


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
    norm_eps: float = 1e-6  # added to the mean square before its root
    tied_embeddings: bool = True  # the output projection is the transposed embedding
    qk_norm: bool = True  # RMS norm of every query and key head (Qwen3)
    qkv_bias: bool = False  # biases on the query, key and value projections (Qwen2)
    max_length: int = 32_768  # longest sequence the rotary positions were made for, in tokens
    param_dtype: str = "float32"  # parameters and gradients
    compute_dtype: str = "float32"  # matmuls; norms, softmax and logits are always float32

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_size", "feed_forward", "max_length"):
            if getattr(self, name) < 1:
                raise UsageError(f"model: {name} is {getattr(self, name)}; it must be 1 or more")
        if self.heads % self.kv_heads:
            raise UsageError(f"model: heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_size % 2:
            raise UsageError(f"model: head_size is {self.head_size}; rotary positions need an even size")
        for name in ("param_dtype", "compute_dtype"):
            if getattr(self, name) not in _FLOATS:
                raise UsageError(f"model: {name} is {getattr(self, name)!r}; choose one of {', '.join(_FLOATS)}")

    @property
    def params_as(self) -> jnp.dtype:
        """The dtype parameters are kept in."""
        return jnp.dtype(self.param_dtype)

    @property
    def compute_as(self) -> jnp.dtype:
        """The dtype matmuls run in."""
        return jnp.dtype(self.compute_dtype)

    @classmethod
    def from_hf(cls, source: Mapping[str, Any] | str | PathLike[str], **overrides: Any) -> ModelConfig:
        """Reads transformers' config: its dict, its config.json, or the folder that holds one.

        `overrides` are fields of this class that the file does not decide, such as `compute_dtype`. Both spellings of the
        rotary base are read: `rope_parameters` (transformers 5) and the older top-level `rope_theta`.

        Raises DataError for an architecture, an option or a missing key that this decoder cannot honour.
        """
        if isinstance(source, Mapping):
            return _read(source, "config", overrides)
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such file; name a folder that transformers' save_pretrained wrote") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{path}: not a readable JSON file: {error}") from None
        if not isinstance(read, dict):
            raise DataError(f"{path}: holds a {type(read).__name__}; expected an object with a model's sizes")
        return _read(read, str(path), overrides)

    def to_hf(self) -> dict[str, Any]:
        """The same sizes as transformers' config dict. Raises UsageError when no known architecture has this combination."""
        flags = {"qk_norm": self.qk_norm, "qkv_bias": self.qkv_bias}
        model_type = next((name for name, known in _ARCHITECTURES.items() if known.flags == flags), None)
        if model_type is None:
            raise UsageError(f"model: no published architecture has {flags}; known: {', '.join(_ARCHITECTURES)}")
        return {
            "architectures": [_ARCHITECTURES[model_type].transformers_class],
            "model_type": model_type,
            **{theirs: getattr(self, ours) for ours, theirs in _SIZES.items()},
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tied_embeddings,
            "dtype": self.param_dtype,
            **_REQUIRED,
        }


@dataclass(frozen=True)
class _Architecture:
    """What one of transformers' model types means in this decoder's terms."""

    transformers_class: str
    flags: Mapping[str, bool]


# A further published family is one more row, as long as its differences are fields of ModelConfig.
_ARCHITECTURES = {
    "qwen3": _Architecture("Qwen3ForCausalLM", {"qk_norm": True, "qkv_bias": False}),
}

_SIZES = {  # our field: transformers' key
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "feed_forward": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "max_length": "max_position_embeddings",
}

# Options whose other values would change the numbers; where a config leaves one out, transformers means this value.
_REQUIRED = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}


def _read(read: Mapping[str, Any], where: str, overrides: Mapping[str, Any]) -> ModelConfig:
    model_type = read.get("model_type")
    architecture = _ARCHITECTURES.get(model_type)
    if architecture is None:
        raise DataError(f"{where}: model_type is {model_type!r}; this decoder reads {', '.join(_ARCHITECTURES)}")
    missing = [theirs for theirs in _SIZES.values() if theirs not in read]
    if missing:
        raise DataError(f"{where}: missing {', '.join(missing)}")
    for key, value in _REQUIRED.items():
        if read.get(key, value) != value:
            raise DataError(f"{where}: {key} is {read[key]!r}; only {value!r} is supported")
    fields = {ours: read[theirs] for ours, theirs in _SIZES.items()}
    fields |= {"rope_theta": _rope_theta(read, where), "tied_embeddings": bool(read.get("tie_word_embeddings", False))}
    fields |= architecture.flags
    stored = read.get("dtype", read.get("torch_dtype"))
    if stored is not None:
        fields["param_dtype"] = stored
    try:
        return ModelConfig(**(fields | dict(overrides)))
    except (UsageError, TypeError) as error:
        raise DataError(f"{where}: {error}") from None


def _rope_theta(read: Mapping[str, Any], where: str) -> float:
    """The rotary base, from `rope_parameters` or from the top level."""
    rope = read.get("rope_parameters") or read.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise DataError(f"{where}: rope_type is {kind!r}; only 'default' is supported")
    theta = rope.get("rope_theta", read.get("rope_theta"))
    if theta is None:
        raise DataError(f"{where}: missing rope_theta (in rope_parameters or at the top level)")
    return float(theta)
