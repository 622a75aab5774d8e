import json
import os
from itertools import pairwise

import jax
import numpy as np
import pytest
from helpers import tiny
from safetensors.numpy import load_file, save_file

from cotjax.errors import DataError, UsageError
from cotjax.model.params import declared
from cotjax.model.sharding import make_mesh
from cotjax.weights.huggingface import load_hf, save_hf

CONFIG = tiny.model_config(tied_embeddings=False)
K_PROJ = "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture
def saved(tmp_path):
    save_hf(tmp_path, CONFIG, tiny.params(CONFIG))
    return tmp_path


def _rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_round_trip_keeps_every_bit(saved):
    config, params = load_hf(saved, make_mesh(devices=jax.devices()[:1]))
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, params, tiny.params(CONFIG))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_round_trip(tmp_path, dtype):
    config = tiny.model_config(param_dtype=dtype, tied_embeddings=False)
    params = jax.tree.map(lambda x: x.astype(dtype), tiny.params(CONFIG))
    save_hf(tmp_path, config, params)
    again, loaded = load_hf(tmp_path)
    assert again == config
    jax.tree.map(
        lambda a, b: (
            a.dtype == b.dtype or pytest.fail(str(a.dtype)),
            np.testing.assert_array_equal(a, b),
        ),
        loaded,
        params,
    )


def test_parts_hold_what_the_index_says(tmp_path):
    save_hf(tmp_path, CONFIG, tiny.params(CONFIG), max_shard_bytes=9_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert (
        files
        == [
            f"model-{number:05d}-of-{len(files):05d}.safetensors"
            for number in range(1, len(files) + 1)
        ]
        and len(files) > 3
    )
    tensors = {
        name: (file, tensor)
        for file in files
        for name, tensor in load_file(tmp_path / file).items()
    }
    assert index["weight_map"] == {name: file for name, (file, _) in tensors.items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for _, tensor in tensors.values())
    sizes = [[tensor.nbytes for file, tensor in tensors.values() if file == name] for name in files]
    assert all(sum(part) <= 9_000 for part in sizes)
    assert all(sum(part) + following[0] > 9_000 for part, following in pairwise(sizes)), (
        "a part is as full as it can be"
    )
    config, params = load_hf(tmp_path)
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, params, tiny.params(CONFIG))


def test_a_tensor_beyond_the_limit_has_a_part_of_its_own(tmp_path):
    save_hf(tmp_path, CONFIG, tiny.params(CONFIG), max_shard_bytes=1)
    assert len(list(tmp_path.glob("model-*.safetensors"))) == len(declared(CONFIG))
    jax.tree.map(np.testing.assert_array_equal, load_hf(tmp_path)[1], tiny.params(CONFIG))
    with pytest.raises(UsageError, match="max_shard_bytes is 0"):
        save_hf(tmp_path, CONFIG, tiny.params(CONFIG), max_shard_bytes=0)


def test_a_save_takes_the_place_of_the_one_before(tmp_path):
    """From many parts to few to one and back, and over what an interrupted save left."""
    for part, files in ((9_000, None), (30_000, None), (10**9, 1), (9_000, None)):
        params = jax.tree.map(lambda x, part=part: x + part, tiny.params(CONFIG))
        (tmp_path / "model-00009-of-00099.safetensors.partial").write_bytes(b"cut")
        save_hf(tmp_path, CONFIG, params, max_shard_bytes=part)
        jax.tree.map(np.testing.assert_array_equal, load_hf(tmp_path)[1], params)
        there = [path.name for path in tmp_path.iterdir()]
        indexed = tmp_path / "model.safetensors.index.json"
        named = (
            set(json.loads(indexed.read_text())["weight_map"].values())
            if indexed.exists()
            else {"model.safetensors"}
        )
        assert {name for name in there if name.endswith(".safetensors")} == named and (
            files is None or len(named) == files
        )
        assert not [name for name in there if name.endswith(".partial")]


class _Lost(jax.ShapeDtypeStruct):
    """A parameter whose values cannot be had."""

    def __array__(self, *_, **__):
        raise ConnectionError("the device is gone")


@pytest.mark.parametrize("part", [9_000, 10**9])
def test_an_interrupted_save_leaves_the_model_that_was_there(saved, part):
    other = jax.tree.map(lambda x: x + 1, tiny.params(CONFIG))
    other["lm_head"]["weight"] = _Lost(
        other["lm_head"]["weight"].shape, np.float32
    )  # the last to be written
    with pytest.raises(ConnectionError):
        save_hf(saved, CONFIG, other, max_shard_bytes=part)
    jax.tree.map(np.testing.assert_array_equal, load_hf(saved)[1], tiny.params(CONFIG))


