"""An endpoint's model as a policy of the host-side loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cotjax.endpoint.client import Answer, Client
from cotjax.endpoint.messages import MessageCodec, to_messages
from cotjax.errors import InternalError, UsageError

# Drawing that the protocol does not have -> the value at which it changes nothing.
_UNKNOWN = {"top_k": 0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
_SEED_BITS = 31  # servers read a seed as a signed 32-bit integer


@dataclass(frozen=True)
class Generation:
    """A response as characters; an endpoint reports no log-probabilities of them.

    `new_tokens`: that the server counted; the number of characters where it does not say.
    """

    ids: tuple[int, ...]
    stopped: bool
    new_tokens: int
    logprobs: None = None


def check_drawing(how: Mapping[str, Any]) -> None:
    """Raise UsageError for a way of drawing that the protocol does not have."""
    for name, nothing in _UNKNOWN.items():
        if how.get(name, nothing) != nothing:
            raise UsageError(
                f"evaluate.{name} is {how[name]}, which endpoints do not have; set it to {nothing}"
            )


class EndpointPolicy:
    """Slots of prompts, answered by an endpoint. Lengths of prompts are in characters.

    An episode whose prompt is too long for the endpoint's model gets an empty response, and its
    slot is full from then on. It cannot score, so constrained kinds of action are not available.
    """

    max_length = 1 << 30  # the server knows how long a prompt may be

    def __init__(self, client: Client, codec: MessageCodec, slots: int):
        self._client, self._codec, self.slots = client, codec, slots
        self._prompts: list[list[int]] = [[] for _ in range(slots)]
        self._full: set[int] = set()

    @property
    def lengths(self) -> np.ndarray:
        """Characters of each slot's prompt, int [slots]; `max_length` of a full slot."""
        return np.array(
            [
                self.max_length if slot in self._full else len(prompt)
                for slot, prompt in enumerate(self._prompts)
            ]
        )

    def reset(self, slots: Iterable[int]) -> None:
        """Empty these slots."""
        for slot in slots:
            self._prompts[slot] = []
            self._full.discard(slot)

    def extend(self, pieces: Mapping[int, Sequence[int]]) -> None:
        """Append ids to the prompts of these slots."""
        for slot, ids in pieces.items():
            self._prompts[slot] += ids

    def prompt(self, slot: int) -> Sequence[int]:
        """Return the ids of a slot's prompt."""
        return self._prompts[slot]

    def sample(
        self,
        prefixes: Mapping[int, Sequence[int]],
        *,
        max_new: int,
        seeds: Mapping[int, int],
        temperature: float = 0.0,
        top_p: float = 1.0,
        back: int = 0,
        **how: Any,
    ) -> dict[int, Generation]:
        """Ask for a response from each slot's prompt plus its prefix.

        `max_new` counts the server's tokens.

        Raises:
          UsageError: a way of drawing that the protocol does not have, a prefix that the endpoint
            does not continue, or what `Client.ask` raises.
        """
        check_drawing(how)
        drawn = {"max_tokens": max_new, "temperature": temperature, "top_p": top_p}
        requests = [
            {
                **self._request(slot, prefix, back),
                **drawn,
                # A greedy response is the same whatever the seed, and so its request is.
                **({"seed": seeds[slot] % 2**_SEED_BITS} if temperature > 0 else {}),
            }
            for slot, prefix in prefixes.items()
        ]
        answers = self._client.ask(requests)
        return {
            slot: self._generation(slot, answer)
            for slot, answer in zip(prefixes, answers, strict=True)
        }

    def score_branches(
        self,
        prefixes: Mapping[int, Sequence[int]],
        branches: Mapping[int, Sequence[Sequence[int]]],
    ) -> Mapping[int, Sequence[Sequence[float]]]:
        """Raise InternalError: settings that need scores are refused before anything is asked."""
        raise InternalError("an endpoint was asked to score actions")

    def _request(self, slot: int, prefix: Sequence[int], back: int) -> dict[str, Any]:
        prompt = self._prompts[slot]
        ids = [*prompt[: len(prompt) - back], *prefix]
        *asked, response = to_messages(ids)
        if not response["content"]:
            return {"messages": asked}
        extra = self._client.prefill
        if extra is None:
            raise UsageError(
                f"{self._client.url} does not continue a response that is begun for it, so prompt "
                "actions are not available; leave 'prompt' out, or use 'instructed'"
            )
        return {"messages": [*asked, response], **extra}

    def _generation(self, slot: int, answer: Answer) -> Generation:
        if answer.too_long:
            self._full.add(slot)
        ids = tuple(self._codec.encode(answer.text))
        tokens = len(ids) if answer.tokens is None else answer.tokens
        return Generation(ids, answer.stopped, tokens)
