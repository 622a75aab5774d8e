"""Every field of config.json that changes a number is honoured or refused, judged by what
transformers computes.
"""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from cotjax.errors import DataError
from cotjax.model import decoder
from cotjax.model.config import RopeScaling
from cotjax.model.params import init_params
from cotjax.weights.hf_config import config_from_hf, config_to_hf
from cotjax.weights.huggingface import load_hf, save_hf

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# What is changed in a config.json; None takes the field out.
CHANGES = {
    "as it is": {},
    "older rotary base": {"rope_parameters": None, "rope_theta": 500.0},
    "newer rotary base": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "rope_theta": None,
    },
    "no rotary base": {"rope_parameters": None, "rope_theta": None},
    "two rotary bases": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "rope_theta": 10_000.0,
    },
    "no rotary type": {"rope_parameters": {"rope_theta": 500.0}, "rope_theta": None},
    "llama3 in rope_parameters": {
        "rope_parameters": LLAMA3 | {"rope_theta": 500.0},
        "rope_theta": None,
    },
    "llama3 in rope_scaling": {
        "rope_parameters": None,
        "rope_theta": 500.0,
        "rope_scaling": LLAMA3,
    },
    "llama3 under its old key": {
        "rope_parameters": None,
        "rope_theta": 500.0,
        "rope_scaling": {"type" if key == "rope_type" else key: x for key, x in LLAMA3.items()},
    },
    "llama3 in one, nothing in the other": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "rope_theta": 500.0,
        "rope_scaling": LLAMA3,
    },
    "llama3 in both, unequal": {
        "rope_parameters": LLAMA3 | {"rope_theta": 500.0},
        "rope_theta": 500.0,
        "rope_scaling": LLAMA3 | {"factor": 2.0},
    },
    "original length at the top": {
        "rope_parameters": None,
        "rope_theta": 500.0,
        "rope_scaling": LLAMA3,
        "original_max_position_embeddings": 32,
    },
    "linear": {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "linear, newer": {
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
        "rope_theta": None,
    },
    "dynamic": {
        "rope_parameters": None,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "max_position_embeddings": 16,
    },
    "yarn": {
        "rope_parameters": None,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "longrope": {
        "rope_parameters": None,
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": [1.0, 2.0, 2.0, 2.0],
            "long_factor": [4.0] * 4,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "two rotary types": {
        "rope_parameters": {
            "rope_type": "default",
            "type": "linear",
            "factor": 2.0,
            "rope_theta": 500.0,
        },
        "rope_theta": None,
    },
    "part of a head turned": {"partial_rotary_factor": 0.5},
    "part of a head turned, newer": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 500.0,
            "partial_rotary_factor": 0.5,
        },
        "rope_theta": None,
    },
    "part of a head turned, llama3": {
        "rope_parameters": LLAMA3 | {"rope_theta": 500.0, "partial_rotary_factor": 0.5},
        "rope_theta": None,
    },
    "rotary by layer type": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 500.0}},
        "rope_theta": None,
    },
    "norm_eps": {"rms_norm_eps": 0.5},
    "no norm_eps": {"rms_norm_eps": None},
    "gelu": {"hidden_act": "gelu"},
    "silu by its other name": {"hidden_act": "swish"},
    "no activation": {"hidden_act": None},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "sliding window": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
    "sliding window of some layers": {
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "sliding window that is off": {
        "use_sliding_window": False,
        "sliding_window": 4,
        "max_window_layers": 0,
    },
    "sliding_window alone": {"sliding_window": 4},
    "sliding layers": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 4,
        "use_sliding_window": True,
    },
    "full layers": {"layer_types": ["full_attention", "full_attention"]},
    "full layers by their old name": {"layer_types": ["attention", "attention"]},
    "no head size": {"head_dim": None},
    "no key heads": {"num_key_value_heads": None},
    "other head size": {"head_dim": 16},
    "other heads": {"num_attention_heads": 8, "head_dim": 4, "num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "tied left out": {"tie_word_embeddings": None},
    "not causal": {"is_causal": False},
    "bidirectional": {"use_bidirectional_attention": True},
    "other multipliers": {
        "attention_multiplier": 2.0,
        "embedding_multiplier": 3.0,
        "logits_scaling": 4.0,
        "residual_multiplier": 0.2,
    },
    "soft caps": {"final_logit_softcapping": 1.0, "attn_logit_softcapping": 1.0},
    "parts of tensors": {"pretraining_tp": 2},
    "layer of its own": {"per_layer_config": {"0": {"rms_norm_eps": 0.5}}},
    "fewer layers": {"num_hidden_layers": 1},
    "dtype by its long name": {"dtype": None, "torch_dtype": "torch.float32"},
    "quantized": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    "another class": {"architectures": ["LlamaForSequenceClassification"]},
    "code of its own": {"auto_map": {"AutoModelForCausalLM": "modeling.Other"}},
    "generation": {
        "temperature": 0.1,
        "repetition_penalty": 2.0,
        "eos_token_id": [1, 2],
        "pad_token_id": 3,
        "use_cache": False,
    },
}
# Refused in every family, so that the comparison below cannot pass by luck.
REFUSED = {
    "two rotary bases",
    "llama3 in one, nothing in the other",
    "llama3 in both, unequal",
    "original length at the top",
    "linear",
    "linear, newer",
    "dynamic",
    "yarn",
    "longrope",
    "two rotary types",
    "part of a head turned",
    "part of a head turned, newer",
    "part of a head turned, llama3",
    "rotary by layer type",
    "no norm_eps",
    "gelu",
    "mlp_bias",
    "sliding window",
    "sliding window of some layers",
    "sliding layers",
    "not causal",
    "bidirectional",
    "other multipliers",
    "soft caps",
    "layer of its own",
    "fewer layers",
    "quantized",
    "another class",
    "code of its own",
    "other head size",
}
# Read in every family: what every published checkpoint may hold.
READ = {
    "as it is",
    "older rotary base",
    "newer rotary base",
    "no rotary base",
    "no rotary type",
    "llama3 in rope_parameters",
    "llama3 in rope_scaling",
    "llama3 under its old key",
    "norm_eps",
    "silu by its other name",
    "no activation",
    "full layers",
    "full layers by their old name",
    "tied",
    "tied left out",
    "dtype by its long name",
    "generation",
}
FAMILIES = {"qwen3": {}, "qwen2": {"qk_norm": False, "qkv_bias": True}, "llama": {"qk_norm": False}}
IDS = np.random.default_rng(0).integers(0, 61, (2, 40)).astype(np.int32)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """The folder of a model whose every weight differs from its first value."""
    config = tiny.model_config(**FAMILIES[request.param], tied_embeddings=False)
    params = init_params(config, jax.random.key(0))
    draws = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.1 * draws.normal(size=x.shape).astype(np.float32), params)
    folder = tmp_path_factory.mktemp(request.param)
    save_hf(folder, config, params)
    return folder


