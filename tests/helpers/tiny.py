"""A tiny model, tokenizers, and episodes that many tests share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cotjax.data.codec import Codec
from cotjax.data.trajectories import SCRIPTED_BEFORE, Step, Trajectory
from cotjax.data.word_tokenizer import build_word_tokenizer, save_tokenizer
from cotjax.formats import CHATML
from cotjax.model.config import ModelConfig
from cotjax.model.params import init_params
from cotjax.model.sharding import make_mesh

_TINY = ModelConfig(
    vocab_size=61,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_size=8,
    feed_forward=48,
    rope_theta=10_000.0,
    max_length=512,
)


def model_config(**changes: Any) -> ModelConfig:
    """Return a decoder that compiles in a second or two: 2 layers, width 32, vocabulary 61."""
    return replace(_TINY, **changes)


@cache
def params(config: ModelConfig = _TINY) -> Any:
    """Return initial parameters, made once per session. Do not donate them."""
    with jax.ensure_compile_time_eval():  # so that a test may ask for them inside jax.jit
        return init_params(config, jax.random.key(0))


@cache
def mesh() -> jax.sharding.Mesh:
    """Return a mesh of one device."""
    return make_mesh(devices=jax.devices()[:1])


def word_codec(folder: Path, texts: Iterable[str]) -> Codec:
    """Save a word-level tokenizer that knows `texts` in `folder`; return the codec over it."""
    save_tokenizer(build_word_tokenizer(texts), folder)
    return Codec.load(folder)


def subword_codec(*added: str) -> Codec:
    """Return a codec over a byte-level tokenizer whose merges cross the edges of words and tags.

    Such merges are `><` and `.</`. The tokenizer spells the response's tags and ChatML's marks with
    ordinary tokens, except those in `added`.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    texts = [
        f"<think> i need it. </think><action> open cabinet {n} </action><|im_end|>\n"
        "<|im_start|>user"
        for n in range(9)
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator([*texts, *["><", "a.</", "1</", "n>o"] * 20], trainer)
    bpe.add_tokens(list(added))
    return Codec(bpe, CHATML)


def trajectory(name: str = "t0", steps: int = 3, **changes: Any) -> Trajectory:
    """Return an episode of a tiny world in which every step opens the next of nine cabinets."""
    room = "You see a cabinet 1, a cabinet 2, and a fridge 1."
    played = tuple(
        Step(
            observation=room if number == 0 else f"You open the cabinet {number}.",
            thought=f"i need a plate. next i open cabinet {number + 1}.",
            action=f"open cabinet {number + 1}",
            provenance=SCRIPTED_BEFORE,
            admissible_commands=(f"open cabinet {number + 1}", "look"),
        )
        for number in range(steps)
    )
    whole = Trajectory(
        id=name,
        environment="tiny",
        split="train",
        task="put a plate in fridge",
        task_type="pick_and_place_simple",
        game=f"game/{name}",
        steps=played,
        success=True,
        reward=1.0,
        seed=0,
        agent="expert",
    )
    return replace(whole, **changes)


TINY_WORDS = (
    "Your task is to: put a plate in fridge.",
    "You see a cabinet 1, a cabinet 2, and a fridge 1. You open the cabinet 1. Nothing happens.",
    "i need a plate. next i open cabinet 1 2 3 4 5 6 7 8 9. look",
)


def assert_same_draws(one, other):
    """Check that two programs drew the same values.

    Two programs that LLVM does not optimize (conftest.py) may round the scaling of a draw another
    way, in its last bit.
    """
    np.testing.assert_allclose(one, other, rtol=1e-6)
