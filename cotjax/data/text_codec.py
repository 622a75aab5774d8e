"""Text <-> ids, for one tokenizer and the marks of one turn template.

Two kinds of text become ids. The template's marks and the response's tags are encoded with the
tokenizer as it is, so they become its control tokens. Content (task, observation, thought, action)
is encoded with the same vocabulary and merges, but without the tokenizer's added tokens:
`<|im_start|>` in an observation is twelve characters, not the beginning of a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from cotjax import formats
from cotjax.data.plain_text import PlainText, added_tokens, check_known, unknown_id
from cotjax.errors import DataError
from cotjax.formats import TurnTemplate


class TextCodec:
    """Encodes and decodes texts with one tokenizer.

    Raises:
      DataError: the tokenizer cannot encode a tag, or lacks the token that the template begins
        with.
    """

    # Tags of the response, which are tags in the texts of a prompt too.
    tags: tuple[str, ...] = formats.TAGS

    def __init__(self, tokenizer: Tokenizer, template: TurnTemplate):
        self.template = template
        # A tokenizer file may turn on truncation or padding; nothing may be cut or padded here.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._unknown = unknown_id(tokenizer)
        self._plain = PlainText(tokenizer, template)
        added = added_tokens(tokenizer)
        if template.begin and template.begin not in added:
            raise DataError(
                f"the tokenizer has no token {template.begin!r}, with which every prompt of the "
                f"turn template {template.name!r} begins; use the tokenizer of a model with this "
                "template, or another data.template"
            )
        for tag in (*formats.TAGS, template.response_end):
            if not self.encode(tag):
                raise DataError(
                    f"the tokenizer has no ids for {tag!r}; add it to the tokenizer's vocabulary"
                )
        self.action_prefix = self.encode(formats.ACTION_OPEN)
        # Decoding stops where the action closes, or at the end of the turn.
        self.stop_texts = (formats.ACTION_CLOSE, template.response_end)
        self.stop = (
            tuple(self.encode(formats.ACTION_CLOSE)),
            tuple(self.encode(template.response_end)),
        )
        self.pad_id = self._pad_id()

    @property
    def vocab_size(self) -> int:
        """One more than the highest id; more than the number of tokens where ids have gaps."""
        return len(self.token_mask)

    @cached_property
    def token_mask(self) -> np.ndarray:
        """[vocab_size] bool: whether an id is a token of the tokenizer."""
        ids = np.fromiter(self._tokenizer.get_vocab(with_added_tokens=True).values(), np.int64)
        mask = np.zeros(int(ids.max()) + 1, bool)
        mask[ids] = True
        mask.setflags(write=False)
        return mask

    @cached_property
    def pieces(self) -> tuple[str | None, ...]:
        """The text that each id adds to a response; None where an id is not a token.

        Joined, they are the decoded text except for whitespace and for characters that consist of
        several tokens. The response's tags appear in it however the tokens divide them.
        """
        before = len(self.decode(self.action_prefix))
        ids = range(self.vocab_size)
        return tuple(
            self.decode([*self.action_prefix, id])[before:] if self.token_mask[id] else None
            for id in ids
        )

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The id that ends a turn in training.

        Empty where the tokenizer spells the end of a turn with several tokens.
        """
        end = self.encode(self.template.response_end)
        return tuple(end) if len(end) == 1 else ()

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """The ids that every prompt begins with; empty where the template has none."""
        return tuple(self.encode(self.template.begin)) if self.template.begin else ()

    def encode(self, text: str) -> list[int]:
        """Encode marks of the template and tags of the response as control tokens.

        Raises:
          DataError: the tokenizer does not know a word.
        """
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        check_known(ids, text, self._unknown)
        return ids.ids

    def encode_plain(self, text: str, what: str, *, lenient: bool = False) -> list[int]:
        """Encode content as plain characters, never as added tokens of the tokenizer.

        Args:
          what: the name of the content, for error messages.
          lenient: never raise: a word that the tokenizer does not know becomes its unknown token,
            and half of a surrogate pair becomes U+FFFD. For an environment's text while a model
            plays.

        Raises:
          DataError: the text cannot be encoded faithfully. It contains a word that the tokenizer
            does not know, half of a surrogate pair, a tag of the response, or a mark of the
            template that the tokenizer would give the mark's own ids.
        """
        if lenient:
            return self._plain.encode_leniently(text)
        return self._plain.encode(text, what)

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of a content that the tokenizer does not know, in order."""
        return self._plain.unknown_words(text)

    def encodable(self, text: str) -> bool:
        """Return whether a sampled action may be executed and occur in later prompts.

        That is, whether `encode_plain` accepts it, and it contains no added token of the tokenizer.
        """
        if self._plain.names_added_token(text):
            return False
        try:
            self.encode_plain(text, "the text")
        except DataError:
            return False
        return True

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, control tokens included."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def encode_wording(self, text: str, what: str) -> list[int]:
        """Encode a text of the config or the world: the response's tags in it are tags."""
        if not any(tag in text for tag in self.tags):
            return self.encode_plain(text, what)
        rest = text
        for tag in self.tags:
            rest = rest.replace(tag, " ")
        self.encode_plain(rest, what)  # raises for what the tokenizer cannot spell
        if self._plain.names_added_token(rest) or any(m in rest for m in self.template.marks):
            raise DataError(f"{what} contains a control token; remove it from {text[:60]!r}")
        return self.encode(text)

    # ---- private

    def _pad_id(self) -> int:
        for token in ("[PAD]", "<pad>", "<|endoftext|>"):
            id = self._tokenizer.token_to_id(token)
            if id is not None:
                return id
        return 0  # any id will do: padding is neither attended to nor trained on