@partial(jax.jit, static_argnums=0)
def _logits(config, params):
    positions = np.broadcast_to(np.arange(IDS.shape[1], dtype=np.int32), IDS.shape)
    return decoder.logits(
        config,
        params,
        decoder.hidden_states(
            config, params, IDS, positions, jnp.ones_like(IDS), jnp.zeros_like(IDS)
        ),
    )


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
@pytest.mark.parametrize("change", CHANGES)
def test_our_logits_are_those_of_transformers_or_loading_is_refused(family, change, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    (tmp_path / "model.safetensors").symlink_to(family / "model.safetensors")
    fields = json.loads((family / "config.json").read_text()) | CHANGES[change]
    (tmp_path / "config.json").write_text(
        json.dumps({key: x for key, x in fields.items() if x is not None})
    )
    try:
        config, params = load_hf(tmp_path)
    except DataError as error:
        assert "\n" not in str(error) and change not in READ, error
        return
    assert change not in REFUSED
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(_logits(config, params), expected, atol=2e-4, rtol=2e-4)


QWEN = {
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-06,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
}
LLAMA_3 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "mlp_bias": False,
    "hidden_size": 4096,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192},
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}
PUBLISHED = {
    "Qwen3-8B": QWEN
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "max_position_embeddings": 40960,
        "max_window_layers": 36,
        "model_type": "qwen3",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "transformers_version": "4.51.0",
        "vocab_size": 151936,
    },
    "Qwen2.5-7B": QWEN
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "transformers_version": "4.40.1",
        "use_mrope": False,
        "vocab_size": 152064,
    },
    "Llama-3.1-8B": LLAMA_3,
    "TinyLlama-1.1B": {
        "_name_or_path": "meta-llama/Llama-2-7b-hf",
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 5632,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 22,
        "num_key_value_heads": 4,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.31.0.dev0",
        "use_cache": True,
        "vocab_size": 32000,
    },
    "SmolLM2-360M": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 960,
        "initializer_range": 0.02,
        "intermediate_size": 2560,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 15,
        "num_hidden_layers": 32,
        "num_key_value_heads": 5,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"dtype": "fp16"},
        "transformers_version": "4.47.0.dev0",
        "use_cache": True,
        "vocab_size": 49152,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_fields_of_published_models_are_all_known(name):
    read = config_from_hf(PUBLISHED[name])
    assert read.width == PUBLISHED[name]["hidden_size"] and read.rope_theta == PUBLISHED[name].get(
        "rope_theta", 10_000
    )
    assert (read.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)) == (name == "Llama-3.1-8B")


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"text_config": {"model_type": "qwen3"}, "model_type": "qwen3_vl"},
            "'qwen3_vl'; this decoder reads .* inside text_config",
        ),
        ({"model_type": ["llama"]}, r"model_type is \['llama'\]"),
        (
            {"architectures": ["Qwen3ForSequenceClassification"]},
            "read as Qwen3ForCausalLM or Qwen3Model alone",
        ),
        ({"quant_method": "awq"}, "quant_method is 'awq'; quantized weights are not read"),
        ({"load_in_4bit": True}, "load_in_4bit is True; quantized weights are not read"),
        ({"scale_emb": 12}, "scale_emb is 12, which this decoder does not know; take it out"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; expected an object"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "'dynamic', which changes nothing up to max_position_embeddings",
        ),
        (
            {"rope_theta": -1.0, "rope_parameters": None},
            "rope_theta is -1.0; it must be a number above 0",
        ),
        ({"rope_theta": "1e6", "rope_parameters": None}, "rope_theta is '1e6'"),
        (
            {"rope_parameters": LLAMA3 | {"rope_theta": 1e4, "factor": "8"}},
            "all four are finite numbers",
        ),
        ({"hidden_size": 32.0}, "width is 32.0; it must be a whole number"),
        ({"rms_norm_eps": float("nan")}, "norm_eps is nan"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1; only 0"),
        ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers is 1"),
    ],
)
def test_refusals_name_the_field_and_what_to_do(change, words):
    with pytest.raises(DataError, match=words) as caught:
        config_from_hf(config_to_hf(tiny.model_config()) | change)
    assert "\n" not in str(caught.value)


def test_unknown_fields_that_turn_something_off_are_read():
    off = {
        "logit_scale": 1.0,
        "hidden_dropout": 0.0,
        "num_nextn_predict_layers": 0,
        "use_qk_clip": False,
        "extra": None,
        "blocks": [],
    }
    assert config_from_hf(config_to_hf(tiny.model_config()) | off) == tiny.model_config()
