"""The shipped base model loads, is small, is read by transformers, and answers in both forms."""

import json

import jax
import numpy as np
import pytest

from cotjax.assets import BASE_FOLDER
from cotjax.data.codec import Codec
from cotjax.envs.alfworld.words import alfworld_words
from cotjax.formats import parse_response
from cotjax.model.sharding import make_mesh
from cotjax.sample.sampler import Sampler
from cotjax.weights.huggingface import load_hf

OBSERVATION = (
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 2, "
    "a cabinet 1, a countertop 1, a fridge 1, a microwave 1, and a sinkbasin 1."
)


@pytest.fixture(scope="module")
def base():
    return load_hf(BASE_FOLDER), Codec.load(BASE_FOLDER)


def test_it_is_a_small_whole_hugging_face_folder(base):
    (config, params), codec = base
    assert {path.name for path in BASE_FOLDER.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert sum(path.stat().st_size for path in BASE_FOLDER.iterdir()) <= 8e6
    assert 0.5e6 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 2e6
    assert codec.vocab_size <= config.vocab_size


def test_it_says_where_generation_ends(base):
    _, codec = base
    for name in ("generation_config.json", "config.json"):
        read = json.loads((BASE_FOLDER / name).read_text())
        assert (read["eos_token_id"],) == codec.end_ids and read["pad_token_id"] == codec.pad_id


def test_its_tokenizer_knows_every_word_of_the_worlds(base):
    _, codec = base
    for text in alfworld_words():
        codec.encode(text)


def test_it_answers_in_both_forms_from_one_prompt(base):
    (config, params), codec = base
    sampler = Sampler(
        config,
        make_mesh(1, 1, 1, devices=jax.devices()[:1]),
        slots=1,
        max_length=256,
        stop=codec.stop_texts,
        pad_id=codec.pad_id,
        pieces=codec.pieces,
    )
    sampler.load(params)
    sampler.extend({0: codec.first_prompt("put a plate in fridge", OBSERVATION)})
    prompt_action = sampler.sample({0: codec.action_prefix}, max_new=16)[0]
    response = sampler.sample({0: []}, max_new=64)[0]
    direct = parse_response(codec.decode(prompt_action.ids), prefilled=True)
    reasoned = parse_response(codec.decode(response.ids), prefilled=False)
    assert direct.problem is None and reasoned.problem is None
    assert reasoned.thought and "plate" in reasoned.thought


def test_transformers_computes_the_same_logits(base):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    from cotjax.model import decoder

    (config, params), codec = base
    ids = np.asarray([codec.first_prompt("put a plate in fridge", OBSERVATION)], np.int32)
    ones, positions = np.ones_like(ids), np.arange(ids.shape[1], dtype=np.int32)[None]
    ours = decoder.logits(
        config, params, decoder.hidden_states(config, params, ids, positions, ones, ones * 0)
    )
    model = AutoModelForCausalLM.from_pretrained(BASE_FOLDER)
    with torch.no_grad():
        theirs = model(torch.tensor(ids, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=2e-4)
