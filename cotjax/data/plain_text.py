"""Content -> ids: text as plain characters, never as a tokenizer's added tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer, pre_tokenizers

from cotjax import formats
from cotjax.errors import DataError
from cotjax.formats import TurnTemplate

_HALF_PAIR = re.compile("[\ud800-\udfff]")  # of surrogates


class PlainText:
    """Encodes content with a tokenizer's vocabulary and merges, but without its added tokens."""

    def __init__(self, tokenizer: Tokenizer, template: TurnTemplate):
        self._tokenizer = _without_added_tokens(tokenizer)
        added = added_tokens(tokenizer)
        self._unknown = unknown_id(tokenizer)
        self._added = frozenset(added.values()) - {self._unknown}
        self._added_texts = tuple(added)
        # Marks that this tokenizer spells with ordinary tokens: in content they would have the same
        # ids.
        self._spelled_marks = tuple(mark for mark in template.marks if mark not in added)
        self._drops_characters = self._unknown is None and not self._spells_every_byte()

    def encode(self, text: str, what: str) -> list[int]:
        """Encode text faithfully; `what` is its name for error messages.

        Raises:
          DataError: it cannot be encoded faithfully; see `Codec.encode_plain`.
        """
        self._check_marks(text, what)
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception for a word without an id
            raise DataError(
                f"the tokenizer cannot encode {what} {text[:60]!r} ({error}); use one that covers "
                "the data"
            ) from None
        check_known(ids, text, self._unknown)
        if not self._added.isdisjoint(ids.ids):
            start, end = next(
                offset for id, offset in zip(ids.ids, ids.offsets, strict=True) if id in self._added
            )
            raise DataError(
                f"{what} contains {text[start:end]!r}, a token of the tokenizer's own that it "
                f"cannot spell as plain text; remove it from {text[:60]!r}"
            )
        if self._drops_characters and _has_gap(text, ids.offsets):
            dropped = next(
                (one for one in text if not one.isspace() and not self._tokenizer.encode(one).ids),
                text[:60],
            )
            raise DataError(
                f"the tokenizer has no token for {dropped!r} in {text[:60]!r}; use a tokenizer "
                "whose vocabulary covers the data"
            )
        return ids.ids

    def encode_leniently(self, text: str) -> list[int]:
        """Encode any text; replace what cannot be encoded. See `Codec.encode_plain`."""
        if _HALF_PAIR.search(text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception:  # a word without an id, in a vocabulary without an unknown token
            if len(text) < 2:
                return []
            return [id for character in text for id in self.encode_leniently(character)]
        if self._added.isdisjoint(ids.ids):
            return ids.ids
        plain: list[int] = []
        for id, (start, end) in zip(ids.ids, ids.offsets, strict=True):
            plain += self._spelled(text[start:end]) if id in self._added else [id]
        return plain

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of a text that become the unknown token."""
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception:  # as in `encode_leniently`, which leaves them out
            return [text]
        pairs = zip(ids.ids, ids.offsets, strict=True)
        return [text[start:end] for id, (start, end) in pairs if id == self._unknown]

    def names_added_token(self, text: str) -> bool:
        """Return whether the text contains an added token of the tokenizer."""
        return any(token in text for token in self._added_texts)

    def _spelled(self, text: str) -> list[int]:
        """Encode the text of an added token character by character."""
        ids = []
        if len(text) > 1:
            ids = [id for character in text for id in self.encode_leniently(character)]
        return ids or [id for id in (self._unknown,) if id is not None]

    def _spells_every_byte(self) -> bool:
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        return all(letter in vocabulary for letter in pre_tokenizers.ByteLevel.alphabet())

    def _check_marks(self, text: str, what: str) -> None:
        """Raise DataError for half surrogate pairs, and for text that would be read as marks."""
        if half := _HALF_PAIR.search(text):
            raise DataError(
                f"{what} contains half of a surrogate pair at character {half.start()}: the text "
                "was cut; fix or remove it"
            )
        normalizer = self._tokenizer.normalizer
        forms = (text,) if normalizer is None else (text, normalizer.normalize_str(text))
        for mark in (*formats.TAGS, *self._spelled_marks):
            if any(mark in form for form in forms):
                raise DataError(
                    f"{what} contains {mark!r}, which would be read as a tag; remove it from "
                    f"{text[:60]!r}"
                )


def added_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Return a tokenizer's added tokens other than whitespace: text -> id."""
    return {
        token.content: id
        for id, token in tokenizer.get_added_tokens_decoder().items()
        if not token.content.isspace()
    }


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id that stands for unknown words; None if the tokenizer has none."""
    for name in (getattr(tokenizer.model, "unk_token", None), "[UNK]", "<unk>"):
        id = tokenizer.token_to_id(name) if name else None
        if id is not None:
            return id
    return None


def check_known(ids: Encoding, text: str, unknown: int | None) -> None:
    """Raise DataError if the encoded text contains an unknown word."""
    if unknown is not None and unknown in ids.ids:
        start, end = ids.offsets[ids.ids.index(unknown)]
        raise DataError(
            f"the tokenizer does not know {text[start:end]!r} in {text[:60]!r}; use a "
            "tokenizer whose vocabulary covers the data"
        )


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    plain = Tokenizer(tokenizer.model)  # the same vocabulary and merges, not a copy of them
    plain.normalizer, plain.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    return plain


def _has_gap(text: str, offsets: Sequence[tuple[int, int]]) -> bool:
    """Return whether any of `text` other than whitespace has no token.

    Offsets after a dropped character are wrong, so a gap says that one was dropped, not where.
    """
    done = 0
    for start, end in [*offsets, (len(text), len(text))]:
        if text[done:start].strip():
            return True
        done = end
    return False
