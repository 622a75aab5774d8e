"""What is read out of a folder's tensors, whatever their names and config.json say."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from helpers import tiny
from safetensors.numpy import load_file, save_file

from cotjax.errors import DataError
from cotjax.model.params import init_params
from cotjax.weights import stored
from cotjax.weights.huggingface import load_hf, read_hf, save_hf

EMBEDDING, HEAD, Q_PROJ = (
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.layers.0.self_attn.q_proj.weight",
)


@pytest.fixture
def tied(tmp_path):
    """(folder, parameters) of a tied model."""
    params = init_params(tiny.model_config(), jax.random.key(0))
    save_hf(tmp_path, tiny.model_config(), params)
    return tmp_path, params


def _rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    changed = change(dict(tensors))
    save_file(
        tensors if changed is None else changed,
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def _set(folder, **fields):
    read = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(read | fields))


def _another_head(there, row=-1):
    head = there[EMBEDDING].copy()
    head[row] += 1
    return there | {HEAD: head}


@pytest.mark.parametrize("row", [0, 30, -1])
def test_a_head_that_differs_from_a_tied_embedding_is_kept_and_said(
    tied, tmp_path_factory, monkeypatch, row
):
    monkeypatch.setattr(stored, "_CHUNK_BYTES", 8 * 32 * 7)  # seven rows at a time
    folder, params = tied
    _rewrite(folder, lambda there: _another_head(there, row))
    said = []
    assert read_hf(folder, said.append) == tiny.model_config(tied_embeddings=False)
    assert len(said) == 1 and "lm_head.weight" in said[0] and "untied" in said[0]
    config, loaded = load_hf(folder)
    expected = np.asarray(params["model"]["embed_tokens"]["weight"]).copy()
    expected[row] += 1
    np.testing.assert_array_equal(loaded["lm_head"]["weight"], expected)
    np.testing.assert_array_equal(
        loaded["model"]["embed_tokens"]["weight"], params["model"]["embed_tokens"]["weight"]
    )
    out = tmp_path_factory.mktemp("out")
    save_hf(out, config, loaded)
    np.testing.assert_array_equal(load_file(out / "model.safetensors")[HEAD], expected)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_an_equal_copy_of_a_tied_embedding_is_passed_over_in_silence(tied):
    folder, params = tied
    _rewrite(folder, lambda there: there | {HEAD: there[EMBEDDING].copy()})
    said = []
    assert read_hf(folder, said.append) == tiny.model_config() and not said
    jax.tree.map(np.testing.assert_array_equal, load_hf(folder)[1], params)


def test_a_tied_matrix_under_the_heads_name_alone_is_the_embedding(tied):
    folder, params = tied
    _rewrite(
        folder, lambda there: {HEAD if name == EMBEDDING else name: x for name, x in there.items()}
    )
    jax.tree.map(np.testing.assert_array_equal, load_hf(folder)[1], params)


def test_an_untied_model_without_a_head_is_refused(tied):
    _set(tied[0], tie_word_embeddings=False)
    with pytest.raises(
        DataError, match=r"missing tensors: lm_head\.weight.*not tied.*tie_word_embeddings"
    ):
        load_hf(tied[0])


def test_rotary_buffers_are_passed_over(tied):
    folder, params = tied
    buffers = {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)
        for layer in range(2)
    }
    _rewrite(
        folder,
        lambda there: there | buffers | {"model.rotary_emb.inv_freq": np.ones(4, np.float32)},
    )
    jax.tree.map(np.testing.assert_array_equal, load_hf(folder)[1], params)


@pytest.mark.parametrize("own_head", [False, True])
def test_names_without_their_prefix_are_read(tied, own_head):
    folder, _ = tied
    _rewrite(folder, _another_head if own_head else dict)
    expected = load_hf(folder)[1]
    _rewrite(folder, lambda there: {name.removeprefix("model."): x for name, x in there.items()})
    jax.tree.map(np.testing.assert_array_equal, load_hf(folder)[1], expected)


@pytest.mark.parametrize(
    "name, values",
    [
        (f"{Q_PROJ}_scale_inv", np.ones((1, 1), np.float32)),
        (f"{Q_PROJ}_scale", np.ones(1, np.float32)),
        (Q_PROJ.replace("weight", "input_scale"), np.ones(1, np.float32)),
        (Q_PROJ, np.ones((32, 32), ml_dtypes.float8_e4m3fn)),
        (Q_PROJ, np.ones((32, 32), np.int8)),
        (Q_PROJ, np.ones((512, 1), np.uint8)),
        (f"{Q_PROJ}.absmax", np.ones(4, np.float32)),
        (f"{Q_PROJ}.quant_state.bitsandbytes__nf4", np.ones(4, np.uint8)),
        (Q_PROJ.replace("weight", "SCB"), np.ones(32, np.float32)),
        (Q_PROJ.replace("weight", "qweight"), np.ones((4, 32), np.int32)),
        (Q_PROJ.replace("weight", "scales"), np.ones((1, 32), np.float16)),
        (Q_PROJ.replace("weight", "g_idx"), np.ones(32, np.int32)),
        (Q_PROJ.replace("weight", "weight_packed"), np.ones((32, 4), np.int32)),
    ],
)
def test_quantized_weights_are_refused_as_such(tied, name, values):
    """fp8 block scales, bitsandbytes, GPTQ, AWQ, compressed-tensors; by name and by dtype,
    config.json saying nothing.
    """
    _rewrite(
        tied[0],
        lambda there: {key: x for key, x in there.items() if key != Q_PROJ} | {name: values},
    )
    with pytest.raises(
        DataError, match="quantized weights are not read, so take the model's original ones"
    ) as caught:
        load_hf(tied[0])
    assert name in str(caught.value) and "another model" not in str(caught.value)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "language_model.", "base_model.model."]
)
def test_a_wrapper_around_all_names_is_named(tied, prefix):
    _rewrite(tied[0], lambda there: {prefix + name: x for name, x in there.items()})
    with pytest.raises(
        DataError, match=f"every name has '{prefix}' before it; save the model that is inside"
    ):
        load_hf(tied[0])


def test_adapters_that_were_not_merged_are_named(tied):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    _rewrite(tied[0], lambda there: there | {name: np.ones((2, 32), np.float32)})
    with pytest.raises(
        DataError, match=r"adapters that were not merged: .*lora_A.*merge_and_unload"
    ):
        load_hf(tied[0])


def test_a_tensor_in_two_files_is_refused(tied):
    folder, params = tied
    save_hf(folder, tiny.model_config(), params, max_shard_bytes=30_000)
    files = sorted(folder.glob("model-*.safetensors"))
    save_file(
        load_file(files[1]) | {EMBEDDING: np.zeros((61, 32), np.float32)},
        files[1],
        metadata={"format": "pt"},
    )
    with pytest.raises(
        DataError,
        match=rf"model\.embed_tokens\.weight is in {files[0].name} and in {files[1].name}",
    ):
        load_hf(folder)


@pytest.mark.parametrize(
    "dtypes, widest",
    [
        (["float32"], "float32"),
        (["bfloat16"], "bfloat16"),
        (["float16"], "float16"),
        (["bfloat16", "float32"], "float32"),
        (["bfloat16", "float16"], "float32"),
    ],
)
def test_tensors_are_read_as_what_they_are_whatever_config_json_says(tied, dtypes, widest):
    folder, _ = tied
    _rewrite(
        folder,
        lambda there: {
            name: x.astype(dtypes[len(name) % len(dtypes)]) for name, x in there.items()
        },
    )
    exact = {
        name: x.astype(np.float32) for name, x in load_file(folder / "model.safetensors").items()
    }
    for told in ("float32", "bfloat16", "torch.float16"):
        _set(folder, dtype=told)
        said = []
        assert read_hf(folder, said.append).param_dtype == widest
        assert [widest in line and "config.json" in line for line in said] == (
            [] if told.removeprefix("torch.") == widest else [True]
        )
        config, params = load_hf(folder)
        assert config.param_dtype == widest
        np.testing.assert_array_equal(
            params["model"]["embed_tokens"]["weight"].astype(np.float32), exact[EMBEDDING]
        )
    assert load_hf(folder, param_dtype="float32")[0].param_dtype == "float32"


def test_float64_is_read_only_as_what_the_caller_names(tied):
    folder, params = tied
    _rewrite(folder, lambda there: {name: x.astype(np.float64) for name, x in there.items()})
    with pytest.raises(DataError, match="float64, which is not kept; choose another dtype"):
        load_hf(folder)
    jax.tree.map(np.testing.assert_array_equal, load_hf(folder, param_dtype="float32")[1], params)
