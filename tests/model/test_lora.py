"""LoRA as a change of parameters: nothing at first, the same once merged, and in PEFT's layout what
PEFT computes.
"""

import json
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from safetensors.numpy import load_file, save_file

from cotjax.errors import DataError, UsageError
from cotjax.model import decoder, lora
from cotjax.model.config import LoRA, ModelConfig
from cotjax.model.params import (
    declared,
    init_params,
    join_params,
    param_shardings,
    split_params,
    trainable_paths,
)
from cotjax.model.sharding import make_mesh
from cotjax.weights.huggingface import load_hf, save_hf
from cotjax.weights.peft import load_peft, save_peft

EVERY = r".*\.(q|k|v|o|gate|up|down)_proj"
CONFIG = tiny.model_config()
IDS = np.random.default_rng(0).integers(0, 61, (3, 40)).astype(np.int32)


def _logits(config, params):
    positions = np.broadcast_to(np.arange(IDS.shape[1], dtype=np.int32), IDS.shape)

    def of(params):
        hidden_BTD = decoder.hidden_states(
            config, params, IDS, positions, jnp.ones_like(IDS), jnp.zeros_like(IDS)
        )
        return decoder.logits(config, params, hidden_BTD)

    return np.asarray(jax.jit(of)(params))


def _adapted(config=CONFIG, params=None, targets=EVERY, rank=4, alpha=6.0, size=0.1):
    """Adapters that say something: fresh ones plus noise."""
    params = tiny.params() if params is None else params
    config, params = lora.add(config, params, LoRA(rank, alpha, targets), jax.random.key(1))
    draw = np.random.default_rng(2)
    trained, frozen = split_params(config, params)
    trained = jax.tree.map(
        lambda x: x + size * draw.standard_normal(x.shape).astype(np.float32), trained
    )
    return config, join_params(config, trained, frozen)


def test_fresh_adapters_change_nothing():
    config, params = lora.add(CONFIG, tiny.params(), LoRA(4, 8.0, EVERY), jax.random.key(1))
    np.testing.assert_array_equal(_logits(config, params), _logits(CONFIG, tiny.params()))
    projection = params["model"]["layers"]["1"]["self_attn"]["o_proj"]
    assert projection["lora_A"].shape == (4, 8, 4) and projection["lora_B"].shape == (4, 32)
    assert (
        not np.any(projection["lora_B"])
        and 0.5 < float(projection["lora_A"].std()) * np.sqrt(3 * 32) < 1.5
    )
    _, frozen = split_params(config, params)
    assert jax.tree.structure(frozen) == jax.tree.structure(tiny.params())
    assert all(
        one is other
        for one, other in zip(jax.tree.leaves(frozen), jax.tree.leaves(tiny.params()), strict=True)
    ), "taken over, not copied"


def test_a_model_drawn_whole_has_the_base_of_one_without_adapters():
    config = replace(CONFIG, lora=LoRA(4, 8.0, EVERY))
    trained, frozen = split_params(config, init_params(config, jax.random.key(0)))
    jax.tree.map(tiny.assert_same_draws, frozen, tiny.params())
    assert len(jax.tree.leaves(trained)) == 2 * 7 * 2


def test_only_what_the_expression_matches_whole_is_a_target():
    paths = trainable_paths(replace(CONFIG, lora=LoRA(2, 2.0, r"model\.layers\.1\..*\.(q|v)_proj")))
    expected = {
        ("model", "layers", "1", "self_attn", name, factor)
        for name in ("q_proj", "v_proj")
        for factor in ("lora_A", "lora_B")
    }
    assert paths == expected
    assert trainable_paths(CONFIG) == set(declared(CONFIG))


def test_adapters_add_scaled_products_and_merging_keeps_the_logits():
    config, params = _adapted()
    expected = _logits(config, params)
    assert np.abs(expected - _logits(CONFIG, tiny.params())).max() > 0.1
    whole, merged = lora.merge(config, params)
    assert whole == CONFIG and jax.tree.structure(merged) == jax.tree.structure(tiny.params())
    np.testing.assert_allclose(_logits(whole, merged), expected, atol=1e-5)
    before, after = (
        params["model"]["layers"]["0"]["mlp"]["up_proj"],
        merged["model"]["layers"]["0"]["mlp"]["up_proj"],
    )
    by_hand = np.asarray(before["weight"], np.float64) + 6.0 / 4 * np.asarray(
        before["lora_A"], np.float64
    ) @ np.asarray(before["lora_B"])
    np.testing.assert_allclose(after["weight"], by_hand, atol=1e-6)


