"""Makes a word-level tokenizer: for small models on text worlds, whose whole vocabulary is a few hundred words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from cotjax import formats

PAD, UNKNOWN = "[PAD]", "[UNK]"


def build_word_tokenizer(
    texts: Iterable[str], template: formats.TurnTemplate = formats.CHATML
) -> Tokenizer:
    """A tokenizer that knows every word and mark of `texts`, the response tags and the template's control tokens.

    Words are split at whitespace and around punctuation; ids follow the words' alphabetical order, so the same texts give
    the same tokenizer in any order.
    """
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    words = set()
    for text in texts:
        words.update(word for word, _ in split.pre_tokenize_str(text))
    control = list(template.marks)
    words.update(
        word
        for piece in (template.turn_open, template.response_open)
        for word in _words_around(piece, control)
    )
    vocabulary = [PAD, UNKNOWN, *control, *formats.TAGS]
    vocabulary += sorted(words - set(vocabulary))
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token=UNKNOWN)
    )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (PAD, UNKNOWN, *control)]
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in formats.TAGS])
    return tokenizer


def save_tokenizer(
    tokenizer: Tokenizer, folder: str | Path, template: formats.TurnTemplate = formats.CHATML
) -> None:
    """Write `tokenizer.json`, and the `tokenizer_config.json` by which transformers' AutoTokenizer loads it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "eos_token": template.response_end,
    }
    config |= {"bos_token": template.begin} if template.begin else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _words_around(piece: str, control: list[str]) -> list[str]:
    for token in control:
        piece = piece.replace(token, " ")
    return piece.split()
