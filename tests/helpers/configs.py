"""Config files of tiny studies, and a base model for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax

from cotjax.data.word_tokenizer import build_word_tokenizer, save_tokenizer
from cotjax.formats import TEMPLATES
from cotjax.model.params import init_params
from cotjax.weights.huggingface import save_hf
from helpers import tiny

STUDY = '''
"""A study small enough for a test."""
from cotjax.config import default_config


def get_config():
    config = default_config()
    config.workers = 0
    config.games.train = 2
    config.games.in_domain = 4
    config.games.ood = 2
    config.task_types.collect = config.task_types.in_domain
    config.collect.slips = 0.3
    config.model.base = "random"
    config.model.width, config.model.layers, config.model.heads, config.model.kv_heads = 32, 2, 2, 1
    config.model.head_size, config.model.feed_forward = 16, 48
    config.train.steps, config.train.save_every = 4, 2
    config.train.batch, config.train.warmup = 2, 1
    config.train.information_examples = 0
    config.evaluate.max_steps, config.evaluate.slots, config.evaluate.max_new_tokens = 3, 4, 12
    return config
'''

ONE_UPDATE = """
from cotjax.config import default_config


def get_config():
    config = default_config()
    config.games.in_domain = config.games.ood = 0
    config.train.steps, config.train.save_every = 1, 1
    config.train.batch, config.train.warmup = 1, 0
    config.train.row_length = config.data.max_length = 256
    config.train.information_examples = 0
    config.arms = type(config)({"sft": {"label": "sft", "fraction": 0.0}})
    return config
"""
TIED = {"tied_embeddings": True, "vocab_size": 192}


def base_folder(
    folder: Path,
    template: str = "chatml",
    ids: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A Llama, whose ids transformers invents if config.json has none, with a tiny tokenizer."""
    config = tiny.model_config(qk_norm=False, **TIED | changes)
    save_hf(folder, config, init_params(config, jax.random.key(0)), token_ids=ids)
    save_tokenizer(
        build_word_tokenizer(tiny.TINY_WORDS, TEMPLATES[template]), folder, TEMPLATES[template]
    )
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
