"""Other words for a text, written by the checkpoint itself or by a model behind an endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Protocol

from cotjax import formats
from cotjax.endpoint.client import Client
from cotjax.errors import DataError
from cotjax.probes.probe import Checkpoint

PARAPHRASE = (
    "Rewrite the following text in other words. Keep its meaning, and every name and number in "
    "it. Answer with the rewritten text alone.\n\n{text}"
)
MISTAKE = (
    "Rewrite the following sentence so that one fact in it is wrong. Answer with the rewritten "
    "sentence alone.\n\n{text}"
)
# A rewritten text has at least one of so many words of the original, and at most so many times.
_SHORTEST, _LONGEST = 3, 3


class Writer(Protocol):
    """Writes texts."""

    def write(self, requests: Sequence[str]) -> list[str | None]:
        """Return the answer to each request; None where there is none that ended by itself."""


class SelfWriter:
    """The checkpoint, asked in a user turn of its own. A base that only plays cannot answer."""

    def __init__(self, at: Checkpoint):
        self._at = at

    def write(self, requests: Sequence[str]) -> list[str | None]:
        """Return greedy answers; None for a request that the tokenizer cannot spell."""
        codec, policy, settings = self._at.codec, self._at.policy, self._at.config.evaluate
        answers: list[str | None] = [None] * len(requests)
        prompts = {}
        opening = [*codec.begin_ids, *codec.encode(codec.template.turn_open)]
        prefix = codec.encode(codec.template.direct_open) if codec.template.direct_open else []
        for index, request in enumerate(requests):
            try:
                asked = codec.encode_plain(request, "the request")
            except DataError:
                continue
            ids = [*opening, *asked, *codec.response_open]
            if len(ids) + len(prefix) + settings.max_new_tokens <= policy.max_length:
                prompts[index] = ids
        numbers = list(prompts)
        for start in range(0, len(numbers), policy.slots):
            batch = dict(enumerate(numbers[start : start + policy.slots]))
            policy.reset(range(policy.slots))
            policy.extend({slot: prompts[index] for slot, index in batch.items()})
            generations = policy.sample(
                dict.fromkeys(batch, prefix),
                max_new=settings.max_new_tokens,
                seeds=dict.fromkeys(batch, 0),
                temperature=0.0,
            )
            for slot, index in batch.items():
                if generations[slot].stopped:
                    text = codec.decode(generations[slot].ids)
                    answers[index] = text.partition(codec.template.response_end)[0].strip()
        return answers


class EndpointWriter:
    """A model behind an OpenAI-compatible endpoint; answers are kept in `cache`."""

    def __init__(self, url: str, model: str, cache: Path, key_variable: str, most_tokens: int):
        self._connect = partial(Client, url, model, cache, key_variable=key_variable)
        self._most_tokens = most_tokens

    def write(self, requests: Sequence[str]) -> list[str | None]:
        """Return the endpoint's greedy answers. Raises as `Client.ask`."""
        asked = [
            {
                "messages": [{"role": "user", "content": request}],
                "max_tokens": self._most_tokens,
                "temperature": 0.0,
            }
            for request in requests
        ]
        with closing(self._connect()) as client:
            return [each.text.strip() if each.stopped else None for each in client.ask(asked)]


def rewritten(original: str, answer: str | None) -> str | None:
    """Return an answer that can stand for the original; None for one that cannot.

    It is another text of about the same length, without tags.
    """
    if not answer or any(tag in answer for tag in formats.TAGS):
        return None
    words, before = answer.lower().split(), original.lower().split()
    if words == before or not len(before) / _SHORTEST <= len(words) <= len(before) * _LONGEST:
        return None
    return answer
