import json

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from cotjax.errors import DataError
from cotjax.model import decoder
from cotjax.model.sharding import make_mesh
from cotjax.model.weights import load_hf, save_hf

CONFIG = tiny.model_config(tied_embeddings=False)
PARAMS = decoder.init_params(CONFIG, jax.random.key(0))
K_PROJ = "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture
def saved(tmp_path):
    save_hf(tmp_path, CONFIG, PARAMS)
    return tmp_path


def _rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_round_trip_keeps_every_bit(saved):
    config, params = load_hf(saved, make_mesh(devices=jax.devices()[:1]))
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_round_trip(tmp_path, dtype):
    config = tiny.model_config(param_dtype=dtype, tied_embeddings=False)
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    save_hf(tmp_path, config, params)
    again, loaded = load_hf(tmp_path)
    assert again == config
    jax.tree.map(lambda a, b: (a.dtype == b.dtype or pytest.fail(str(a.dtype)), np.testing.assert_array_equal(a, b)), loaded, params)


def test_reads_indexed_parts(saved):
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate((list(tensors)[:9], list(tensors)[9:])):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, saved / file)
        weight_map |= dict.fromkeys(names, file)
    (saved / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    jax.tree.map(np.testing.assert_array_equal, load_hf(saved)[1], PARAMS)
    (saved / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DataError, match=r"missing files: model-00002-of-00002\.safetensors"):
        load_hf(saved)
    (saved / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(DataError, match="not a readable index"):
        load_hf(saved)


def test_missing_tensor_is_named(saved):
    _rewrite(saved, lambda tensors: tensors.pop(K_PROJ))
    with pytest.raises(DataError, match=f"missing tensors: {K_PROJ}"):
        load_hf(saved)


def test_unknown_tensor_is_named(saved):
    _rewrite(saved, lambda tensors: tensors.update({"model.layers.7.mlp.up_proj.weight": np.zeros(3, np.float32)}))
    with pytest.raises(DataError, match=r"unknown tensors: model\.layers\.7\.mlp\.up_proj\.weight"):
        load_hf(saved)


def test_another_shape_is_shown_beside_the_one_asked_for(saved):
    _rewrite(saved, lambda tensors: tensors.update({K_PROJ: np.zeros((8, 32), np.float32)}))
    with pytest.raises(DataError, match=rf"{K_PROJ} has shape \(8, 32\); config\.json asks for \(16, 32\)"):
        load_hf(saved)


@pytest.mark.parametrize("kept", [0, 100, -50])
def test_cut_file_is_named(saved, kept):
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[:kept])
    with pytest.raises(DataError, match=r"model\.safetensors: not a whole safetensors file"):
        load_hf(saved)


def test_no_weights_at_all(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        load_hf(saved)


def test_a_repeated_tied_matrix_is_passed_over(tmp_path):
    config, params = tiny.model_config(), {"model": PARAMS["model"]}
    save_hf(tmp_path, config, params)
    _rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}))
    jax.tree.map(np.testing.assert_array_equal, load_hf(tmp_path)[1], params)


def test_params_of_another_shape_are_not_written(tmp_path):
    with pytest.raises(DataError, match="has shape"):
        save_hf(tmp_path, tiny.model_config(tied_embeddings=False, feed_forward=40), PARAMS)
    assert not (tmp_path / "model.safetensors").exists()
