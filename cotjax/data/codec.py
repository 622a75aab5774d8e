"""Text <-> ids for one tokenizer and one turn template: the only place where either happens.

Two kinds of text become ids. The template's own marks and the response's tags are encoded with the tokenizer as it is, so they are
its control tokens. Content (task, observation, thought, action) is encoded with the same vocabulary and merges, but without the
tokenizer's added tokens: `<|im_start|>` in an observation is twelve characters, not the beginning of a turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from cotjax import formats
from cotjax.errors import DataError, UsageError
from cotjax.formats import TurnTemplate
from cotjax.masking import Role

# What a tokenizer may consist of in a Hugging Face folder. Codec reads the first; transformers reads all.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_HALF_PAIR = re.compile("[\ud800-\udfff]")

Segments = list[tuple[list[int], Role]]


class Codec:
    """Encodes and decodes for one tokenizer and one turn template.

    `system`: a system message before the first user turn ("": none).

    Raises:
      DataError: the tokenizer does not know a tag, lacks the token that the template begins with, or cannot encode the system message.
    """

    def __init__(self, tokenizer: Tokenizer, template: TurnTemplate, system: str = ""):
        self.template = template
        # A file may ask for texts to be cut or filled up; nothing here may be.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._plain = _without_added_tokens(tokenizer)
        added = {
            token.content: id
            for id, token in tokenizer.get_added_tokens_decoder().items()
            if not token.content.isspace()
        }
        names = (getattr(tokenizer.model, "unk_token", None), "[UNK]", "<unk>")
        self._unknown = next(
            (id for id in map(tokenizer.token_to_id, filter(None, names)) if id is not None), None
        )
        self._added = frozenset(added.values()) - {self._unknown}
        self._added_texts = tuple(added)
        if template.begin and template.begin not in added:
            raise DataError(
                f"the tokenizer has no token {template.begin!r}, which every prompt of the turn template {template.name!r} begins with; "
                "use the tokenizer of a model with this template, or another data.template"
            )
        for tag in (*formats.TAGS, template.response_end):
            if not self.encode(tag):
                raise DataError(
                    f"the tokenizer gives no ids for {tag!r}; add it to the tokenizer's vocabulary"
                )
        # Marks that this tokenizer spells with ordinary tokens: content that holds them would have the same ids.
        self._spelled_marks = tuple(mark for mark in template.marks if mark not in added)
        self._drops_characters = self._unknown is None and not self._spells_every_byte()
        self.action_prefix = self.encode(formats.ACTION_OPEN)
        # Decoding stops at the end of the turn, or where the action closes: nothing after it is looked at.
        self.stop_texts = (formats.ACTION_CLOSE, template.response_end)
        self.stop = (
            tuple(self.encode(formats.ACTION_CLOSE)),
            tuple(self.encode(template.response_end)),
        )
        self.pad_id = self._pad_id()
        self._opening = self._begin(system)

    @classmethod
    def load(cls, folder: str | Path, template: str = "chatml", system: str = "") -> Codec:
        """Read `tokenizer.json` from a local Hugging Face folder."""
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            raise UsageError(
                f"{file}: no such tokenizer; the model folder must hold tokenizer.json"
            )
        if template not in formats.TEMPLATES:
            raise UsageError(
                f"unknown turn template {template!r}; there are {', '.join(formats.TEMPLATES)}"
            )
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{file}: not a tokenizer ({error})") from None
        return cls(tokenizer, formats.TEMPLATES[template], system)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id; where ids have holes, more than there are tokens."""
        return len(self.token_mask)

    @cached_property
    def token_mask(self) -> np.ndarray:
        """[vocab_size] bool: true where an id is a token of the tokenizer."""
        ids = np.fromiter(self._tokenizer.get_vocab(with_added_tokens=True).values(), np.int64)
        mask = np.zeros(int(ids.max()) + 1, bool)
        mask[ids] = True
        mask.setflags(write=False)
        return mask

    @cached_property
    def pieces(self) -> tuple[str | None, ...]:
        """The text that each id adds to a response, None where the id is no token. Joined, they are the decoded text, but for
        blanks and for characters of several tokens; the response's tags are found in it wherever tokens begin and end."""
        before = len(self.decode(self.action_prefix))
        ids = range(self.vocab_size)
        return tuple(
            self.decode([*self.action_prefix, id])[before:] if self.token_mask[id] else None
            for id in ids
        )

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a turn in training; none where the tokenizer spells the end of a turn with several tokens."""
        end = self.encode(self.template.response_end)
        return tuple(end) if len(end) == 1 else ()

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """The ids that every prompt begins with; none where the template names none."""
        return tuple(self.encode(self.template.begin)) if self.template.begin else ()

    def encode(self, text: str) -> list[int]:
        """Encode the template's and the response's own marks, as the control tokens that they are.

        Raises:
          DataError: the tokenizer does not know a word.
        """
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        self._check_known(ids, text)
        return ids.ids

    def encode_plain(self, text: str, what: str, *, lenient: bool = False) -> list[int]:
        """Encode content as the characters it consists of: no added token of the tokenizer comes out of it.

        `what`: the content's name, for messages. `lenient`: never raise; a word that the tokenizer does not know becomes its unknown
        token, half of a surrogate pair U+FFFD. For what an environment says while a model plays.

        Raises:
          DataError: the text cannot be encoded faithfully: it holds a word that the tokenizer does not know, half of a surrogate pair, a
            tag of the response, or a mark that the tokenizer would spell as it spells the template's own.
        """
        if lenient:
            return self._encode_leniently(text)
        self._check_marks(text, what)
        try:
            ids = self._plain.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception; it has no other name for a word without an id
            raise DataError(
                f"the tokenizer cannot encode {what} {text[:60]!r} ({error}); use one that covers the data"
            ) from None
        self._check_known(ids, text)
        if not self._added.isdisjoint(ids.ids):
            start, end = next(
                place for id, place in zip(ids.ids, ids.offsets, strict=True) if id in self._added
            )
            raise DataError(
                f"{what} holds {text[start:end]!r}, a token of the tokenizer's own that it cannot spell as plain text; "
                f"remove it from {text[:60]!r}"
            )
        if self._drops_characters and _has_gap(text, ids.offsets):
            lost = next(
                (one for one in text if not one.isspace() and not self._plain.encode(one).ids),
                text[:60],
            )
            raise DataError(
                f"the tokenizer has no token for {lost!r} in {text[:60]!r}; use a tokenizer whose vocabulary covers the data"
            )
        return ids.ids

    def encodable(self, text: str) -> bool:
        """Whether a sampled action with this text may be executed and go on in a prompt: `encode_plain` takes it, and it names no added
        token of the tokenizer."""
        if any(token in text for token in self._added_texts):
            return False
        try:
            self.encode_plain(text, "the text")
        except DataError:
            return False
        return True

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def first_prompt(self, task: str, observation: str) -> list[int]:
        """Ids of an episode's first prompt, up to where the response begins. Takes any text (`encode_plain`, lenient)."""
        return [i for ids, _ in self.first_turn(task, observation, lenient=True) for i in ids]

    def next_prompt(self, action: str | Sequence[int], observation: str) -> list[int]:
        """Ids to append to a prompt: the executed action as a past direct response, then the next observation. Takes any text.

        `action`: its ids as they were sampled, or its text.
        """
        action_ids = (
            self.encode_plain(action, "the action", lenient=True)
            if isinstance(action, str)
            else action
        )
        response = [
            *self.action_prefix,
            *action_ids,
            *self.encode(formats.ACTION_CLOSE),
            *self.encode(self.template.response_end),
        ]
        return response + [i for ids, _ in self.next_turn(observation, lenient=True) for i in ids]

    # ---- a trajectory's parts, with their roles

    def first_turn(self, task: str, observation: str, *, lenient: bool = False) -> Segments:
        """An episode's first user turn, from the first id of the prompt to where the response begins."""
        asked = formats.first_turn(task, "")
        return [
            (self._opening, Role.PROMPT),
            (self.encode_plain(asked, "the task", lenient=lenient), Role.PROMPT),
            (self.encode_plain(observation, "the observation", lenient=lenient), Role.OBSERVATION),
            (self.encode(self.template.response_open), Role.PROMPT),
        ]

    def next_turn(self, observation: str, *, lenient: bool = False) -> Segments:
        """A later user turn, from the end of the response before it."""
        return [
            (self.encode(self.template.turn_gap + self.template.turn_open), Role.PROMPT),
            (self.encode_plain(observation, "the observation", lenient=lenient), Role.OBSERVATION),
            (self.encode(self.template.response_open), Role.PROMPT),
        ]

    def direct(self, action: str) -> Segments:
        """A response that acts alone."""
        return [
            (self.action_prefix, Role.ACTION_OPEN),
            (self.encode_plain(action, "the action"), Role.ACTION),
            (self.encode(formats.ACTION_CLOSE), Role.ACTION_CLOSE),
            (self.encode(self.template.response_end), Role.END),
        ]

    def reasoned(self, thought: str, action: str) -> Segments:
        """A response that reasons, then acts."""
        return [
            (self.encode(formats.THINK_OPEN), Role.REASONING),
            (self.encode_plain(thought, "the thought"), Role.REASONING),
            (self.encode(formats.THINK_CLOSE), Role.REASONING),
            *self.direct(action),
        ]

    # ---- private

    def _begin(self, system: str) -> list[int]:
        """Everything before the first user turn's words."""
        template = self.template
        if not system:
            return [*self.begin_ids, *self.encode(template.turn_open)]
        message = [
            *self.encode(template.system_open),
            *self.encode_plain(system, "the system message"),
        ]
        return [
            *self.begin_ids,
            *message,
            *self.encode(template.response_end),
            *self.encode(template.turn_gap + template.turn_open),
        ]

    def _pad_id(self) -> int:
        for token in ("[PAD]", "<pad>", "<|endoftext|>"):
            found = self._tokenizer.token_to_id(token)
            if found is not None:
                return found
        return 0  # any id will do: padding is in segment 0 and is never attended to nor trained on

    def _spells_every_byte(self) -> bool:
        vocabulary = self._plain.get_vocab(with_added_tokens=False)
        return all(letter in vocabulary for letter in pre_tokenizers.ByteLevel.alphabet())

    def _check_known(self, ids, text: str) -> None:
        if self._unknown is not None and self._unknown in ids.ids:
            start, end = ids.offsets[ids.ids.index(self._unknown)]
            raise DataError(
                f"the tokenizer does not know {text[start:end]!r} in {text[:60]!r}; use a tokenizer whose vocabulary covers the data"
            )

    def _check_marks(self, text: str, what: str) -> None:
        """Raise DataError for half pairs, and for marks that would be read, or would have the same ids, as the format's own."""
        if half := _HALF_PAIR.search(text):
            raise DataError(
                f"{what} holds half of a surrogate pair at character {half.start()}: the text was cut; mend or remove it"
            )
        normalizer = self._plain.normalizer
        seen = (text,) if normalizer is None else (text, normalizer.normalize_str(text))
        for mark in (*formats.TAGS, *self._spelled_marks):
            if any(mark in form for form in seen):
                raise DataError(
                    f"{what} holds {mark!r}, which would be read as a tag; remove it from {text[:60]!r}"
                )

    def _encode_leniently(self, text: str) -> list[int]:
        if _HALF_PAIR.search(text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        try:
            ids = self._plain.encode(text, add_special_tokens=False)
        except Exception:  # a word without an id, in a vocabulary without an unknown token
            return (
                []
                if len(text) < 2
                else [i for character in text for i in self._encode_leniently(character)]
            )
        if self._added.isdisjoint(ids.ids):
            return ids.ids
        found = []
        for id, (start, end) in zip(ids.ids, ids.offsets, strict=True):
            found += [id] if id not in self._added else self._apart(text[start:end])
        return found

    def _apart(self, text: str) -> list[int]:
        """Encode, character by character, a text that is an added token as a whole."""
        found = (
            [i for character in text for i in self._encode_leniently(character)]
            if len(text) > 1
            else []
        )
        return found or [i for i in (self._unknown,) if i is not None]


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    plain = Tokenizer(tokenizer.model)  # the same vocabulary and merges, not a copy of them
    plain.normalizer, plain.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    return plain


def _has_gap(text: str, places: Sequence[tuple[int, int]]) -> bool:
    """Whether any of `text`, other than blanks, has no token. Behind a character that is dropped the places are off, so a gap tells
    that there is one, not where."""
    done = 0
    for start, end in [*places, (len(text), len(text))]:
        if text[done:start].strip():
            return True
        done = end
    return False
