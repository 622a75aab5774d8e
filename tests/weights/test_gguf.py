"""GGUF files that the test writes, against their values and transformers' reading of them."""

import json
import weakref

import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from helpers import gguf_files
from tokenizers import Tokenizer

from cotjax.cli.main import main
from cotjax.errors import DataError, UsageError
from cotjax.model import decoder
from cotjax.model.params import declared, init_params, leaf
from cotjax.weights import gguf
from cotjax.weights.convert import folder_kind
from cotjax.weights.gguf import convert_gguf, unpermuted
from cotjax.weights.gguf_file import GGUFTensor
from cotjax.weights.huggingface import load_hf
from cotjax.weights.layout import as_stored

MODELS = {
    "llama tied": ("llama", gguf_files.config("llama"), "smollm"),
    "llama 3.2": ("llama", gguf_files.llama3(), "llama-bpe"),
    "llama untied": ("llama", gguf_files.config("llama", tied_embeddings=False), "gpt-2"),
    "qwen2 tied": ("qwen2", gguf_files.config("qwen2"), "qwen2"),
    "qwen2 untied": ("qwen2", gguf_files.config("qwen2", tied_embeddings=False), "qwen2"),
    "qwen3 tied": ("qwen3", gguf_files.config("qwen3"), "qwen2"),
    "qwen3 untied": ("qwen3", gguf_files.config("qwen3", tied_embeddings=False), "qwen2"),
}


def _params(config):
    """Parameters far enough from their initial values to tell mistakes apart."""
    params = init_params(config, jax.random.key(1))
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + 0.2 * draw.standard_normal(x.shape).astype(np.float32), params
    )


def _written(tmp_path, name, quantisation="F32", **how):
    family, config, pre = MODELS[name]
    params = _params(config)
    file = gguf_files.write(
        tmp_path / "model.gguf", family, config, params, quantisation, **({"pre": pre} | how)
    )
    return file, config, params


@pytest.mark.parametrize("name", MODELS)
def test_float32_comes_back_bit_for_bit(tmp_path, name, capsys):
    file, config, params = _written(tmp_path, name)
    assert main(["convert", str(file), str(tmp_path / "out"), "--max-shard-gb", "0.0001"]) == 0
    assert "(GGUF) -> " in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    read, loaded = load_hf(tmp_path / "out")
    assert read == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("quantisation", ["F16", "BF16", "Q8_0", "Q5_1", "Q4_0", "Q4_1"])
def test_quantised_matrices_have_the_values_that_gguf_gives_them(tmp_path, quantisation):
    file, config, params = _written(tmp_path, "llama tied", quantisation)
    convert_gguf(file, tmp_path / "out")
    read, loaded = load_hf(tmp_path / "out")
    assert read == config and read.param_dtype == "float32"
    kind = GGMLQuantizationType[quantisation]
    for path, weight in declared(config).items():
        name = ".".join(path)
        ours, theirs = (
            as_stored(name, weight, np.asarray(leaf(tree, path))) for tree in (loaded, params)
        )
        if theirs.ndim > 1:
            assert not np.array_equal(ours, theirs)
            theirs = dequantize(quantize(theirs, kind), kind)
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
@pytest.mark.parametrize(
    "name, quantisation",
    [
        *(("llama tied", kind) for kind in ("F32", "F16", "Q8_0", "Q4_0", "Q4_1")),
        ("llama untied", "Q4_1"),
        ("qwen2 tied", "Q8_0"),
        ("qwen2 untied", "Q4_0"),
        ("qwen3 tied", "Q4_1"),
        ("qwen3 untied", "F16"),
    ],
)
def test_logits_are_those_of_transformers_reading_the_same_file(tmp_path, name, quantisation):
    torch = pytest.importorskip("torch", reason="transformers reads GGUF files with torch")
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")
    from transformers import AutoModelForCausalLM

    file, *_ = _written(tmp_path, name, quantisation)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32
    ).eval()
    convert_gguf(file, tmp_path / "out")
    config, params = load_hf(tmp_path / "out")
    ids = np.random.default_rng(0).integers(0, gguf_files.VOCABULARY, (2, 24)).astype(np.int32)
    with torch.no_grad():
        expected = model(torch.tensor(ids, dtype=torch.long)).logits.numpy()
    positions = np.broadcast_to(np.arange(24, dtype=np.int32), ids.shape)
    ones, zeros = np.ones_like(ids), np.zeros_like(ids)
    hidden = decoder.hidden_states(config, params, ids, positions, ones, zeros)
    np.testing.assert_allclose(decoder.logits(config, params, hidden), expected, atol=1e-4)


