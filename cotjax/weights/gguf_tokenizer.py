"""A GGUF file's tokenizer -> the tokenizer files of a Hugging Face folder.

A GGUF file names its vocabulary, merges or scores, and the kind of each token, but not how text is
split before merging: that follows from a name (`tokenizer.ggml.pre`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from cotjax.errors import DataError
from cotjax.weights.generation import GENERATION_FILE
from cotjax.weights.gguf_file import GGUF

TEMPLATE_FILE = "chat_template.jinja"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # llama.cpp's kinds of tokens
_IDS = {  # transformers' name: the key after tokenizer.ggml.
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
# Control tokens that end a turn or a text, besides those that a file names by id.
_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>")
_SPACE = "▁"  # SentencePiece's


@dataclass(frozen=True)
class _Split:
    """How text is split before merging."""

    pattern: str | None = None  # None: GPT-2's
    digits: bool = False  # every digit apart, before anything else
    nfc: bool = False  # Unicode is composed first
    ignore_merges: bool = False  # a whole piece that is a token stays one


def _cl100k(digits: str) -> str:
    """Return the pattern of GPT-4's tokenizer as Llama 3 and Qwen2 publish it."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_LLAMA3 = _Split(_cl100k(r"\p{N}{1,3}"), ignore_merges=True)
