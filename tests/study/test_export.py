"""What leaves a run: a folder that generates as its base did and stops where training stopped."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers import tiny
from helpers.configs import ONE_UPDATE, base_folder
from safetensors.numpy import load_file

from cotjax.cli.main import main
from cotjax.data.trajectories import write_trajectories
from cotjax.model import lora
from cotjax.model.config import LoRA
from cotjax.model.params import join_params, split_params
from cotjax.weights.convert import load_params, read_config
from cotjax.weights.huggingface import load_hf
from cotjax.weights.peft import save_peft


def train(folder, base, *more):
    """Train one update on two tiny episodes; return the run."""
    write_trajectories(folder / "train.jsonl", [tiny.trajectory("a"), tiny.trajectory("b")])
    (folder / "config.py").write_text(ONE_UPDATE)
    arguments = [
        "train",
        "--config",
        str(folder / "config.py"),
        "--out",
        str(folder / "run"),
        f"--config.model.base={base}",
    ]
    assert main([*arguments, f"--config.data.trajectories={folder / 'train.jsonl'}", *more]) == 0
    return folder / "run"


def export(run, out, *more):
    assert main(["export", "--run", str(run), "--arm", "sft", "--out", str(out), *more]) == 0
    return out


def read(folder, name):
    return json.loads((folder / name).read_text())


def token(folder, text):
    vocabulary = {
        each["content"]: each["id"] for each in read(folder, "tokenizer.json")["added_tokens"]
    }
    return vocabulary[text]


def test_an_export_stops_at_the_end_of_turn_and_keeps_what_else_the_base_says(tmp_path):
    generation = {"bos_token_id": 7, "eos_token_id": [8, 9], "do_sample": True, "temperature": 0.6}
    base = base_folder(
        tmp_path / "base",
        "llama3",
        ids={"pad_token_id": 5, "eos_token_id": 8},
        generation=generation,
    )
    out = export(train(tmp_path, base, "--config.data.template=llama3"), tmp_path / "out")
    end = token(base, "<|eot_id|>")
    assert read(out, "generation_config.json") == generation | {
        "eos_token_id": [8, 9, end],
        "pad_token_id": 5,
    }
    config = read(out, "config.json")
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (
        7,
        [8, 9, end],
        5,
    )
    assert config["dtype"] == config["torch_dtype"] == "float32"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (base / name).read_bytes()


def test_a_base_without_ids_leaves_with_those_of_template_and_tokenizer(tmp_path):
    base = base_folder(tmp_path / "base")
    run = train(tmp_path, base)
    end, pad = token(base, "<|im_end|>"), token(base, "[PAD]")
    out = export(run, tmp_path / "out")
    assert read(out, "generation_config.json") == {"eos_token_id": end, "pad_token_id": pad}
    assert [
        read(out, "config.json")[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    ] == [None, end, pad]
    (run / "base.json").unlink()  # as a run of an earlier version
    assert read(export(run, tmp_path / "again"), "generation_config.json") == {
        "eos_token_id": end,
        "pad_token_id": pad,
    }


def test_transformers_stops_where_training_stopped(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    base = base_folder(tmp_path / "base", tied_embeddings=False)
    out = export(train(tmp_path, base), tmp_path / "out", "--step", "0")
    end = token(base, "<|im_end|>")
    model = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        model.lm_head.weight[:] = 0  # all tokens are alike, but one
        model.lm_head.weight[end] = 1
        model.model.norm.weight[:] = 1
        model.model.layers = model.model.layers[:0]
        model.model.embed_tokens.weight[:] = 1
    made = model.generate(torch.tensor([[20, 21]]), max_new_tokens=5, do_sample=False)
    assert made[0, 2:].tolist() == [end]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """(base, adapter, merged): a base's folder, PEFT's files for it, and the two merged."""
    folder = tmp_path_factory.mktemp("adapted")
    base = base_folder(
        folder / "base", ids={"eos_token_id": 8}, generation={"eos_token_id": 8, "top_k": 3}
    )
    config, params = load_hf(base)
    config, params = lora.add(config, params, LoRA(2, 8.0, r".*\.(q|down)_proj"), jax.random.key(1))
    draws = np.random.default_rng(0)
    trained, frozen = split_params(config, params)
    trained = jax.tree.map(
        lambda x: x + 0.1 * draws.normal(size=x.shape).astype(np.float32), trained
    )
    params = join_params(config, trained, frozen)
    save_peft(folder / "adapter", config, params, str(base))
    return base, folder / "adapter", lora.merge(config, params)[1]


def test_an_adapters_folder_is_a_base_merged(adapted, tmp_path):
    base, adapter, merged = adapted
    run = train(tmp_path, adapter)
    out = export(run, tmp_path / "out", "--step", "0")
    jax.tree.map(np.testing.assert_array_equal, load_hf(out)[1], merged)
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    end = token(base, "<|im_end|>")
    assert read(out, "generation_config.json") == {
        "eos_token_id": [8, end],
        "top_k": 3,
        "pad_token_id": token(base, "[PAD]"),
    }


def test_an_adapter_is_converted_into_a_whole_model(adapted, tmp_path, capsys):
    base, adapter, merged = adapted
    assert main(["convert", str(adapter), str(tmp_path / "out")]) == 0
    assert "(PEFT) -> " in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, load_hf(tmp_path / "out")[1], merged)
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    assert read(tmp_path / "out", "config.json")["eos_token_id"] == 8


@pytest.mark.parametrize("named", ["meta-llama/Llama-3.1-8B", None, ""])
def test_an_adapter_whose_base_is_not_here_says_what_to_do(adapted, tmp_path, capsys, named):
    _, adapter, _ = adapted
    described = read(adapter, "adapter_config.json") | {"base_model_name_or_path": named}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(described))
    assert main(["convert", str(tmp_path / "adapter"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert repr(named) in error and "base_model_name_or_path" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "spoil, words",
    [
        (
            lambda folder: (folder / "adapter_model.safetensors").unlink(),
            "pickled adapters are not read",
        ),
        (
            lambda folder: base_folder(folder / "other", feed_forward=40),
            "has shape (2, 48); this model and adapter_config.json ask for (2, 40)",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_claimed(
    adapted, tmp_path, capsys, spoil, words
):
    base, adapter, _ = adapted
    shutil.copytree(adapter, tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    named = tmp_path / "adapter" / "other" if (tmp_path / "adapter" / "other").exists() else base
    described = read(adapter, "adapter_config.json") | {"base_model_name_or_path": str(named)}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(described))
    with pytest.raises(AssertionError):
        train(tmp_path, tmp_path / "adapter")
    assert words in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_an_adapter_names_its_base_wherever_the_command_ran(adapted, tmp_path, monkeypatch):
    base, _, _ = adapted
    monkeypatch.chdir(base.parent)
    run = train(tmp_path, base.name, "--config.model.lora_rank=2")
    monkeypatch.chdir(tmp_path)
    out = export(run, tmp_path / "out", "--adapter")
    assert read(out, "adapter_config.json")["base_model_name_or_path"] == str(base)
    assert load_file(out / "adapter_model.safetensors")


def test_what_adapters_change_is_in_the_sizes_and_the_parameters_alike(adapted):
    _, adapter, merged = adapted
    from cotjax.model.sharding import make_mesh

    mesh = make_mesh(devices=jax.devices()[:1])
    assert read_config(adapter).lora is None
    jax.tree.map(np.testing.assert_array_equal, load_params(adapter, mesh), merged)