def test_an_update_below_a_bfloat16_weights_last_bit_still_counts():
    """Beside the weight it moves the output; merged into the weight it would be rounded away."""
    config = tiny.model_config(param_dtype="bfloat16")
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params())
    config, params = lora.add(config, params, LoRA(4, 4.0, r".*\.up_proj"), jax.random.key(1))
    trained, frozen = split_params(config, params)
    assert {x.dtype for x in jax.tree.leaves(trained)} == {jnp.dtype("float32")}
    params = join_params(config, jax.tree.map(lambda x: x + 1e-4, trained), frozen)
    whole, merged = lora.merge(config, params)
    kept = [
        np.mean(np.asarray(one == other))
        for one, other in zip(jax.tree.leaves(merged), jax.tree.leaves(frozen), strict=True)
    ]
    assert min(kept) > 0.9 and {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}
    exact_config, exact = lora.merge(
        replace(config, param_dtype="float32"),
        jax.tree.map(lambda x: x.astype(jnp.float32), params),
    )
    moved = np.abs(_logits(exact_config, exact) - _logits(whole, frozen)).max()
    assert moved > 1e-5
    np.testing.assert_allclose(
        _logits(config, params), _logits(exact_config, exact), atol=0.02 * moved
    )


def test_adapters_and_their_config_through_json_and_sharding():
    config, _ = _adapted()
    assert (
        ModelConfig(**json.loads(json.dumps(asdict(config)))) == config
        and len({config, CONFIG}) == 2
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    assert len(jax.tree.leaves(param_shardings(config, mesh))) == len(declared(config))
    _, placed = lora.add(CONFIG, tiny.params(), config.lora, jax.random.key(1), mesh)
    assert placed["model"]["layers"]["0"]["mlp"]["up_proj"]["lora_A"].sharding.mesh == mesh


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((0, 8.0, EVERY), "the rank is 0"),
        ((2.5, 8.0, EVERY), "the rank is 2.5"),
        ((4, 0.0, EVERY), "alpha is 0"),
        ((4, float("nan"), EVERY), "alpha is nan"),
        ((4, 8.0, "(q|k"), r"'\(q\|k' are no regular expression"),
        ((4, 8.0, "q_proj"), r"'q_proj' match no projection.*model\.layers\.N\.self_attn\.q_proj"),
        ((4, 8.0, r".*norm"), "match no projection"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(UsageError, match=words):
        lora.add(CONFIG, tiny.params(), LoRA(*settings), jax.random.key(0))


def test_what_needs_adapters_or_none_says_so(tmp_path):
    config, params = _adapted()
    with pytest.raises(UsageError, match=r"merge them first"):
        save_hf(tmp_path, config, params)
    with pytest.raises(UsageError, match="adapters already"):
        lora.add(config, params, config.lora, jax.random.key(0))
    save_peft(tmp_path, config, params, "base")
    with pytest.raises(UsageError, match="adapters already"):
        load_peft(tmp_path, config, params)
    for call in (lora.merge, lambda *model: save_peft(tmp_path, *model, "base")):
        with pytest.raises(UsageError, match="no adapters"):
            call(CONFIG, tiny.params())


# ---- PEFT's folder


@pytest.mark.parametrize("targets", [EVERY, r".*\.0\.self_attn.*", r".*\.(o|down)_proj"])
def test_peft_round_trip_keeps_every_bit(tmp_path, targets):
    config, params = _adapted(targets=targets)
    save_peft(tmp_path, config, params, "base")
    again, loaded = load_peft(tmp_path, CONFIG, tiny.params(), make_mesh(devices=jax.devices()[:1]))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert (again.lora.rank, again.lora.alpha) == (4, 6.0) and trainable_paths(
        again
    ) == trainable_paths(config)


def test_half_precision_adapters_come_in_as_float32(tmp_path):
    config, params = _adapted()
    save_peft(tmp_path, config, params, "base")
    tensors = {
        name: tensor.astype(jnp.bfloat16)
        for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config, loaded = load_peft(tmp_path, CONFIG, tiny.params())
    trained, _ = split_params(config, loaded)
    assert {x.dtype for x in jax.tree.leaves(trained)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA'"),
        ({"use_dora": True}, "use_dora is True, which is not supported"),
        ({"use_rslora": True}, "use_rslora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"layers_to_transform": 0}, "layers_to_transform is 0"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is"),
        ({"an_option_to_come": 1}, "an_option_to_come is 1"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base"),
        ({"r": "8"}, "the rank is '8'"),
        ({"r": None, "target_modules": []}, "missing r, target_modules"),
        ({"target_modules": ["wq"]}, "match no projection"),
        (
            {"target_modules": ["q_proj"]},
            r"unknown tensors: .*down_proj\.lora_A\.weight.* and 19 more",
        ),
        (
            {"r": 8},
            r"down_proj.lora_A\.weight has shape \(4, 48\); this model "
            r"and adapter_config\.json ask for \(8, 48\)",
        ),
    ],
)
def test_what_it_cannot_honour_names_the_file(tmp_path, change, words):
    save_peft(tmp_path, *_adapted(), "base")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError, match=words) as caught:
        load_peft(tmp_path, CONFIG, tiny.params())
    assert str(tmp_path / "adapter_") in str(caught.value)


def test_broken_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"adapter_config\.json: there is no such file"):
        load_peft(tmp_path, CONFIG, tiny.params())
    save_peft(tmp_path, *_adapted(), "base")
    whole = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole[:-50])
    with pytest.raises(
        DataError, match=r"adapter_model\.safetensors: not a whole safetensors file"
    ):
        load_peft(tmp_path, CONFIG, tiny.params())
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(DataError, match=r"adapter_model\.safetensors"):
        load_peft(tmp_path, CONFIG, tiny.params())
    for text, words in (
        ("{", "not a readable JSON"),
        ("[]", "holds a list"),
        ("{}", "peft_type is None"),
    ):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(DataError, match=words):
            load_peft(tmp_path, CONFIG, tiny.params())