_QWEN2 = _Split(_cl100k(r"\p{N}"), nfc=True)
_SPLITS = {
    "gpt-2": _Split(),
    "smollm": _Split(digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
# Files from before `tokenizer.ggml.pre`, by architecture.
_OLDER = {"qwen2": "qwen2", "qwen3": "qwen2"}


@dataclass(frozen=True)
class _Vocabulary:
    tokens: list[str]
    kinds: list[int]

    def of(self, *kinds: int) -> Iterator[tuple[int, str]]:
        """Return (id, token) of these kinds."""
        return (
            (id, token)
            for id, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind in kinds
        )

    @property
    def ids(self) -> dict[str, int]:
        """Token -> id; tokens that only fill up the vocabulary are left out."""
        return {
            token: id
            for id, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind != _UNUSED
        }


def special_ids(gguf: GGUF) -> dict[str, int]:
    """Return the bos, eos and pad ids that a file names, as config.json has them."""
    known = {f"{name}_id": _id(gguf, key) for name, key in _IDS.items() if name != "unk_token"}
    return {name: id for name, id in known.items() if id is not None}


def end_ids(gguf: GGUF) -> list[int]:
    """Return the ids that end a generation: eos, the end of a turn, the end of a text."""
    vocabulary = _vocabulary(gguf)
    named = [_id(gguf, key) for key in ("eos_token_id", "eot_token_id", "eom_token_id")]
    controls = {token: id for id, token in vocabulary.of(_CONTROL)}
    found = [*named, *(controls.get(token) for token in _ENDS)]
    return list(dict.fromkeys(id for id in found if id is not None))


def write_tokenizer(gguf: GGUF, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json, the chat template and generation_config.json.

    Raises DataError for a tokenizer of an unknown kind, or one that does not fit together.
    """
    tokenizer, vocabulary = build_tokenizer(gguf), _vocabulary(gguf)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    named = {name: _id(gguf, key) for name, key in _IDS.items()}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {name: vocabulary.tokens[id] for name, id in named.items() if id is not None}
    config["clean_up_tokenization_spaces"] = False
    length = gguf.metadata.get(f"{gguf.architecture}.context_length")
    config |= {} if length is None else {"model_max_length": length}
    _write_json(folder / "tokenizer_config.json", config)
    template = gguf.metadata.get("tokenizer.chat_template")
    if template:
        (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8", newline="")
    ends = end_ids(gguf)
    generation: dict[str, Any] = dict(special_ids(gguf))
    if ends:
        generation["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    _write_json(folder / GENERATION_FILE, generation)


def build_tokenizer(gguf: GGUF) -> Tokenizer:
    """Return the tokenizer that a file describes. Raises DataError as `write_tokenizer`."""
    kind = gguf.metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise DataError(
            f"{gguf.file}: the tokenizer is of the kind {kind!r}; known are gpt2 (byte-level BPE) "
            "and llama (SentencePiece BPE)"
        )
    vocabulary = _vocabulary(gguf)
    try:
        make = _byte_level if kind == "gpt2" else _sentencepiece
        tokenizer = make(gguf, vocabulary)
    except DataError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise DataError(
            f"{gguf.file}: the tokenizer's vocabulary and merges do not fit together ({error})"
        ) from None
    # Their ids are those of the model's vocabulary, which has them too.
    for kinds, special in (((_CONTROL, _UNKNOWN), True), ((_USER_DEFINED,), False)):
        tokens = [
            AddedToken(token, normalized=False, special=special)
            for _, token in vocabulary.of(*kinds)
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(tokens)
    _add_begin(gguf, tokenizer, kind)
    return tokenizer


def _byte_level(gguf: GGUF, vocabulary: _Vocabulary) -> Tokenizer:
    """Return GPT-2's kind of tokenizer, whose file has merges."""
    split = _split(gguf)
    merges = [
        tuple(merge.split(" ", 1)) for merge in gguf.metadata.get("tokenizer.ggml.merges", ())
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary.ids, merges=merges, ignore_merges=split.ignore_merges)
    )
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None)
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if split.digits else []
    if split.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(split.pattern), behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytes_alone])
    if split.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(gguf: GGUF, vocabulary: _Vocabulary) -> Tokenizer:
    """Return Llama 2's kind of tokenizer, whose file has scores in place of merges."""
    unknown = _id(gguf, "unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary.ids,
            merges=_merges(vocabulary, gguf.metadata.get("tokenizer.ggml.scores", ())),
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    begins = gguf.metadata.get("tokenizer.ggml.add_space_prefix", True)
    prefix = [normalizers.Prepend(_SPACE)] if begins else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if begins else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(vocabulary: _Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """Return every way to join two tokens to a third, the best score of the third first."""
    ids, found = vocabulary.ids, []
    for id, token in vocabulary.of(_NORMAL):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        known.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found += [(scores[id], pair) for pair in known]
    found.sort(key=lambda one: (one[0], len(one[1][0]), len(one[1][1])), reverse=True)
    return [pair for _, pair in found]


def _split(gguf: GGUF) -> _Split:
    name = gguf.metadata.get("tokenizer.ggml.pre") or _OLDER.get(gguf.architecture)
    if name not in _SPLITS:
        raise DataError(
            f"{gguf.file}: how its tokenizer splits text is called {name!r} "
            f"(tokenizer.ggml.pre); known are {', '.join(_SPLITS)}"
        )
    return _SPLITS[name]


def _add_begin(gguf: GGUF, tokenizer: Tokenizer, kind: str) -> None:
    """Let encoding with special tokens begin with bos, where the file says so."""
    begin = _id(gguf, "bos_token_id")
    adds = gguf.metadata.get("tokenizer.ggml.add_bos_token", kind == "llama")
    if adds and begin is not None:
        token = _vocabulary(gguf).tokens[begin]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[token, "$A"], pair=[token, "$A", token, "$B:1"], special_tokens=[(token, begin)]
        )


def _vocabulary(gguf: GGUF) -> _Vocabulary:
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise DataError(f"{gguf.file}: holds no tokenizer (tokenizer.ggml.tokens)")
    kinds = gguf.metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise DataError(f"{gguf.file}: {len(tokens)} tokens, but {len(kinds)} kinds of them")
    return _Vocabulary(tokens, kinds)


def _id(gguf: GGUF, key: str) -> int | None:
    """Return the id under a key of tokenizer.ggml; None where the file has none."""
    id = gguf.metadata.get(f"tokenizer.ggml.{key}")
    if id is not None and not 0 <= id < len(gguf.metadata.get("tokenizer.ggml.tokens") or ()):
        raise DataError(f"{gguf.file}: tokenizer.ggml.{key} is {id}, which is no token")
    return id


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