def test_files_are_as_open_as_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        save_hf(tmp_path, CONFIG, tiny.params(CONFIG), max_shard_bytes=30_000)
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o640"}


def _tensors(change):
    return lambda folder: _rewrite(folder, change)


def _cut(kept):
    return lambda file: file.write_bytes(file.read_bytes()[:kept])


def _at(name, change):
    return lambda folder: change(folder / name)


def _indexed(then, name="model-00002-of-*.safetensors"):
    def spoil(folder):
        save_hf(folder, CONFIG, tiny.params(CONFIG), max_shard_bytes=9_000)
        (file,) = folder.glob(name)
        then(file)

    return spoil


def _without_weights(*others):
    def spoil(folder):
        (folder / "model.safetensors").unlink()
        for name in others:
            (folder / name).write_bytes(b"")

    return spoil


@pytest.mark.parametrize(
    "spoil, words",
    [
        (
            _tensors(lambda t: t.pop(K_PROJ)),
            f"missing tensors: {K_PROJ}; is config.json of another model?",
        ),
        (
            _tensors(lambda t: [t.pop(name) for name in list(t)[1:]]),
            r"missing tensors: model[^ ]+(, model[^ ]+){4} and 19 more;",
        ),
        (
            _tensors(
                lambda t: t.update({"model.layers.7.mlp.up_proj.weight": np.zeros(3, np.float32)})
            ),
            r"unknown tensors: model\.layers\.7\.mlp\.up_proj\.weight",
        ),
        (
            _tensors(
                lambda t: t.update(
                    {K_PROJ: np.zeros((8, 32), np.float32), "x": t.pop("lm_head.weight")}
                )
            ),
            rf"missing tensors: lm_head\.weight; unknown tensors: x; wrong shapes: "
            rf"{K_PROJ} has shape \(8, 32\); "
            r"config\.json asks for \(16, 32\)",
        ),
        (
            _tensors(lambda t: t.update({name: x[..., :-1].copy() for name, x in t.items()})),
            r"wrong shapes: .* has shape .* and 20 more;",
        ),
        (
            _tensors(lambda t: t.update({K_PROJ: t[K_PROJ].astype(np.int8)})),
            rf"not floats: {K_PROJ} is I8; quantized weights are not read",
        ),
        *(
            (
                _at("model.safetensors", _cut(kept)),
                r"model\.safetensors: not a whole safetensors file",
            )
            for kept in (0, 100, -50)
        ),
        (_indexed(_cut(-1)), r"model-00002-of-\d+\.safetensors: not a whole safetensors file"),
        (_indexed(_cut(-20), name="*.index.json"), r"index\.json: not a readable index"),
        (
            _indexed(lambda index: index.write_text("{}"), name="*.index.json"),
            r"index\.json: not a readable index",
        ),
        (
            _indexed(lambda part: part.unlink()),
            r"missing files: model-00002-of-\d+\.safetensors; "
            r"model\.safetensors\.index\.json names them",
        ),
        (_without_weights(), r"neither model\.safetensors nor model\.safetensors\.index\.json"),
        (
            _without_weights("pytorch_model.bin"),
            r"holds pytorch_model\.bin and no safetensors; pickled.*save_pretrained",
        ),
    ],
)
def test_what_is_wrong_is_one_line_with_the_names(saved, spoil, words):
    spoil(saved)
    with pytest.raises(DataError, match=words) as caught:
        load_hf(saved)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(saved))


def test_a_repeated_tied_matrix_is_passed_over(tmp_path):
    config, params = tiny.model_config(), {"model": tiny.params(CONFIG)["model"]}
    save_hf(tmp_path, config, params)
    _rewrite(
        tmp_path,
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
        ),
    )
    jax.tree.map(np.testing.assert_array_equal, load_hf(tmp_path)[1], params)


def test_params_of_another_shape_are_not_written(tmp_path):
    with pytest.raises(DataError, match="has shape"):
        save_hf(
            tmp_path, tiny.model_config(tied_embeddings=False, feed_forward=40), tiny.params(CONFIG)
        )
    assert not (tmp_path / "model.safetensors").exists()