FAMILIES = {
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": False},
}


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory):
    """A folder with a tiny model that transformers saved."""
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        request.param,
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=512,
        **FAMILIES[request.param],
    )
    folder = tmp_path_factory.mktemp(request.param)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def _theirs(model):
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor(IDS, dtype=torch.long)).logits.numpy()


peft_warns = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


@peft_warns
@pytest.mark.parametrize("targets", [EVERY, r".*\.1\.self_attn.*"])
def test_peft_computes_our_logits_from_our_folder(base, tmp_path, targets):
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    before = load_hf(base)
    config, params = _adapted(*before, targets=targets)
    ours = _logits(config, params)
    assert np.abs(ours - _logits(*before)).max() > 0.01
    save_peft(tmp_path, config, params, str(base))
    np.testing.assert_allclose(
        ours,
        _theirs(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path)),
        atol=5e-5,
    )
    np.testing.assert_allclose(
        ours, _theirs(AutoPeftModelForCausalLM.from_pretrained(tmp_path)), atol=5e-5
    )


@peft_warns
@pytest.mark.parametrize(
    "modules",
    [
        ["q_proj", "o_proj", "down_proj"],
        "all-linear",
        r".*\.1\.mlp\.(up|down)_proj",
        ["0.self_attn.v_proj"],
    ],
)
def test_our_logits_are_pefts_from_a_folder_that_peft_saved(base, tmp_path, modules):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=3, lora_alpha=5, target_modules=modules, task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    config, params = load_peft(tmp_path, *load_hf(base))
    assert np.abs(_theirs(model) - _logits(*load_hf(base))).max() > 0.01
    np.testing.assert_allclose(_logits(config, params), _theirs(model), atol=5e-5)


@peft_warns
def test_merged_in_peft_and_merged_here_are_one_model(base, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config, params = _adapted(*load_hf(base))
    save_peft(tmp_path, config, params, str(base))
    save_hf(tmp_path / "merged", *lora.merge(config, params))
    theirs = (
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path)
        .merge_and_unload()
        .state_dict()
    )
    for name, tensor in load_file(tmp_path / "merged" / "model.safetensors").items():
        np.testing.assert_allclose(tensor, theirs[name].numpy(), atol=1e-6, err_msg=name)
