"""transformers' config.json <-> ModelConfig. Every option is honoured, harmless, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from cotjax.errors import DataError, UsageError
from cotjax.model.config import ModelConfig
from cotjax.runtime.files import read_json

QUANTIZED = (
    "quantized weights are not read, so take the model's original ones (float32, bfloat16 or "
    "float16)"
)

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class _Architecture:
    """One of transformers' model types in this decoder's terms."""

    name: str  # its classes are NameForCausalLM and, without the output projection, NameModel
    flags: Mapping[str, bool]  # fields of ModelConfig
    written: Mapping[
        str, Any
    ]  # options that go into config.json; other values would change the numbers
    left_out: Mapping[str, Any]  # sizes as transformers means them where config.json has none
    harmless: frozenset[str] = frozenset()  # fields without effect, besides `written`


_SLIDING = frozenset(
    {"sliding_window", "max_window_layers"}
)  # without effect while use_sliding_window is false
# A further published family is one more row, as long as its differences are fields of ModelConfig.
_ARCHITECTURES = {
    "qwen3": _Architecture(
        "Qwen3",
        {"qk_norm": True, "qkv_bias": False},
        {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
        {"head_dim": 128, "num_key_value_heads": 32},
        _SLIDING,
    ),
    # Qwen2.5, and the DeepSeek-R1 distillations of it; its biases are not an option.
    "qwen2": _Architecture(
        "Qwen2",
        {"qk_norm": False, "qkv_bias": True},
        {"hidden_act": "silu", "use_sliding_window": False},
        {"num_key_value_heads": 32},
        _SLIDING,
    ),
    "llama": _Architecture(
        "Llama",
        {"qk_norm": False, "qkv_bias": False},
        {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        {},
        frozenset({"is_llama_config", "pretraining_tp"}),
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
_DEFAULT_THETA = 10_000.0  # transformers' own, where config.json has none

# Options of any model type that transformers obeys, and the values at which they change nothing.
_OPTIONS: dict[str, tuple[Any, ...]] = {
    "is_causal": (True, None),
    "attention_dropout": (0, None),
    "partial_rotary_factor": (1, None),
    "rope_interleaved": (False, None),
    "use_mrope": (False, None),
    "tie_encoder_decoder": (False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
}
_ALIKE = {"hidden_act": {"swish": "silu"}}  # other names of the same thing
# Fields that say how weights are packed. Whatever else they hold, the tensors are no plain floats.
_QUANTIZED_BY = (
    "quantization_config",
    "compression_config",
    "quantization",
    "quant_method",
    "load_in_4bit",
    "load_in_8bit",
)

# Fields that change no logit: who wrote the file, which tokens are special, how transformers runs,
# generates or classifies.
_HARMLESS_NAMES = """
_attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
_experts_implementation _experts_implementation_internal _flash_attn_2_enabled _from_model_config
_name_or_path architectures attn_implementation bos_token bos_token_id chunk_size_feed_forward
cls_token_id dtype eos_token eos_token_id finetuning_task gradient_checkpointing id2label
initializer_range is_decoder label2id layer_types mask_token_id max_seq_length max_sequence_length
model_max_length model_type name_or_path num_labels output_attentions output_hidden_states
pad_token pad_token_id prefix problem_type return_dict rope_parameters rope_scaling rope_theta
sep_token_id task_specific_params tf_legacy_loss tie_word_embeddings tokenizer_class torch_dtype
torchscript transformers.js_config transformers_version unk_token unk_token_id unsloth_fixed
unsloth_version use_bfloat16 use_cache use_flash_attn use_flash_attention_2

assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens
decoder_start_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty
forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens min_length
no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams
num_return_sequences output_scores remove_invalid_values repetition_penalty
return_dict_in_generate suppress_tokens target_lookbehind temperature cache_implementation
renormalize_logits force_words_ids low_memory top_k top_p typical_p
"""
_HARMLESS = frozenset(_HARMLESS_NAMES.split())


def config_from_hf(
    source: Mapping[str, Any] | str | PathLike[str], **overrides: Any
) -> ModelConfig:
    """Return the model of transformers' config: its dict, its config.json, or the folder of one.

    `overrides` are fields of ModelConfig that the file does not decide, such as `compute_dtype`.
    Both spellings of the rotary base are read: `rope_parameters` (transformers 5) and the older
    top-level `rope_theta`.

    Raises DataError for an architecture, an option or a missing key that this decoder cannot
    honour.
    """
    if isinstance(source, Mapping):
        read, where = source, "config"
    else:
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        read, where = read_json(path, "transformers' save_pretrained"), str(path)
    try:
        return ModelConfig(**(_read_fields(read, where) | overrides))
    except (UsageError, TypeError) as error:
        raise DataError(f"{where}: {error}") from None


def config_to_hf(config: ModelConfig, token_ids: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return transformers' config dict of this model. `token_ids`: the known ones of TOKEN_IDS.

    Unknown ones are null.

    Raises UsageError when no known architecture has this combination.
    """
    flags = {"qk_norm": config.qk_norm, "qkv_bias": config.qkv_bias}
    model_type = next(
        (name for name, known in _ARCHITECTURES.items() if known.flags == flags), None
    )
    if model_type is None:
        raise UsageError(
            f"model: no published architecture has {flags}; known: {', '.join(_ARCHITECTURES)}"
        )
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        rope = {"rope_type": "llama3"} | {
            theirs: getattr(config.rope_scaling, ours) for ours, theirs in _ROPE_SCALING.items()
        }
    return {
        "architectures": [f"{_ARCHITECTURES[model_type].name}ForCausalLM"],
        "model_type": model_type,
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if config.rope_scaling is not None else None,
        "tie_word_embeddings": config.tied_embeddings,
        "dtype": config.param_dtype,
        "torch_dtype": config.param_dtype,  # its name before transformers 4.56
        # Null where unknown: left out, they would become LlamaConfig's defaults, which are other
        # tokens.
        **{key: (token_ids or {}).get(key) for key in TOKEN_IDS},
        **_ARCHITECTURES[model_type].written,
    }


