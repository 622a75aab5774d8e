"""Trajectories -> token ids and roles. Text is tokenised once, segment by segment, and never decoded and encoded again.

A trajectory becomes trees of tokens. The trunk is the prompt with its history; each step's reasoned response is a branch that
leaves the trunk where its prompt ends:

    row       prompt 1 | <think> … </action><end> | <action> a1 </action><end> prompt 2 | <think> … </action><end> | …
    branches  0 0 0 0 0  1 1 1 1 1 1 1 1 1 1 1 1    0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0    2 2 2 2 2 2 2 2 2 2 2 2
    positions 0 1 2 3 4  5 6 7 8 …                  5 6 7 8 …                            20 21 …

With the attention rule of `cotjax.model.attention` this trains exactly what one row a step would (each step its own prompt and
response), without encoding the shared history again for every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from cotjax import formats
from cotjax.data.trajectories import Step, Trajectory
from cotjax.errors import DataError, UsageError
from cotjax.formats import TurnTemplate
from cotjax.masking import Role

FORMS = ("cot", "direct")
# What a tokenizer may consist of in a Hugging Face folder. Codec reads the first; transformers reads all.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


@dataclass(frozen=True)
class TokenExample:
    """One tree of tokens; all arrays have length T. `first_step` counts the branches of earlier trees of the same trajectory."""

    id: str
    first_step: int
    ids: np.ndarray
    roles: np.ndarray
    branches: np.ndarray
    positions: np.ndarray


class Codec:
    """Text <-> ids for one tokenizer and one turn template: the only place where either happens.

    Raises:
      DataError: the tokenizer does not know a tag or a word of the text, or a tag stands inside the text.
    """

    def __init__(self, tokenizer: Tokenizer, template: TurnTemplate):
        self.template = template
        self._tokenizer = tokenizer
        self._unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "[UNK]")
        for tag in (*formats.TAGS, template.response_end):
            if not self.encode(tag):
                raise DataError(f"the tokenizer gives no ids for {tag!r}; add it to the tokenizer's vocabulary")
        self.action_prefix = self.encode(formats.ACTION_OPEN)
        # Decoding stops at the end of the turn, or where the action closes: nothing after it is looked at.
        self.stop = (tuple(self.encode(formats.ACTION_CLOSE)), tuple(self.encode(template.response_end)))
        self.pad_id = self._pad_id()

    @classmethod
    def load(cls, folder: str | Path, template: str = "chatml") -> Codec:
        """Read `tokenizer.json` from a local Hugging Face folder."""
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            raise UsageError(f"{file}: no such tokenizer; the model folder must hold tokenizer.json")
        if template not in formats.TEMPLATES:
            raise UsageError(f"unknown turn template {template!r}; there are {', '.join(formats.TEMPLATES)}")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{file}: not a tokenizer ({error})") from None
        return cls(tokenizer, formats.TEMPLATES[template])

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if self._unknown is not None and self._unknown in ids.ids:
            start, end = ids.offsets[ids.ids.index(self._unknown)]
            raise DataError(
                f"the tokenizer does not know {text[start:end]!r} in {text[:60]!r}; use a tokenizer whose vocabulary covers the data"
            )
        return ids.ids

    def encode_plain(self, text: str, what: str) -> list[int]:
        """Encode text that must not hold a tag or an end-of-turn token."""
        for tag in (*formats.TAGS, self.template.response_end):
            if tag in text:
                raise DataError(f"{what} holds {tag!r}, which would be read as a tag; remove it from {text[:60]!r}")
        return self.encode(text)

    def encodable(self, text: str) -> bool:
        """Whether `encode_plain` takes this text."""
        try:
            self.encode_plain(text, "the text")
        except DataError:
            return False
        return True

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def first_prompt(self, task: str, observation: str) -> list[int]:
        """Ids of an episode's first prompt, up to where the response begins."""
        return [i for ids, _ in self._first_turn(task, observation) for i in ids]

    def next_prompt(self, action: str | Sequence[int], observation: str) -> list[int]:
        """Ids to append to a prompt: the executed action as a past direct response, then the next observation.

        `action`: its ids as they were sampled, or its text.
        """
        action_ids = self.encode_plain(action, "the action") if isinstance(action, str) else action
        response = [*self.action_prefix, *action_ids, *self.encode(formats.ACTION_CLOSE), *self.encode(self.template.response_end)]
        return response + [i for ids, _ in self._next_turn(observation) for i in ids]

    def _pad_id(self) -> int:
        for token in ("[PAD]", "<pad>", "<|endoftext|>"):
            found = self._tokenizer.token_to_id(token)
            if found is not None:
                return found
        return 0  # any id will do: padding is in segment 0 and is never attended to nor trained on

    def _first_turn(self, task: str, observation: str) -> list[tuple[list[int], Role]]:
        asked = formats.first_turn(task, "")
        return [
            (self.encode(self.template.turn_open), Role.PROMPT),
            (self.encode_plain(asked, "the task"), Role.PROMPT),
            (self.encode_plain(observation, "the observation"), Role.OBSERVATION),
            (self.encode(self.template.response_open), Role.PROMPT),
        ]

    def _next_turn(self, observation: str) -> list[tuple[list[int], Role]]:
        return [
            (self.encode(self.template.turn_gap + self.template.turn_open), Role.PROMPT),
            (self.encode_plain(observation, "the observation"), Role.OBSERVATION),
            (self.encode(self.template.response_open), Role.PROMPT),
        ]

    def _direct(self, action: str) -> list[tuple[list[int], Role]]:
        return [
            (self.action_prefix, Role.ACTION_OPEN),
            (self.encode_plain(action, "the action"), Role.ACTION),
            (self.encode(formats.ACTION_CLOSE), Role.ACTION_CLOSE),
            (self.encode(self.template.response_end), Role.END),
        ]

    def _reasoned(self, thought: str, action: str) -> list[tuple[list[int], Role]]:
        return [
            (self.encode(formats.THINK_OPEN), Role.REASONING),
            (self.encode_plain(thought, "the thought"), Role.REASONING),
            (self.encode(formats.THINK_CLOSE), Role.REASONING),
            *self._direct(action),
        ]


