"""Word-level tokenizers, for small models on text worlds of some hundred words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from cotjax import formats

PAD, UNKNOWN = "[PAD]", "[UNK]"


def build_word_tokenizer(
    texts: Iterable[str],
    template: formats.TurnTemplate = formats.CHATML,
    tags: Iterable[str] = (),
) -> Tokenizer:
    """Return a tokenizer of the words of `texts`, the response tags and the template's marks.

    `tags`: texts that are one token besides, such as those of `cotjax.formats.search`.

    Words are split at whitespace and around punctuation. Ids follow the alphabetical order of the
    words (`WordLevelTrainer` orders by frequency), so the order of the texts does not matter.
    """
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    words: set[str] = set()
    for text in texts:
        words.update(word for word, _ in split.pre_tokenize_str(text))
    marks = template.marks
    every_tag = tuple(dict.fromkeys((*formats.TAGS, *tags)))
    for piece in (template.turn_open, template.response_open):
        words.update(re.sub("|".join(map(re.escape, marks)), " ", piece).split())
    vocabulary = [PAD, UNKNOWN, *marks, *every_tag]
    vocabulary += sorted(words - set(vocabulary))
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token=UNKNOWN)
    )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (PAD, UNKNOWN, *marks)]
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in every_tag])
    return tokenizer


def save_tokenizer(
    tokenizer: Tokenizer, folder: str | Path, template: formats.TurnTemplate = formats.CHATML
) -> None:
    """Write tokenizer.json, and tokenizer_config.json for transformers' AutoTokenizer."""
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
