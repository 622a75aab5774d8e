"""What a decoder is made of, and how that reads and writes as Hugging Face's config.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from cotjax.errors import DataError, UsageError
from cotjax.files import read_json

_FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of rotary wavelengths, for contexts longer than the model was first trained on.

    Wavelengths longer than original_length / low_frequency are stretched by `factor`, those shorter than original_length /
    high_frequency stay, and those between are blended. Lengths are tokens.
    """

    factor: float
    low_frequency: float
    high_frequency: float
    original_length: int

    def __post_init__(self) -> None:
        if not (self.factor >= 1 and 0 < self.low_frequency < self.high_frequency and self.original_length >= 1):
            raise UsageError(f"model: {self} makes no sense: the factor is 1 or more, and low_frequency is below high_frequency")


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters beside projections; they alone are trained (Hu et al., 2021): W x becomes W x + (alpha / rank) B A x.

    `targets` is a regular expression that must match the whole dotted path of a projection, such as
    `model.layers.3.self_attn.q_proj` (as PEFT reads a target_modules that is one string).

    Raises UsageError for a rank below 1, an alpha that is not positive, and a broken expression.
    """

    rank: int  # inner width of both factors
    alpha: float  # the adapters' output is multiplied by alpha / rank
    targets: str

    def __post_init__(self) -> None:
        if not (isinstance(self.rank, int) and self.rank >= 1):
            raise UsageError(f"lora: the rank is {self.rank!r}; it must be a whole number, 1 or more")
        if not (isfinite(self.alpha) and self.alpha > 0):
            raise UsageError(f"lora: alpha is {self.alpha}; it must be more than 0")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise UsageError(f"lora: the targets {self.targets!r} are no regular expression: {error}") from None

    def chosen(self, projections: Iterable[str]) -> list[str]:
        """Those of the projections' dotted paths that are targets. Raises UsageError, naming what there is, when none is."""
        projections = list(projections)
        found = [path for path in projections if re.fullmatch(self.targets, path)]
        if not found:
            there = dict.fromkeys(re.sub(r"\.\d+\.", ".N.", path) for path in projections)
            raise UsageError(
                f"lora: the targets {self.targets!r} match no projection; a whole path must match, and there are "
                f"{', '.join(there)} (N: a layer's number)"
            )
        return found


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
    lora: LoRA | None = None  # adapters beside projections, which alone are trained; None: every weight is

    def __post_init__(self) -> None:
        if isinstance(self.rope_scaling, Mapping):  # read back from JSON
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        if isinstance(self.lora, Mapping):
            object.__setattr__(self, "lora", LoRA(**self.lora))
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
    def from_saved(cls, file: Path, **overrides: Any) -> ModelConfig:
        """Reads this class's fields from a model.json of cotjax's own. Raises DataError."""
        try:
            return cls(**(read_json(file, "cotjax") | overrides))
        except (TypeError, UsageError) as error:
            raise DataError(f"{file}: not a model's fields as cotjax writes them: {error}") from None

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
        return _read(read_json(path, "transformers' save_pretrained"), str(path), overrides)

    def to_hf(self) -> dict[str, Any]:
        """The same sizes as transformers' config dict. Raises UsageError when no known architecture has this combination."""
        flags = {"qk_norm": self.qk_norm, "qkv_bias": self.qkv_bias}
        model_type = next((name for name, known in _ARCHITECTURES.items() if known.flags == flags), None)
        if model_type is None:
            raise UsageError(f"model: no published architecture has {flags}; known: {', '.join(_ARCHITECTURES)}")
        rope: dict[str, Any] = {"rope_type": "default"}
        if self.rope_scaling is not None:
            rope = {"rope_type": "llama3"} | {theirs: getattr(self.rope_scaling, ours) for ours, theirs in _ROPE_SCALING.items()}
        return {
            "architectures": [_ARCHITECTURES[model_type].transformers_class],
            "model_type": model_type,
            **{theirs: getattr(self, ours) for ours, theirs in _SIZES.items()},
            "rope_parameters": rope | {"rope_theta": self.rope_theta},
            "rope_theta": self.rope_theta,
            "rope_scaling": rope if self.rope_scaling is not None else None,
            "tie_word_embeddings": self.tied_embeddings,
            "dtype": self.param_dtype,
            **_ARCHITECTURES[model_type].required,
        }


