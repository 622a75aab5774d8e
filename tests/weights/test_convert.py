"""`cotjax convert`, through the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny
from safetensors.numpy import load_file, save_file

from cotjax.cli.main import main
from cotjax.model.config import RopeScaling
from cotjax.model.params import abstract_params, init_params, param_shardings
from cotjax.model.sharding import make_mesh
from cotjax.weights.convert import load_params, read_config
from cotjax.weights.hf_config import config_from_hf
from cotjax.weights.huggingface import load_hf, save_hf

MODELS = {
    "qwen3 float32": tiny.model_config(),
    "qwen2 bfloat16": tiny.model_config(
        qk_norm=False, qkv_bias=True, tied_embeddings=False, param_dtype="bfloat16"
    ),
    "llama bfloat16": tiny.model_config(
        qk_norm=False, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192), param_dtype="bfloat16"
    ),
}


def _hugging_face(folder, config):
    save_hf(folder, config, init_params(config, jax.random.key(3)), max_shard_bytes=20_000)
    tiny.word_codec(folder, tiny.TINY_WORDS)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}\n')
    (folder / "training_args.bin").write_bytes(b"a pickle")
    return folder


@pytest.fixture
def source(tmp_path):
    return _hugging_face(tmp_path / "source", MODELS["qwen3 float32"])


def _tensors(folder):
    return {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}


def _convert(source, out, *more):
    assert main(["convert", str(source), str(out), *more]) == 0


@pytest.mark.parametrize("model", MODELS)
def test_there_and_back_keeps_every_bit(model, tmp_path, capsys):
    config = MODELS[model]
    source = _hugging_face(tmp_path / "source", config)
    _convert(source, tmp_path / "orbax")
    parameters = sum(x.size for x in jax.tree.leaves(abstract_params(config)))
    said = capsys.readouterr().out
    assert (
        f"{source} (Hugging Face) -> {tmp_path / 'orbax'} (Orbax)" in said
        and f"{parameters:,} parameters" in said
    )
    _convert(tmp_path / "orbax", tmp_path / "back", "--max-shard-gb", "0.00002")
    assert "(Orbax) -> " in capsys.readouterr().out

    names = {path.name for path in source.iterdir()} - {"training_args.bin"}
    assert {path.name for path in (tmp_path / "back").iterdir()} == names, (
        "the same parts, and the tokenizer's files"
    )
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes(), name
    assert not (tmp_path / "orbax" / "training_args.bin").exists()


def test_what_is_restored_is_what_was_read_and_lies_where_it_should(source, tmp_path):
    _convert(source, tmp_path / "orbax")
    mesh = make_mesh(devices=jax.devices()[:1])
    assert read_config(tmp_path / "orbax") == read_config(source) == MODELS["qwen3 float32"]
    restored = load_params(tmp_path / "orbax", mesh)
    jax.tree.map(np.testing.assert_array_equal, restored, load_hf(source)[1])
    for x, where in zip(
        jax.tree.leaves(restored),
        jax.tree.leaves(param_shardings(MODELS["qwen3 float32"], mesh)),
        strict=True,
    ):
        assert x.sharding.is_equivalent_to(where, x.ndim)


def test_another_dtype_on_either_way(source, tmp_path):
    _convert(source, tmp_path / "narrow", "--dtype", "bfloat16")
    _convert(tmp_path / "narrow", tmp_path / "back")
    _convert(source, tmp_path / "wide")
    _convert(tmp_path / "wide", tmp_path / "back too", "--dtype", "bfloat16")
    expected = {name: x.astype("bfloat16") for name, x in _tensors(source).items()}
    for folder in ("back", "back too"):
        assert config_from_hf(tmp_path / folder).param_dtype == "bfloat16"
        jax.tree.map(np.testing.assert_array_equal, _tensors(tmp_path / folder), expected)


@pytest.mark.parametrize("told", ["bfloat16", "torch.float32", "float16"])
def test_tensors_keep_their_dtype_whatever_config_json_says(source, tmp_path, capsys, told):
    before = _tensors(source)
    described = json.loads((source / "config.json").read_text()) | {
        "dtype": None,
        "torch_dtype": told,
    }
    (source / "config.json").write_text(json.dumps(described))
    _convert(source, tmp_path / "orbax")
    said = capsys.readouterr().out
    assert ("the tensors are float32 and are read as such" in said) == (told != "torch.float32")
    _convert(tmp_path / "orbax", tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, _tensors(tmp_path / "back"), before)
    assert {tensor.dtype for tensor in _tensors(tmp_path / "back").values()} == {
        np.dtype("float32")
    }
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "float32"


@pytest.mark.parametrize("generates", [True, False])
def test_the_ids_of_config_json_go_there_and_back(source, tmp_path, generates):
    """With a generation_config.json, which has ids of its own, and without."""
    ids = {"bos_token_id": 4, "eos_token_id": [5, 6], "pad_token_id": 0}
    (source / "config.json").write_text(
        json.dumps(json.loads((source / "config.json").read_text()) | ids)
    )
    if not generates:
        (source / "generation_config.json").unlink()
    _convert(source, tmp_path / "orbax")
    _convert(tmp_path / "orbax", tmp_path / "back")
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {key: back[key] for key in ids} == ids
    assert (tmp_path / "back" / "generation_config.json").exists() == generates


def test_a_head_of_its_own_goes_there_and_back_and_is_said(source, tmp_path, capsys):
    (source / "model.safetensors.index.json").unlink()
    tensors = _tensors(source)
    for old in source.glob("*.safetensors"):
        old.unlink()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    _convert(source, tmp_path / "orbax")
    assert "lm_head.weight is not the embedding" in capsys.readouterr().out
    _convert(tmp_path / "orbax", tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, _tensors(tmp_path / "back"), tensors)


def _fails(capsys, arguments, code, *words):
    assert main(["convert", *map(str, arguments)]) == code
    error = capsys.readouterr().err
    assert error.startswith("cotjax: ") and error.count("\n") == 1, error
    for word in words:
        assert word in error, error


def test_out_must_be_free_and_source_a_model(source, tmp_path, capsys):
    before = (source / "config.json").read_bytes()
    _fails(capsys, [source, source], 2, str(source), "is not empty")
    assert (source / "config.json").read_bytes() == before
    _fails(capsys, [tmp_path / "none", tmp_path / "out"], 2, "none", "config.json", "model.json")
    _fails(capsys, [source, tmp_path / "out", "--max-shard-gb", "0"], 2, "--max-shard-gb is 0")
    (tmp_path / "run" / "arms").mkdir(parents=True)
    (tmp_path / "run" / "model.json").write_text("{}")
    _fails(capsys, [tmp_path / "run", tmp_path / "out"], 2, "no params/", "cotjax export")
    (tmp_path / "empty").mkdir()
    _convert(source, tmp_path / "empty")


def _without_arrays(folder):
    for file in (folder / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(
    "spoil, words",
    [
        (
            lambda folder: (folder / "model.json").write_text("{"),
            ["model.json", "not a readable JSON file"],
        ),
        (
            lambda folder: (folder / "model.json").write_text('{"colour": 3}'),
            ["model.json", "colour"],
        ),
        (
            lambda folder: (folder / "model.json").write_text(
                (folder / "model.json").read_text().replace('"width": 32', '"width": 40')
            ),
            ["params: a checkpoint of another model", "(61, 32)", "(61, 40)"],
        ),
        (lambda folder: (folder / "params" / "_METADATA").unlink(), ["params: cannot be restored"]),
    ],
)
def test_a_broken_orbax_folder_is_one_line_and_leaves_nothing(
    source, tmp_path, capsys, spoil, words
):
    _convert(source, tmp_path / "orbax")
    spoil(tmp_path / "orbax")
    capsys.readouterr()
    _fails(capsys, [tmp_path / "orbax", tmp_path / "out"], 3, *words)
    assert not (tmp_path / "out").exists()


def test_arrays_cut_short_are_one_line(source, tmp_path):
    _convert(source, tmp_path / "orbax")
    _without_arrays(tmp_path / "orbax")
    # In a process of its own: the reads that a failed restore leaves behind end when they like, and
    # what their threads print may stand on the same line.
    command = [sys.executable, "-m", "cotjax.cli", "convert", tmp_path / "orbax", tmp_path / "out"]
    run = subprocess.run(
        command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    assert run.returncode == 3 and "params: cannot be restored" in run.stderr
    assert run.stderr.count("cotjax: ") == 1
    assert not (tmp_path / "out").exists()


def test_a_killed_conversion_leaves_no_model_and_is_done_anew(tmp_path):
    config = tiny.model_config(width=256, feed_forward=4096, layers=16)
    params = init_params(config, jax.random.key(0))
    save_hf(tmp_path / "source", config, params)
    partial = tmp_path / ".out.partial"
    command = [sys.executable, "-m", "cotjax.cli", "convert", tmp_path / "source", tmp_path / "out"]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    running = subprocess.Popen(
        command,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
    )
    while not partial.exists() and running.poll() is None:
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    assert (
        running.wait() == -signal.SIGKILL and partial.exists() and not (tmp_path / "out").exists()
    )
    _convert(tmp_path / "source", tmp_path / "out")
    assert not partial.exists()
    jax.tree.map(
        np.testing.assert_array_equal,
        load_params(tmp_path / "out", make_mesh(devices=jax.devices()[:1])),
        params,
    )
