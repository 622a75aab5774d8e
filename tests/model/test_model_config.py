import json
from dataclasses import asdict

import pytest
from helpers import tiny

from cotjax.errors import DataError, UsageError
from cotjax.model.config import ModelConfig, RopeScaling
from cotjax.weights.hf_config import config_from_hf, config_to_hf


def test_hf_round_trip():
    config = tiny.model_config(rope_theta=1e6, tied_embeddings=False, param_dtype="bfloat16")
    assert config_from_hf(config_to_hf(config)) == config


@pytest.mark.parametrize(
    "flags",
    [{"qk_norm": False, "qkv_bias": True}, {"qk_norm": False, "qkv_bias": False}],
    ids=["qwen2", "llama"],
)
def test_every_family_goes_out_and_comes_in_through_json_too(flags):
    config = tiny.model_config(**flags, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192))
    assert config_from_hf(config_to_hf(config)) == config
    assert ModelConfig(**json.loads(json.dumps(asdict(config)))) == config
    assert len({config, tiny.model_config(**flags)}) == 2, (
        "configs are hashable, and scaling tells them apart"
    )


def test_what_older_configs_leave_out_follows_from_the_rest():
    written = config_to_hf(tiny.model_config(qk_norm=False, kv_heads=4))
    for key in ("head_dim", "num_key_value_heads"):
        del written[key]
    assert config_from_hf(written).head_size == 8 and config_from_hf(written).kv_heads == 4


def test_the_older_spelling_of_the_scaling():
    written = config_to_hf(
        tiny.model_config(qk_norm=False, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192))
    )
    older = {key: value for key, value in written.items() if key != "rope_parameters"}
    assert config_from_hf(older) == config_from_hf(written)


def test_reads_both_spellings_of_the_rotary_base():
    written = config_to_hf(tiny.model_config(rope_theta=5e5))
    older = {key: value for key, value in written.items() if key != "rope_parameters"} | {
        "rope_scaling": None
    }
    newer = {key: value for key, value in written.items() if key != "rope_theta"}
    assert config_from_hf(older).rope_theta == config_from_hf(newer).rope_theta == 5e5


def test_overrides_and_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(tiny.model_config())))
    assert config_from_hf(tmp_path, compute_dtype="bfloat16") == tiny.model_config(
        compute_dtype="bfloat16"
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_type": "mamba"}, "'mamba'; this decoder reads qwen3, qwen2, llama"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"use_sliding_window": True}, "use_sliding_window is True; only False"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type is 'yarn'"),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
            "lacks low_freq_factor, high_freq_factor",
        ),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "only 'full_attention'"),
        ({"num_attention_heads": 3}, r"heads \(3\) must be a multiple of kv_heads \(2\)"),
        ({"dtype": "int8"}, "param_dtype is 'int8'"),
    ],
)
def test_what_it_cannot_honour_is_one_clear_error(change, words):
    with pytest.raises(DataError, match=words):
        config_from_hf(config_to_hf(tiny.model_config()) | change)


def test_missing_keys_are_named():
    without = {
        key: value
        for key, value in config_to_hf(tiny.model_config()).items()
        if key not in ("vocab_size", "hidden_size")
    }
    with pytest.raises(DataError, match="missing vocab_size, hidden_size"):
        config_from_hf(without)


def test_broken_file_names_itself(tmp_path):
    with pytest.raises(DataError, match=r"config\.json: there is no such file"):
        config_from_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json: not a readable JSON file"):
        config_from_hf(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(DataError, match="holds a list"):
        config_from_hf(tmp_path)


@pytest.mark.parametrize("change", [{"layers": 0}, {"head_size": 7}, {"compute_dtype": "float8"}])
def test_sizes_that_do_not_fit(change):
    with pytest.raises(UsageError, match=next(iter(change))):
        tiny.model_config(**change)


def test_no_published_architecture_has_both_flags():
    with pytest.raises(UsageError, match="no published architecture"):
        config_to_hf(tiny.model_config(qk_norm=True, qkv_bias=True))