@dataclass(frozen=True)
class _Architecture:
    """What one of transformers' model types means in this decoder's terms."""

    transformers_class: str
    flags: Mapping[str, bool]
    required: Mapping[str, Any]


# Options whose other values would change the numbers; where a config leaves one out, transformers means this value.
_ALWAYS = {"hidden_act": "silu"}
# A further published family is one more row, as long as its differences are fields of ModelConfig.
_ARCHITECTURES = {
    "qwen3": _Architecture(
        "Qwen3ForCausalLM", {"qk_norm": True, "qkv_bias": False}, {**_ALWAYS, "attention_bias": False, "use_sliding_window": False}
    ),
    # Qwen2.5, and the DeepSeek-R1 distillations of it; its biases are not an option.
    "qwen2": _Architecture("Qwen2ForCausalLM", {"qk_norm": False, "qkv_bias": True}, {**_ALWAYS, "use_sliding_window": False}),
    "llama": _Architecture(
        "LlamaForCausalLM", {"qk_norm": False, "qkv_bias": False}, {**_ALWAYS, "attention_bias": False, "mlp_bias": False}
    ),
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
_ROPE_SCALING = {
    "factor": "factor",
    "low_frequency": "low_freq_factor",
    "high_frequency": "high_freq_factor",
    "original_length": "original_max_position_embeddings",
}


def _read(read: Mapping[str, Any], where: str, overrides: Mapping[str, Any]) -> ModelConfig:
    model_type = read.get("model_type")
    architecture = _ARCHITECTURES.get(model_type)
    if architecture is None:
        raise DataError(f"{where}: model_type is {model_type!r}; this decoder reads {', '.join(_ARCHITECTURES)}")
    read = dict(read)
    # Older configs leave out what follows from the others.
    if read.get("head_dim") is None and read.get("hidden_size") and read.get("num_attention_heads"):
        read["head_dim"] = read["hidden_size"] // read["num_attention_heads"]
    if read.get("num_key_value_heads") is None and "num_attention_heads" in read:
        read["num_key_value_heads"] = read["num_attention_heads"]
    missing = [theirs for theirs in _SIZES.values() if theirs not in read]
    if missing:
        raise DataError(f"{where}: missing {', '.join(missing)}")
    for key, value in architecture.required.items():
        if read.get(key, value) != value:
            raise DataError(f"{where}: {key} is {read[key]!r}; only {value!r} is supported")
    fields = {ours: read[theirs] for ours, theirs in _SIZES.items()}
    if set(read.get("layer_types") or ()) - {"full_attention"}:
        raise DataError(f"{where}: layer_types has {sorted(set(read['layer_types']))}; only 'full_attention' is supported")
    theta, scaling = _rope(read, where)
    fields |= {"rope_theta": theta, "rope_scaling": scaling, "tied_embeddings": bool(read.get("tie_word_embeddings", False))}
    fields |= architecture.flags
    stored = read.get("dtype", read.get("torch_dtype"))
    if stored is not None:
        fields["param_dtype"] = stored
    try:
        return ModelConfig(**(fields | dict(overrides)))
    except (UsageError, TypeError) as error:
        raise DataError(f"{where}: {error}") from None


def _rope(read: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """The rotary base and its scaling, from `rope_parameters` or from the top level and `rope_scaling`."""
    rope = read.get("rope_parameters") or read.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise DataError(f"{where}: rope_type is {kind!r}; only 'default' and 'llama3' are supported")
    theta = rope.get("rope_theta", read.get("rope_theta"))
    if theta is None:
        raise DataError(f"{where}: missing rope_theta (in rope_parameters or at the top level)")
    if kind == "default":
        return float(theta), None
    missing = [theirs for theirs in _ROPE_SCALING.values() if theirs not in rope]
    if missing:
        raise DataError(f"{where}: the llama3 rope scaling lacks {', '.join(missing)}")
    try:
        return float(theta), RopeScaling(**{ours: rope[theirs] for ours, theirs in _ROPE_SCALING.items()})
    except UsageError as error:
        raise DataError(f"{where}: {error}") from None
