"""Tiny GGUF files as llama.cpp's converter lays them out, written with the package gguf."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.constants import MODEL_ARCH
from gguf.quants import quantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from cotjax.model.config import ModelConfig, RopeScaling
from cotjax.model.params import declared, leaf
from cotjax.weights.layout import as_stored
from helpers import tiny

ARCHITECTURES = {"llama": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2, "qwen3": MODEL_ARCH.QWEN3}
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USER_DEFINED = ("<tool_call>", "</tool_call>")
VOCABULARY = 400  # tokens; the embedding has 16 rows more, as published models pad theirs
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = (
    "Your task is to: put 2 plates in fridge 1.",
    "You open the cabinet 12.  You see 3 plates,\n and 14 cups.\n\n  2 mugs",
    "<think> i need it. </think><action> open cabinet 7 </action>",
    "<|im_start|>user\nnaïve café, 你好 🙂 x1y2z333<|im_end|>\n",
    "<tool_call>{'a': 1}</tool_call> it's  we'LL\t\tdone",
    " lead",
    "trail  ",
    "",
)
LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def config(family: str, **changes: Any) -> ModelConfig:
    """Return a tiny model of a family whose rows are whole blocks of 32, as quantising needs."""
    flags = {
        "llama": {"qk_norm": False, "norm_eps": 1e-5, "rope_theta": 1e5},
        "qwen2": {"qk_norm": False, "qkv_bias": True, "rope_theta": 1e6},
        # transformers assumes this size for any qwen3 file.
        "qwen3": {"head_size": 128, "heads": 2, "kv_heads": 1, "rope_theta": 1e6},
    }[family]
    sizes = {"vocab_size": VOCABULARY + 16, "feed_forward": 64}
    return tiny.model_config(**(sizes | flags | changes))


def llama3(**changes: Any) -> ModelConfig:
    """Return a tiny model with Llama 3's scaled positions."""
    scaling = RopeScaling(32.0, 1.0, 4.0, 8192)
    return config("llama", head_size=32, rope_theta=5e5, rope_scaling=scaling, **changes)


def tokenizer(kind: str) -> Tokenizer:
    """Return a byte-level tokenizer that splits as the published ones of this kind do."""
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}"}
    made = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    if kind == "smollm":
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), gpt2]
        )
    elif kind == "gpt-2":
        made.pre_tokenizer = gpt2
    else:
        pattern = LETTERS + digits[kind] + OTHERS
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_alone])
    if kind == "qwen2":
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - len(USER_DEFINED),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, normalized=False) for token in CONTROLS],
        show_progress=False,
    )
    made.train_from_iterator([text for text in TEXTS for _ in range(3)], trainer)
    made.add_tokens([AddedToken(token, normalized=False) for token in USER_DEFINED])
    return made


def write(
    file: Path,
    family: str,
    model: ModelConfig,
    params: Any,
    quantisation: str = "F32",
    *,
    pre: str = "gpt-2",
    change: Any = None,
    parts: int = 0,
    keep: Any = None,
) -> Path:
    """Write a model's GGUF file; matrices are quantised, vectors stay float32.

    `change` receives the writer before it writes; `keep` says which tensors, by llama.cpp's names,
    are written. `parts`: split it into files of so many tensors.
    """
    writer = GGUFWriter(file, family, split_max_tensors=parts)
    writer.add_context_length(model.max_length)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.feed_forward)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_rope_freq_base(model.rope_theta)
    writer.add_layer_norm_rms_eps(model.norm_eps)
    writer.add_vocab_size(model.vocab_size)
    if family == "llama":
        writer.add_rope_dimension_count(model.head_size)
    else:
        writer.add_key_length(model.head_size)
        writer.add_value_length(model.head_size)
    _add_tokenizer(writer, model, pre)
    if change is not None:
        change(writer)
    names = get_tensor_name_map(ARCHITECTURES[family], model.layers)
    for path, weight in declared(model).items():
        name = names.get_name(".".join(path), try_suffixes=(".weight", ".bias"))
        if keep is not None and not keep(name):
            continue
        values = as_stored(".".join(path), weight, np.asarray(leaf(params, path), np.float32))
        if family == "llama" and path[-2] in ("q_proj", "k_proj"):
            values = permuted(values, model.head_size)
        kind = GGMLQuantizationType[quantisation if values.ndim > 1 else "F32"]
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    if model.rope_scaling is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors(model))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def permuted(rows: np.ndarray, head_size: int) -> np.ndarray:
    """Return rows as llama.cpp's converter orders them: halves of a head become neighbours."""
    halves = rows.reshape(len(rows) // head_size, 2, head_size // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def rope_factors(model: ModelConfig) -> np.ndarray:
    """Return what llama.cpp's converter computes from Llama 3's scaling, one factor a pair."""
    scaling = model.rope_scaling
    factors = []
    for pair in range(model.head_size // 2):
        length = 2 * np.pi * model.rope_theta ** (2 * pair / model.head_size)
        ratio = scaling.original_length / length
        smooth = (ratio - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
        smooth = min(1.0, max(0.0, smooth))
        factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(factors, np.float32)


def _add_tokenizer(writer: GGUFWriter, model: ModelConfig, pre: str) -> None:
    made = tokenizer(pre)
    by_id = {id: token for token, id in made.get_vocab().items()}
    tokens = [by_id.get(id, f"[PAD{id}]") for id in range(model.vocab_size)]
    kinds = [
        3 if token in CONTROLS else 4 if token in USER_DEFINED else 1 if id in by_id else 5
        for id, token in enumerate(tokens)
    ]
    merges = json.loads(made.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(pre == "llama-bpe")
    writer.add_chat_template(TEMPLATE)
