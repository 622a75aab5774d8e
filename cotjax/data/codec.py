"""Turns and prompts -> ids, for one tokenizer and one turn template.

A `Codec` encodes single turns, as segments with roles, and its `TextCodec` their texts.
`cotjax.data.tokens` puts the turns of a trajectory together into examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from cotjax import formats
from cotjax.data.chat_template import resolved
from cotjax.data.growing_text import TOKENS, GrowingText
from cotjax.data.text_codec import TextCodec
from cotjax.errors import DataError, UsageError
from cotjax.formats import Example, Prompt, TurnTemplate
from cotjax.formats.search import SEARCH_CLOSE
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


class Codec(TextCodec):
    """Encodes the turns of one template, and decodes, with one tokenizer.

    Args:
      prompt: what prompts say beside the episode. Its system message is text: `load` reads the
        one of the tokenizer's chat template.

    Raises:
      DataError: the tokenizer cannot encode a tag or a text of the prompt, or lacks the token that
        the template begins with.
      UsageError: the system message is still to be read from a chat template.
    """

    def __init__(self, tokenizer: Tokenizer, template: TurnTemplate, prompt: Prompt = TASK_ALONE):
        super().__init__(tokenizer, template)
        # Encodes the pieces of one growing text; None for turns.
        self.growing: GrowingText | None = None
        if prompt.growing is not None:
            self.growing = GrowingText(self, prompt.growing)
            self.tags = tuple(dict.fromkeys((*formats.TAGS, *TOKENS)))
            # Decoding stops where a query closes, or at the end of the text.
            self.stop_texts = (SEARCH_CLOSE, template.response_end)
            self.stop = (
                tuple(self.encode(SEARCH_CLOSE)),
                tuple(self.encode(template.response_end)),
            )
        if prompt.system == formats.TEMPLATE_SYSTEM:
            raise UsageError(
                "prompt.system is 'template', but the tokenizer is made from the data and has no "
                "chat template; set it to a text, or to ''"
            )
        self.prompt = prompt
        self.response_open = self.encode(template.response_open)
        self.think_close = template.think_close
        # What stands before the task in every prompt: system message, instruction, examples.
        self.opening = self._encode_opening()

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
        self.prompt.check_listed(admissible)
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
        self.prompt.check_listed(admissible)
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
        turn = self._task_turn(task, observation, admissible, key, lenient)
        return [(self.opening, Role.PROMPT), *turn, *self._text_open()]

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
        # An empty block of reasoning opens the action: it is not a thought.
        opened = self.template.direct_open
        return [*([(self.encode(opened), Role.ACTION_OPEN)] if opened else []), *self.acted(action)]

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
        return [*self.thinks(thought), *self.acted(action)]

    def thinks(self, thought: str, *, lenient: bool = False) -> Segments:
        """Return the reasoning of a response, with its tags."""
        # The template's line breaks around a thought may be part of its tokens, as in ".\n".
        close = self.template.think_close
        broken = close[: len(close) - len(close.lstrip())]
        thought = thought.strip("\n") + broken if broken else thought
        return [
            (self.encode(self.template.think_open), Role.REASONING),
            (self.encode_plain(thought, "the thought", lenient=lenient), Role.REASONING),
            (self.encode(close.lstrip()), Role.REASONING),
        ]

    # ---- private

    def _task_turn(
        self,
        task: str,
        observation: str,
        admissible: Sequence[str] | None,
        key: str,
        lenient: bool = False,
    ) -> Segments:
        """Return the first user turn of an episode, from its task on."""
        task_line = self.prompt.task_line(task)
        return [
            (self.encode_plain(task_line, "the task", lenient=lenient), Role.PROMPT),
            *self._seen(observation, admissible, key, lenient),
            (self.encode(self.template.response_open), Role.PROMPT),
        ]

    def _text_open(self) -> Segments:
        """Return what a growing text begins with, which is part of its prompt; [] for turns."""
        opened = self.template.think_open
        return [] if self.prompt.growing is None else [(self.encode(opened), Role.PROMPT)]

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

    def _encode_opening(self) -> list[int]:
        """Return the ids before the first user turn's task."""
        template, prompt = self.template, self.prompt
        ids = list(self.begin_ids)
        if prompt.system:
            ids += self.encode(template.system_open) if template.system_open else []
            ids += self.encode_wording(prompt.system, "the system message")
            ids += self.encode(template.system_close) if template.system_close else []
            ids += self.encode(template.turn_gap + template.turn_open)
        else:
            ids += self.encode(template.turn_open)
        if prompt.instruction:
            ids += self.encode_wording(f"{prompt.instruction}\n", "the instruction")
        for example in prompt.examples:
            ids += self._encode_example(example)
            ids += self.encode(template.turn_gap + template.turn_open)
        return ids

    def _encode_example(self, example: Example) -> list[int]:
        """Return the ids of an example episode, from its task to the end of its last response."""
        segments: Segments = []
        for number, step in enumerate(example.steps):
            state = step.admissible_commands, formats.state_key(example.game, number)
            try:
                if self.growing is not None and number:
                    segments += self.growing.observed(step.observation)
                elif number:
                    segments += self.next_turn(step.observation, *state)
                else:
                    segments += self._task_turn(example.task, step.observation, *state)
                    segments += self._text_open()
                if self.growing is not None:
                    segments += self.growing.piece(step.thought, step.action)
                elif step.thought is None:
                    segments += self.direct(step.action)
                else:
                    segments += self.reasoned(step.thought, step.action)
            except DataError as error:
                raise DataError(f"the example {example.id!r}, step {number}: {error}") from None
        return [i for ids, _ in segments for i in ids]
