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
from cotjax.data.chat_template import resolved
from cotjax.data.plain_text import PlainText, added_tokens, check_known, unknown_id
from cotjax.errors import DataError, UsageError
from cotjax.formats import Prompt, TurnTemplate
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

TASK_ALONE = Prompt()
Segments = list[tuple[list[int], Role]]  # consecutive (ids, the role of all of them)


class Codec:
    """Encodes and decodes with one tokenizer and one turn template.

    Args:
      prompt: what prompts say beside the episode. Its system message is text: `load` reads the
        one of the tokenizer's chat template.

    Raises:
      DataError: the tokenizer cannot encode a tag or a text of the prompt, or lacks the token that
        the template begins with.
    """

    def __init__(self, tokenizer: Tokenizer, template: TurnTemplate, prompt: Prompt = TASK_ALONE):
        self.template, self.prompt = template, prompt
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
        self.response_open, self.think_close = (
            self.encode(template.response_open),
            template.think_close,
        )
        # Decoding stops where the action closes, or at the end of the turn.
        self.stop_texts = (formats.ACTION_CLOSE, template.response_end)
        self.stop = (
            tuple(self.encode(formats.ACTION_CLOSE)),
            tuple(self.encode(template.response_end)),
        )
        self.pad_id = self._pad_id()
        self._opening = self._encode_opening()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        template: str = "chatml",
        prompt: Prompt = TASK_ALONE,
    ) -> Codec:
        """Return the codec of the tokenizer in a local Hugging Face folder.

        Raises:
          UsageError: there is no tokenizer.json or no such template, or "auto" or "template" asks
            for a chat template that the folder lacks or that no turn template fits.
          DataError: the tokenizer cannot be read, or as the class says.
        """
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            raise UsageError(
                f"{file}: no such tokenizer; the model folder must contain tokenizer.json"
            )
        turns, prompt = resolved(template, prompt, folder)
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{file}: not a tokenizer ({error})") from None
        return cls(tokenizer, turns, prompt)

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

    def prefill(self, text: str) -> list[int]:
        """Return the ids of a text that is prefilled before a response: tags as in training."""
        head, tag, tail = text.partition(formats.ACTION_OPEN)
        ids = self.encode(head) if head else []
        ids += self.action_prefix if tag else []
        return ids + (self.encode(tail) if tail else [])

    def first_prompt(
        self, task: str, observation: str, admissible: Sequence[str] | None = None, key: str = ""
    ) -> list[int]:
        """Return the ids of an episode's first prompt, up to where the response begins.

        Accepts any text (see `lenient` of `encode_plain`).

        Args:
          admissible: the state's admissible actions; None where they cannot be listed.
          key: "<game id>/<turn>", which decides the actions that a prompt with a sample of them
            lists.

        Raises:
          UsageError: the prompt lists actions, and there are none to list.
        """
        self._check_listed(admissible)
        turn = self.first_turn(task, observation, admissible, key, lenient=True)
        return [i for ids, _ in turn for i in ids]

    def next_prompt(
        self,
        action: str | Sequence[int],
        observation: str,
        admissible: Sequence[str] | None = None,
        key: str = "",
    ) -> list[int]:
        """Return the ids to append to a prompt after a step.

        They are the executed action as a past direct response, and the next observation. Accepts
        any text (see `lenient` of `encode_plain`).

        Args:
          action: its ids as they were sampled, or its text.
          admissible, key: of the new state, as in `first_prompt`.

        Raises:
          UsageError: as `first_prompt`.
        """
        self._check_listed(admissible)
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
        turn = self.next_turn(observation, admissible, key, lenient=True)
        return response + [i for ids, _ in turn for i in ids]

    # ---- turns as segments, with their roles

    def first_turn(
        self,
        task: str,
        observation: str,
        admissible: Sequence[str] | None = None,
        key: str = "",
        *,
        lenient: bool = False,
    ) -> Segments:
        """Return an episode's first user turn, from its first id to where the response begins.

        `admissible`, `key`: as in `first_prompt`. Raises DataError where the prompt lists actions
        and there are none to list, unless `lenient`.
        """
        task_line = self.prompt.task_line(task)
        return [
            (self._opening, Role.PROMPT),
            (self.encode_plain(task_line, "the task", lenient=lenient), Role.PROMPT),
            *self._seen(observation, admissible, key, lenient),
            (self.encode(self.template.response_open), Role.PROMPT),
        ]

    def next_turn(
        self,
        observation: str,
        admissible: Sequence[str] | None = None,
        key: str = "",
        *,
        lenient: bool = False,
    ) -> Segments:
        """Return a later user turn, from the end of the previous response. See `first_turn`."""
        return [
            (self.encode(self.template.turn_gap + self.template.turn_open), Role.PROMPT),
            *self._seen(observation, admissible, key, lenient),
            (self.encode(self.template.response_open), Role.PROMPT),
        ]

    def direct(self, action: str) -> Segments:
        """Return a response that only acts."""
        opened = self.template.direct_open
        return [*([(self.encode(opened), Role.REASONING)] if opened else []), *self.acted(action)]

    def acted(self, action: str) -> Segments:
        """Return the action of a response: all of it that later prompts show."""
        return [
            (self.action_prefix, Role.ACTION_OPEN),
            (self.encode_plain(action, "the action"), Role.ACTION),
            (self.encode(formats.ACTION_CLOSE), Role.ACTION_CLOSE),
            (self.encode(self.template.response_end), Role.END),
        ]

    def reasoned(self, thought: str, action: str) -> Segments:
        """Return a response that reasons, then acts."""
        # The template's line breaks around a thought may be part of its tokens, as in ".\n".
        close = self.template.think_close
        broken = close[: len(close) - len(close.lstrip())]
        thought = thought.strip("\n") + broken if broken else thought
        return [
            (self.encode(self.template.think_open), Role.REASONING),
            (self.encode_plain(thought, "the thought"), Role.REASONING),
            (self.encode(close.lstrip()), Role.REASONING),
            *self.acted(action),
        ]

    # ---- private

    def _seen(
        self, observation: str, admissible: Sequence[str] | None, key: str, lenient: bool
    ) -> Segments:
        """Return the observation, and the actions that the prompt lists."""
        if not self.prompt.lists_actions:
            ids = self.encode_plain(observation, "the observation", lenient=lenient)
            return [(ids, Role.OBSERVATION)]
        if not admissible and not lenient:
            raise DataError(
                f"there are no admissible_commands, which prompt.admissible="
                f"{self.prompt.admissible!r} lists; add them, or set prompt.admissible to 'none'"
            )
        # The break belongs to the text before it: some tokenizers have tokens such as ".\n".
        above = f"{observation}\n" if observation else ""
        line = self.prompt.actions_line(admissible or (), key)
        return [
            (self.encode_plain(above, "the observation", lenient=lenient), Role.OBSERVATION),
            (self.encode_plain(line, "the admissible actions", lenient=lenient), Role.PROMPT),
        ]

    def _check_listed(self, admissible: Sequence[str] | None) -> None:
        if admissible is None and self.prompt.lists_actions:
            raise UsageError(
                f"prompt.admissible is {self.prompt.admissible!r}, but the world does not list "
                "its admissible actions; set it to 'none'"
            )

    def _encode_opening(self) -> list[int]:
        """Return the ids before the first user turn's task."""
        template, prompt = self.template, self.prompt
        ids = list(self.begin_ids)
        if prompt.system:
            ids += self.encode(template.system_open) if template.system_open else []
            ids += self._encode_wording(prompt.system, "the system message")
            ids += self.encode(template.system_close) if template.system_close else []
            ids += self.encode(template.turn_gap + template.turn_open)
        else:
            ids += self.encode(template.turn_open)
        if prompt.instruction:
            ids += self._encode_wording(f"{prompt.instruction}\n", "the instruction")
        return ids

    def _encode_wording(self, text: str, what: str) -> list[int]:
        """Encode a text of the config or the world: the response's tags in it are tags."""
        if not any(tag in text for tag in formats.TAGS):
            return self.encode_plain(text, what)
        rest = text
        for tag in formats.TAGS:
            rest = rest.replace(tag, " ")
        self.encode_plain(rest, what)  # raises for what the tokenizer cannot spell
        if self._plain.names_added_token(rest) or any(m in rest for m in self.template.marks):
            raise DataError(f"{what} contains a control token; remove it from {text[:60]!r}")
        return self.encode(text)

    def _pad_id(self) -> int:
        for token in ("[PAD]", "<pad>", "<|endoftext|>"):
            id = self._tokenizer.token_to_id(token)
            if id is not None:
                return id
        return 0  # any id will do: padding is neither attended to nor trained on