def trajectory_examples(codec: Codec, trajectory: Trajectory, form: str, max_length: int) -> Iterator[TokenExample]:
    """Yield the trees of one trajectory, each at most `max_length` tokens.

    `form` "cot": the reasoned responses are branches, the past direct responses in the trunk are prompt. `form` "direct":
    no branches; the trunk's direct responses are the responses to train on. A step that is not `trained` is history alone. A
    trajectory too long for one tree goes on in another that holds the trunk again but only the later branches.

    Raises:
      DataError: a step cannot be encoded, has no thought where the form needs one, or its prompt alone is too long; the
        message names the trajectory and the step.
    """
    if form not in FORMS:
        raise UsageError(f"unknown response form {form!r}; there are {', '.join(FORMS)}")
    trunk, tree = _Tokens(), _Tokens()
    first, end = 0, 0  # the tree's first step, and its length up to its last response
    for number, step in enumerate(trajectory.steps):
        where = f"trajectory {trajectory.id!r}, step {number}"
        try:
            turn = codec._first_turn(trajectory.task, step.observation) if number == 0 else codec._next_turn(step.observation)
            branch = _branch(codec, step, form)
            history = codec._direct(step.action)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        trunk.append(turn, branch=0)
        tree.append(turn, branch=0)
        response = _length(branch or history)
        if not step.trained:
            history = [(ids, Role.PROMPT) for ids, _ in history]
        if len(tree) + response > max_length and form == "cot" and number > first:
            yield tree.cut(end).example(trajectory.id, first)
            tree, first, end = trunk.copy(), number, 0
        if len(tree) + response > max_length:
            if number == 0:
                raise DataError(f"{where}: prompt and response take {len(tree) + response} tokens, the limit is {max_length}")
            break  # later prompts are longer still
        if form == "cot":
            tree.append(branch, branch=number - first + 1)
            end = len(tree) if step.trained else end
            history = [(ids, Role.PROMPT) for ids, _ in history]
        trunk.append(history, branch=0)
        tree.append(history, branch=0)
        if form == "direct" and step.trained:
            end = len(tree)
    if end:
        yield tree.cut(end).example(trajectory.id, first)


def _branch(codec: Codec, step: Step, form: str) -> list[tuple[list[int], Role]]:
    if form == "direct" or not step.trained:
        return []
    if step.thought is None:
        raise DataError("the step has no thought, which the form 'cot' trains on")
    return codec._reasoned(step.thought, step.action)


def _length(segments: Sequence[tuple[list[int], Role]]) -> int:
    return sum(len(ids) for ids, _ in segments)


class _Tokens:
    """Growing token arrays; positions of a branch continue from its trunk."""

    def __init__(self):
        self.ids: list[int] = []
        self.roles: list[int] = []
        self.branches: list[int] = []
        self.positions: list[int] = []
        self._trunk_length = 0

    def __len__(self) -> int:
        return len(self.ids)

    def copy(self) -> _Tokens:
        other = _Tokens()
        for name in ("ids", "roles", "branches", "positions"):
            setattr(other, name, list(getattr(self, name)))
        other._trunk_length = self._trunk_length
        return other

    def append(self, segments: Sequence[tuple[list[int], Role]], branch: int) -> None:
        position = self._trunk_length
        for ids, role in segments:
            self.ids.extend(ids)
            self.roles.extend([int(role)] * len(ids))
            self.branches.extend([branch] * len(ids))
            self.positions.extend(range(position, position + len(ids)))
            position += len(ids)
        if branch == 0:
            self._trunk_length = position

    def cut(self, length: int) -> _Tokens:
        kept = self.copy()
        for name in ("ids", "roles", "branches", "positions"):
            del getattr(kept, name)[length:]
        return kept

    def example(self, id: str, first_step: int) -> TokenExample:
        return TokenExample(
            id,
            first_step,
            np.asarray(self.ids, np.int32),
            np.asarray(self.roles, np.int32),
            np.asarray(self.branches, np.int32),
            np.asarray(self.positions, np.int32),
        )