def test_rows_go_back_into_their_order():
    rows = np.arange(12)[:, None] * np.ones((1, 3))
    stored = gguf_files.permuted(rows, 6)
    assert stored[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    np.testing.assert_array_equal(unpermuted(stored, 6), rows)


def test_bfloat16_on_request(tmp_path):
    file, _, params = _written(tmp_path, "qwen3 tied")
    assert main(["convert", str(file), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    read, loaded = load_hf(tmp_path / "out")
    assert read.param_dtype == "bfloat16"
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype("bfloat16")), loaded, params
    )


def test_one_part_is_held_at_a_time(tmp_path, monkeypatch):
    file, *_ = _written(tmp_path, "llama untied", "Q8_0")
    alive, most, read = [], 0, GGUFTensor.values

    def values(self):
        nonlocal most
        out = read(self).copy()
        alive.append((weakref.ref(out), out.nbytes))
        most = max(most, sum(size for array, size in alive if array() is not None))
        return out

    monkeypatch.setattr(GGUFTensor, "values", values)
    convert_gguf(file, tmp_path / "out", max_shard_bytes=60_000)
    assert sum(size for _, size in alive) > 150_000 and most <= 2 * 60_000


# ---- tokenizer


@pytest.mark.parametrize("kind", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
def test_ids_are_those_of_the_tokenizer_that_the_file_was_made_from(tmp_path, kind):
    name = "qwen3 tied" if kind == "qwen2" else "llama tied"
    file, *_ = _written(tmp_path, name, pre=kind)
    convert_gguf(file, tmp_path / "out")
    ours = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    original = gguf_files.tokenizer(kind)
    assert ours.get_vocab() == original.get_vocab()
    for text in gguf_files.TEXTS:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == original.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(ids, skip_special_tokens=False) == text
    begins = ours.encode("a").ids[0] == 1
    assert begins == (kind == "llama-bpe")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", ["gpt-2", "llama-bpe", "qwen2"])
def test_transformers_reads_the_same_ids_from_the_folder_and_from_the_file(tmp_path, kind):
    pytest.importorskip("torch", reason="transformers reads GGUF files with torch")
    from transformers import AutoTokenizer

    name = "qwen2 tied" if kind == "qwen2" else "llama tied"
    file, *_ = _written(tmp_path, name, pre=kind)
    convert_gguf(file, tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    ours = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in gguf_files.TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
    chat = [{"role": "user", "content": "open cabinet 1"}]
    how = {"tokenize": False, "add_generation_prompt": True}
    said = ours.apply_chat_template(chat, **how)
    assert said == "<|im_start|>user\nopen cabinet 1<|im_end|>\n<|im_start|>assistant\n"
    assert said == theirs.apply_chat_template(chat, **how)
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(ours, token) == getattr(theirs, token)


def test_ids_that_end_a_turn_go_into_the_generation_config(tmp_path):
    file, *_ = _written(tmp_path, "llama tied", change=lambda writer: writer.add_eot_token_id(2))
    convert_gguf(file, tmp_path / "out")
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 0}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, 0]


SCORED = {"▁": -9.0, "a": -8.0, "b": -7.0, "ab": -1.0, "▁ab": -2.0, "ba": -3.0, "▁a": -4.0}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_sentencepiece_vocabulary_merges_by_its_scores(tmp_path):
    """As Llama 2's: no merges in the file, bytes for what has no token."""
    tokens = {"<unk>": 2, "<s>": 3, "</s>": 3} | {f"<0x{byte:02X}>": 6 for byte in range(256)}
    tokens |= dict.fromkeys(SCORED, 1)

    def change(writer):
        for data in writer.kv_data:
            for key in [key for key in data if key.startswith("tokenizer.ggml")]:
                del data[key]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(list(tokens))
        writer.add_token_types(list(tokens.values()))
        writer.add_token_scores([SCORED.get(token, 0.0) for token in tokens])
        for add, id in (("unk", 0), ("bos", 1), ("eos", 2)):
            getattr(writer, f"add_{add}_token_id")(id)

    file, *_ = _written(tmp_path, "llama tied", change=change)
    convert_gguf(file, tmp_path / "out")
    ours = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    assert ours.encode("ab ba").tokens == ["<s>", "▁ab", "▁", "ba"]
    assert ours.encode("é", add_special_tokens=False).tokens == ["▁", "<0xC3>", "<0xA9>"]
    assert ours.decode(ours.encode("ab é ba").ids) == "ab é ba"
    pytest.importorskip("torch", reason="transformers reads GGUF files with torch")
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    for text in ("ab ba", "abab aba", "é ab</s>", "b  a"):
        assert ours.encode(text).ids == theirs.encode(text), text


# ---- what is refused


def _adds(key, value):
    def change(writer):
        add = {int: writer.add_uint32, str: writer.add_string, float: writer.add_float32}
        add[type(value)](key, value)

    return {"change": change}


def _sets(key, value):
    def change(writer):
        writer.kv_data[0][key].value = value

    return {"change": change}


def _without(*names):
    return {"keep": lambda name: name not in names}


@pytest.mark.parametrize(
    "how, words",
    [
        (_sets("general.architecture", "mamba"), "the architecture is 'mamba'; .* llama, qwen2"),
        (_adds("llama.expert_count", 8), "a mixture of 8 experts"),
        (
            _adds("llama.rope.scaling.type", "yarn"),
            "the rope scaling is 'yarn' with factor 1; only Llama 3's",
        ),
        (_adds("llama.rope.scale_linear", 4.0), "'none' with factor 4"),
        (_adds("llama.attention.sliding_window", 64), "sliding_window is 64"),
        (_adds("llama.attention.scale", 0.5), r"does not know attention.scale \(0.5\)"),
        (_sets("llama.attention.head_count", 5), "heads .5. must be a multiple of kv_heads"),
        (_sets("llama.rope.dimension_count", 4), "wrong shapes: .*attn_k.weight has shape"),
        (_adds("llama.attention.key_length", 16), "dimension_count is 8, and heads have 16"),
        (
            _without("blk.1.attn_q.weight", "output_norm.weight"),
            "missing tensors: blk.1.attn_q.weight, output_norm.weight; it is not a whole llama",
        ),
        (_without("token_embd.weight"), "missing tensors: token_embd.weight"),
        (_sets("tokenizer.ggml.model", "bert"), "tokenizer is of the kind 'bert'"),
        (_sets("tokenizer.ggml.pre", "martian"), "called 'martian'"),
        (_sets("tokenizer.ggml.eos_token_id", 4000), "eos_token_id is 4000, which is no token"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_computed_is_refused_in_one_line(tmp_path, how, words):
    file, *_ = _written(tmp_path, "llama tied", **how)
    with pytest.raises(DataError, match=words) as caught:
        convert_gguf(file, tmp_path / "out")
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_factors_of_another_scaling_are_refused(tmp_path):
    factors = np.array([1, 2, 3, 4], np.float32)
    file, *_ = _written(
        tmp_path,
        "llama tied",
        change=lambda writer: writer.add_tensor("rope_freqs.weight", factors),
    )
    with pytest.raises(DataError, match="of an unknown rope scaling"):
        convert_gguf(file, tmp_path / "out")


def test_extra_tensors_are_named(tmp_path):
    extra = np.zeros(8, np.float32)
    file, *_ = _written(
        tmp_path, "llama tied", change=lambda writer: writer.add_tensor("blk.0.attn_q.bias", extra)
    )
    with pytest.raises(DataError, match=r"unknown tensors: blk\.0\.attn_q\.bias"):
        convert_gguf(file, tmp_path / "out")


def test_a_split_file_is_read_from_any_of_its_parts(tmp_path):
    _, _, params = _written(tmp_path, "llama tied", parts=8)
    parts = sorted(tmp_path.glob("model-*-of-*.gguf"))
    assert len(parts) > 2
    convert_gguf(parts[1], tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, load_hf(tmp_path / "out")[1], params)
    parts[-1].unlink()
    with pytest.raises(DataError, match=f"are missing: {parts[-1].name}"):
        convert_gguf(parts[0], tmp_path / "again")
    parts[0].unlink()
    with pytest.raises(DataError, match=f"part {parts[0].name} is missing"):
        convert_gguf(parts[1], tmp_path / "again")


@pytest.mark.parametrize("kept", [0, 3, 4, 100, 5_000, -100])
def test_a_file_that_is_cut_is_refused(tmp_path, kept):
    file, *_ = _written(tmp_path, "llama tied", "Q8_0")
    file.write_bytes(file.read_bytes()[:kept])
    assert main(["convert", str(file), str(tmp_path / "out")]) == DataError.exit_code
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_is_no_folder_of_a_model(tmp_path):
    file, *_ = _written(tmp_path, "llama tied")
    with pytest.raises(UsageError, match="make a folder of it first: cotjax convert"):
        folder_kind(file)


def test_every_parameter_has_a_name_there():
    for family, config, _ in MODELS.values():
        names = {gguf.gguf_name(".".join(path)) for path in declared(config)}
        assert len(names) == len(declared(config)), family