def _read_fields(read: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of ModelConfig that a config.json gives; `where` names it in errors.

    Raises DataError for an architecture, an option or a missing key that this decoder does not
    compute, and for an unknown field, unless its value turns it off.
    """
    architecture = _architecture(read, where)
    packed = [key for key in _QUANTIZED_BY if read.get(key)]
    if packed:
        raise DataError(f"{where}: {packed[0]} is {_short(read[packed[0]])}; {QUANTIZED}")
    _check_options(read, architecture, where)
    sizes = _sizes(read, architecture, where)
    tied = read.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise DataError(f"{where}: tie_word_embeddings is {tied!r}; it must be true or false")
    theta, scaling = _rope(read, where)
    fields = {ours: sizes[theirs] for ours, theirs in _SIZES.items()}
    fields |= {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tied_embeddings": tied,
        **architecture.flags,
    }
    stored = read.get("dtype") or read.get(
        "torch_dtype"
    )  # where both are given, transformers obeys the first
    if stored is not None:
        fields["param_dtype"] = stored.removeprefix("torch.") if isinstance(stored, str) else stored
    return fields


def _architecture(read: Mapping[str, Any], where: str) -> _Architecture:
    model_type = read.get("model_type")
    known = _ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if known is None:
        inner = read.get("text_config")
        hint = (
            "; its text model is inside text_config: save that alone with transformers"
            if isinstance(inner, Mapping)
            else ""
        )
        raise DataError(
            f"{where}: model_type is {model_type!r}; this decoder reads "
            f"{', '.join(_ARCHITECTURES)}{hint}"
        )
    classes = (f"{known.name}ForCausalLM", f"{known.name}Model")
    named = read.get("architectures") or classes
    if not isinstance(named, list | tuple) or set(map(str, named)) - set(classes):
        raise DataError(
            f"{where}: architectures is {_short(named)}; a model of this type is read as "
            f"{' or '.join(classes)} alone"
        )
    return known


def _check_options(read: Mapping[str, Any], architecture: _Architecture, where: str) -> None:
    """Raise DataError for the first field that may change numbers in an unknown way."""
    for key, value in architecture.written.items():
        given = read.get(key, value)
        if (
            _ALIKE.get(key, {}).get(given, given) != value
            if isinstance(given, str)
            else given is not value
        ):
            raise DataError(f"{where}: {key} is {given!r}; only {value!r} is supported")
    for key, allowed in _OPTIONS.items():
        if read.get(key) not in allowed:
            raise DataError(
                f"{where}: {key} is {_short(read[key])}; only {allowed[0]!r} is supported"
            )
    types = read.get("layer_types")
    if types is not None and (
        not isinstance(types, list) or set(map(str, types)) - {"full_attention", "attention"}
    ):
        raise DataError(
            f"{where}: layer_types has {_short(types)}; only 'full_attention' is supported"
        )
    known = (
        _HARMLESS
        | architecture.harmless
        | {*_SIZES.values(), *architecture.written, *_OPTIONS, *_QUANTIZED_BY}
    )
    for key, value in read.items():
        if key not in known and not _is_off(key, value):
            raise DataError(
                f"{where}: {key} is {_short(value)}, which this decoder does not know; "
                "take it out of config.json if the model computes the same without it"
            )


def _is_off(key: str, value: Any) -> bool:
    """Return whether an unknown field is off at this value, judging by its name."""
    if value is None or value in ({}, [], ""):
        return True
    if isinstance(value, bool):
        return not value and not any(word in key for word in ("rope", "rotary", "causal"))
    if value == 0:
        return key.startswith("num_") or "dropout" in key or "pdrop" in key
    return value == 1 and any(word in key for word in ("scale", "scaling", "multiplier"))


def _sizes(read: Mapping[str, Any], architecture: _Architecture, where: str) -> dict[str, Any]:
    """Return transformers' sizes by their keys, with defaults filled in."""
    read = {**architecture.left_out, **read}
    if (
        read.get("head_dim") is None
        and _count(read.get("hidden_size"))
        and _count(read.get("num_attention_heads"))
    ):
        read["head_dim"] = read["hidden_size"] // read["num_attention_heads"]
    if read.get("num_key_value_heads") is None and "num_attention_heads" in read:
        read["num_key_value_heads"] = read["num_attention_heads"]
    missing = [theirs for theirs in _SIZES.values() if read.get(theirs) is None]
    if missing:
        raise DataError(f"{where}: missing {', '.join(missing)}")
    return {key: read[key] for key in _SIZES.values()}


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _rope(read: Mapping[str, Any], where: str) -> tuple[float, dict[str, Any] | None]:
    """Return the rotary base and the fields of its scaling, if any.

    They are in `rope_parameters` (transformers 5), or at the top level and in `rope_scaling`, or in
    both. Readers differ in which they obey, so both must agree.
    """
    given_in = [
        (key, _rope_of(read[key], f"{where}: {key}"))
        for key in ("rope_parameters", "rope_scaling")
        if read.get(key)
    ]
    scalings = [scaling for _, (_, scaling) in given_in]
    if len(given_in) == 2 and scalings[0] != scalings[1]:
        raise DataError(
            f"{where}: rope_parameters is {_short(read['rope_parameters'])} and rope_scaling "
            "another; keep one of them"
        )
    thetas = {f"rope_theta in {key}": theta for key, (theta, _) in given_in if theta is not None}
    if read.get("rope_theta") is not None:
        thetas["rope_theta"] = read["rope_theta"]
    for name, theta in thetas.items():
        if (
            not isinstance(theta, int | float)
            or isinstance(theta, bool)
            or not 0 < theta < float("inf")
        ):
            raise DataError(f"{where}: {name} is {theta!r}; it must be a number above 0")
    if len(set(thetas.values())) > 1:
        raise DataError(
            f"{where}: {' and '.join(f'{name} is {theta:g}' for name, theta in thetas.items())}; "
            "keep one of them"
        )
    return float(next(iter(thetas.values()), _DEFAULT_THETA)), scalings[0] if scalings else None


def _rope_of(rope: Any, where: str) -> tuple[Any, dict[str, Any] | None]:
    """Return the rotary base and the scaling of one of the two dicts, each None if absent."""
    if not isinstance(rope, Mapping):
        raise DataError(
            f"{where} is {_short(rope)}; expected an object, such as {{'rope_type': 'default'}}"
        )
    kinds = {
        rope[key] if isinstance(rope[key], str) else _short(rope[key])
        for key in ("rope_type", "type")
        if rope.get(key) is not None
    }
    kind = kinds.pop() if len(kinds) == 1 else " and ".join(sorted(kinds)) or "default"
    if kind == "dynamic":
        raise DataError(
            f"{where}: rope_type is 'dynamic', which changes nothing up to "
            "max_position_embeddings; take it out to train within them"
        )
    if kind not in ("default", "llama3"):
        raise DataError(
            f"{where}: rope_type is {kind!r}; only 'default' and 'llama3' are supported"
        )
    scaling = _ROPE_SCALING if kind == "llama3" else {}
    known = {"rope_type", "type", "rope_theta", *scaling.values()}
    for key, value in rope.items():
        if (
            key not in known
            and value is not None
            and not (key == "partial_rotary_factor" and value == 1)
        ):
            raise DataError(
                f"{where}: {key} is {_short(value)}, which is not supported with rope_type {kind!r}"
            )
    missing = [theirs for theirs in scaling.values() if rope.get(theirs) is None]
    if missing:
        raise DataError(f"{where}: the llama3 rope scaling lacks {', '.join(missing)}")
    return rope.get("rope_theta"), {ours: rope[theirs] for ours, theirs in scaling.items()} or None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
