"""Text <-> ids, for one tokenizer and one turn template: all encoding and decoding happens here.

Two kinds of text become ids. The template's marks and the response's tags are encoded with the
tokenizer as it is, so they become its control tokens. Content (task, observation, thought, action)
is encoded with the same vocabulary and merges, but without the tokenizer's added tokens:
`<|im_start|>` in an observation is twelve characters, not the beginning of a turn.

A `Codec` encodes single turns, as segments with roles. `cotjax.data.tokens` puts the turns of a
trajectory together into examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from cotjax import formats
from cotjax.data.plain_text import PlainText, added_tokens, check_known, unknown_id
from cotjax.errors import DataError, UsageError
from cotjax.formats import TurnTemplate
from cotjax.masking import Role

# Files of a tokenizer in a Hugging Face folder. Codec reads the first; transformers reads all.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)

Segments = list[tuple[list[int], Role]]  # consecutive (ids, the role of all of them)


class Codec:
    """Encodes and decodes with one tokenizer and one turn template.

    Args:
      system: a system message before the first user turn; "" for none.
      task_text: the first line of the first user turn, with `{task}` for the task.

    Raises:
      DataError: the tokenizer cannot encode a tag or the system message, or lacks the token that
        the template begins with.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: TurnTemplate,
        system: str = "",
        task_text: str = formats.TASK,
    ):
        self.template = template
        self._task_text = task_text
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
        self._opening = self._encode_opening(system)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        template: str = "chatml",
        system: str = "",
        task_text: str = formats.TASK,
    ) -> Codec:
        """Return the codec of the tokenizer in a local Hugging Face folder.

        Raises:
          UsageError: there is no tokenizer.json, or no such template.
          DataError: the tokenizer cannot be read, or as the class says.
        """
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            raise UsageError(
                f"{file}: no such tokenizer; the model folder must contain tokenizer.json"
            )
        if template not in formats.TEMPLATES:
            raise UsageError(
                f"unknown turn template {template!r}; it must be one of "
                f"{', '.join(formats.TEMPLATES)}"
            )
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{file}: not a tokenizer ({error})") from None
        return cls(tokenizer, formats.TEMPLATES[template], system, task_text)

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

    def first_prompt(self, task: str, observation: str) -> list[int]:
        """Return the ids of an episode's first prompt, up to where the response begins.

        Accepts any text (see `lenient` of `encode_plain`).
        """
        return [i for ids, _ in self.first_turn(task, observation, lenient=True) for i in ids]

    def next_prompt(self, action: str | Sequence[int], observation: str) -> list[int]:
        """Return the ids to append to a prompt after a step.

        They are the executed action as a past direct response, and the next observation. Accepts
        any text (see `lenient` of `encode_plain`).

        Args:
          action: its ids as they were sampled, or its text.
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

    # ---- turns as segments, with their roles

    def first_turn(self, task: str, observation: str, *, lenient: bool = False) -> Segments:
        """Return an episode's first user turn, from its first id to where the response begins."""
        instruction = formats.first_turn(task, "", self._task_text)
        return [
            (self._opening, Role.PROMPT),
            (self.encode_plain(instruction, "the task", lenient=lenient), Role.PROMPT),
            (self.encode_plain(observation, "the observation", lenient=lenient), Role.OBSERVATION),
            (self.encode(self.template.response_open), Role.PROMPT),
        ]

    def next_turn(self, observation: str, *, lenient: bool = False) -> Segments:
        """Return a later user turn, from the end of the previous response."""
        return [
            (self.encode(self.template.turn_gap + self.template.turn_open), Role.PROMPT),
            (self.encode_plain(observation, "the observation", lenient=lenient), Role.OBSERVATION),
            (self.encode(self.template.response_open), Role.PROMPT),
        ]

    def direct(self, action: str) -> Segments:
        """Return a response that only acts."""
        return [
            (self.action_prefix, Role.ACTION_OPEN),
            (self.encode_plain(action, "the action"), Role.ACTION),
            (self.encode(formats.ACTION_CLOSE), Role.ACTION_CLOSE),
            (self.encode(self.template.response_end), Role.END),
        ]

    def reasoned(self, thought: str, action: str) -> Segments:
        """Return a response that reasons, then acts."""
        return [
            (self.encode(formats.THINK_OPEN), Role.REASONING),
            (self.encode_plain(thought, "the thought"), Role.REASONING),
            (self.encode(formats.THINK_CLOSE), Role.REASONING),
            *self.direct(action),
        ]

    # ---- private

    def _encode_opening(self, system: str) -> list[int]:
        """Return the ids before the text of the first user turn."""
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
            id = self._tokenizer.token_to_id(token)
            if id is not None:
                return id
        return 0  # any id will do: padding is neither attended to nor trained on
