"""Decoding one turn of all live slots."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from cotjax.errors import NotFiniteError
from cotjax.rollout.contracts import Codec, Generation, Policy
from cotjax.rollout.elicitation import Elicitation
from cotjax.rollout.episode import Chosen, RunningEpisode, read_response
from cotjax.rollout.record import Driver, Response
from cotjax.rollout.tokens import action_ids, check_prompt

KINDS = ("cot", "prompt")
# A CoT response may need this many tokens more than its limit (tags, end of turn).
_MARGIN = 8


class TurnDecoder:
    """Extends the prompts of all live slots by one turn and decodes responses from them.

    `act` decodes the driver's actions, for which the environments wait. `compare` decodes the
    other kind of action of the same states, for which they need not wait.

    Attributes:
      chosen: slot -> the action for its environment.
      last: slots whose episode ends with this turn, whatever their environment answers.
      responses: slot -> kind of action -> response.
    """

    def __init__(
        self,
        policy: Policy,
        codec: Codec,
        elicitation: Elicitation,
        driver: Driver,
        references: Mapping[str, Sequence[str]] | None,
        both: bool,
    ):
        self._policy, self._codec, self._elicitation = policy, codec, elicitation
        self._driver, self._references = driver, references or {}
        self._driving = [kind for kind in KINDS if kind == driver]
        self._compared = [kind for kind in KINDS if both and kind != driver]
        # What is prefilled before a response, as text and as ids; and its limit in tokens.
        self._prefix = {"cot": elicitation.cot_prefix, "prompt": elicitation.prompt_prefix}
        self._prefix_ids = {kind: codec.prefill(text) for kind, text in self._prefix.items()}
        self._max_new = {"cot": elicitation.max_new_tokens, "prompt": elicitation.max_action_tokens}
        self._ready: dict[int, RunningEpisode] = {}
        self._seeds: dict[str, dict[int, int]] = {}
        self.chosen: dict[int, Chosen] = {}
        self.last: set[int] = set()
        self.responses: dict[int, dict[str, Response]] = defaultdict(dict)

    @property
    def actions(self) -> dict[int, str]:
        """Slot -> the text for its environment."""
        return {slot: chosen.text for slot, chosen in self.chosen.items()}

    def act(self, live: Mapping[int, RunningEpisode]) -> None:
        """Extend the prompts and decode the driver's actions.

        An episode whose prompt no longer fits ends as "length".
        """
        self._end_full_slots(live)
        self._ready = {slot: episode for slot, episode in live.items() if episode.ended is None}
        if not self._ready:
            return
        started_at = time.perf_counter()
        self._policy.extend({slot: episode.next_piece for slot, episode in self._ready.items()})
        for slot, episode in self._ready.items():
            episode.prompt += episode.next_piece
            check_prompt(episode.where, episode.prompt, self._policy.prompt(slot))
        self._seeds = {
            kind: {slot: episode.draw_seed(kind) for slot, episode in self._ready.items()}
            for kind in KINDS
        }
        for kind in self._driving:
            self._decode(kind)
        self._charge(started_at)
        for slot, episode in self._ready.items():
            self.chosen[slot] = self._choose(slot, episode)
            if len(episode.turns) + 1 >= self._elicitation.max_steps:
                self.last.add(slot)

    def compare(self) -> None:
        """Decode the other actions of the same states, from the same cached prompts."""
        if not self._ready:
            return
        started_at = time.perf_counter()
        for kind in self._compared:
            self._decode(kind)
        self._charge(started_at)

    def _end_full_slots(self, live: Mapping[int, RunningEpisode]) -> None:
        response = max(
            self._max_new["cot"] + _MARGIN,
            *(len(self._prefix_ids[kind]) + self._max_new[kind] for kind in KINDS),
        )
        lengths = self._policy.lengths
        for slot, episode in live.items():
            needed = lengths[slot] + len(episode.next_piece) + response
            if episode.ended is None and needed > self._policy.max_length:
                episode.ended = "length"

    def _charge(self, started_at: float) -> None:
        """Share the time since then among the slots."""
        seconds = (time.perf_counter() - started_at) / len(self._ready)
        for episode in self._ready.values():
            episode.sampler_s += seconds

    def _decode(self, kind: str) -> None:
        """Decode one kind of response from every prompt."""
        for slot, generation in self._sample(kind).items():
            self.responses[slot][kind] = read_response(
                generation,
                self._codec,
                self._ready[slot].seen,
                prefix=self._prefix[kind],
                prefilled=kind == "prompt",
                seed=self._seeds[kind][slot],
            )

    def _sample(self, kind: str) -> Mapping[int, Generation]:
        """Raises NotFiniteError, naming the game and the step."""
        try:
            generations = self._policy.sample(
                dict.fromkeys(self._ready, self._prefix_ids[kind]),
                max_new=self._max_new[kind],
                seeds=self._seeds[kind],
                **self._elicitation.how,
            )
        except NotFiniteError as error:
            where = self._ready[error.slot].where
            raise NotFiniteError(f"{where}: {error}", error.slot) from None
        for slot, generation in generations.items():
            if generation.logprobs is not None and not np.isfinite(generation.logprobs).all():
                raise NotFiniteError(
                    f"{self._ready[slot].where}: a log-probability is not finite; look at the "
                    "policy's weights",
                    slot,
                )
        return generations

    def _choose(self, slot: int, episode: RunningEpisode) -> Chosen:
        """Return the driver's action: the model's, or the expert's."""
        if self._driver == "reference":
            reference = self._references[episode.game.id][len(episode.turns)]
            return Chosen(reference, None, reference)
        response = self.responses[slot][self._driver]
        # Environments do not accept an empty command: an invalid response costs a step.
        text = "" if response.action is None else response.action
        if not response.valid:
            return Chosen(text, None, None)
        opened = self._prefix[self._driver]
        return Chosen(text, action_ids(self._codec, response.ids, text, opened=opened), None)
