"""What the loop needs of a policy, a codec and environments, as protocols."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from cotjax.envs.base import Game, Observation
from cotjax.errors import EnvError
from cotjax.formats.search import Piece


class Generation(Protocol):
    """What a policy sampled from one prompt."""

    @property
    def ids(self) -> Sequence[int]:
        """The sampled ids, stop sequence included."""

    @property
    def logprobs(self) -> Sequence[float] | None:
        """Natural logarithm of each id's probability; None from a policy that reports none."""

    @property
    def new_tokens(self) -> int:
        """Number of tokens that the model wrote: of `ids`, where those are its tokens."""

    @property
    def stopped(self) -> bool:
        """Whether the model ended it; else it ran into a limit."""


class Policy(Protocol):
    """Slots of cached prompts, ids in and ids out (`cotjax.sample.sampler.Sampler` is one)."""

    @property
    def slots(self) -> int:
        """Number of slots."""

    @property
    def max_length(self) -> int:
        """The most tokens that a slot's prompt and response may have together."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each slot's prompt, int [slots]."""

    def reset(self, slots: Iterable[int]) -> None:
        """Empty these slots."""

    def extend(self, pieces: Mapping[int, Sequence[int]]) -> None:
        """Append ids to the prompts of these slots."""

    def prompt(self, slot: int) -> Sequence[int]:
        """Return the ids of a slot's prompt."""

    def sample(
        self,
        prefixes: Mapping[int, Sequence[int]],
        *,
        max_new: int,
        seeds: Mapping[int, int],
        **how: Any,
    ) -> Mapping[int, Generation]:
        """Sample from each slot's prompt plus its prefix, and leave the prompts unchanged.

        `how`: the fields that `Elicitation.how` names; `back`, of an instructed response: the
        prefix takes the place of this many of the prompt's last ids; and `stop`, of results that
        the policy writes itself, or of responses up to the end of the turn: texts that end them,
        in place of the codec's.
        """

    def score_branches(
        self,
        prefixes: Mapping[int, Sequence[int]],
        branches: Mapping[int, Sequence[Sequence[int]]],
    ) -> Mapping[int, Sequence[Sequence[float]]]:
        """Return the log-probability of each id of each branch after the slot's prompt and prefix.

        Prompts stay unchanged. Needed for constrained choice alone.
        """


class GrowingText(Protocol):
    """One growing text in ids (`cotjax.data.growing_text.GrowingText` is one)."""

    def action_of(self, piece: Piece) -> str:
        """Return the action that the environment receives; "" where the text is over."""

    def observed_ids(self, observation: str) -> list[int]:
        """Return the ids that the text goes on with after a search. Accepts any text."""

    def piece_ids(self, thought: str | None, action: str) -> list[int]:
        """Return the ids of a step, as training has them."""


class Codec(Hashable, Protocol):
    """Text to ids and back (`cotjax.data.codec.Codec` is one)."""

    @property
    def action_prefix(self) -> Sequence[int]:
        """Ids that open an action."""

    @property
    def stop(self) -> Sequence[Sequence[int]]:
        """Ids of each of `stop_texts`; the first closes the action."""

    @property
    def stop_texts(self) -> Sequence[str]:
        """Texts at which a response ends."""

    @property
    def pieces(self) -> Sequence[str | None]:
        """Text of each id; None where an id is no token."""

    @property
    def response_open(self) -> Sequence[int]:
        """Ids that every prompt ends with: the end of the user's turn and what opens a response."""

    @property
    def think_close(self) -> str:
        """What closes a thought: `</think>`, with the template's line breaks."""

    @property
    def growing(self) -> GrowingText | None:
        """How an episode is written as one growing text; None for turns."""

    def encode(self, text: str) -> list[int]:
        """Encode marks and tags."""

    def encode_plain(self, text: str, what: str, *, lenient: bool = False) -> list[int]:
        """Encode content; with `lenient` any text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of these ids."""

    def encodable(self, text: str) -> bool:
        """Whether an action with this text may be executed."""

    def prefill(self, text: str) -> list[int]:
        """Encode a text that is prefilled before a response."""

    def first_prompt(
        self, task: str, observation: str, admissible: Sequence[str] | None = None, key: str = ""
    ) -> list[int]:
        """Return the ids of an episode's first prompt.

        `admissible`: the state's admissible actions; None where they cannot be listed. `key`:
        "<game id>/<turn>".
        """

    def next_prompt(
        self,
        action: str | Sequence[int],
        observation: str,
        admissible: Sequence[str] | None = None,
        key: str = "",
    ) -> list[int]:
        """Return the ids to append: the executed action and the next observation."""


class Environments(Protocol):
    """Slots of environments (`cotjax.envs.pool.pool.EnvPool` is one)."""

    def reset(self, games: dict[int, Game]) -> Mapping[int, tuple[str, Observation] | EnvError]:
        """Start a game in each slot; return (task, first observation), or what went wrong."""

    def step(self, actions: dict[int, str]) -> Mapping[int, Observation | EnvError]:
        """Send an action to each slot; return what follows, or what went wrong."""

    def faults(self, slot: int) -> Sequence[str]:
        """Return the faults of the slot's current episode, retried with success or not."""
