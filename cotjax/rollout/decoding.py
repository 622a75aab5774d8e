"""Decoding one turn of all live slots."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from cotjax.errors import DataError, NotFiniteError, UsageError
from cotjax.formats.search import RESULT_OPEN, Piece
from cotjax.rollout.constrained import action_branches, choose, reasoning_before
from cotjax.rollout.contracts import Codec, Generation, Policy
from cotjax.rollout.elicitation import CONSTRAINED, Elicitation
from cotjax.rollout.episode import Chosen, RunningEpisode, read_response
from cotjax.rollout.growing import read_piece, without_results
from cotjax.rollout.record import KINDS, Choice, Driver, Kind, Response
from cotjax.rollout.tokens import action_ids, check_prompt

# The kinds of action that are decoded freely.
_FREE = tuple(kind for kind in KINDS if kind not in CONSTRAINED)
# A CoT response may need this many tokens more than its limit (tags, end of turn).
_MARGIN = 8
# Game's id -> an expert's actions, and the thoughts before them.
Experts = tuple[Mapping[str, Sequence[str]], Mapping[str, Sequence[str | None]]]
T = TypeVar("T")


class TurnDecoder:
    """Extends the prompts of all live slots by one turn and decodes actions from them.

    `act` decodes the driver's actions, for which the environments wait. `compare` decodes the
    other kinds of action of the same states, for which they need not wait.

    Attributes:
      chosen: slot -> the action for its environment.
      last: slots whose episode ends with this turn, whatever their environment answers.
      decoded: slot -> kind of action -> response or choice.
    """

    def __init__(
        self,
        policy: Policy,
        codec: Codec,
        elicitation: Elicitation,
        driver: Driver,
        experts: Experts,
        kinds: Collection[Kind],
    ):
        """`kinds`: those decoded, in their order (elicitation.kinds_decoded)."""
        self._policy, self._codec, self._elicitation = policy, codec, elicitation
        self._driver, (self._references, self._thoughts) = driver, experts
        # A constrained choice follows the reasoning of the CoT response.
        driving = {driver, "cot"} if driver == "cot_constrained" else {driver}
        self._driving = [kind for kind in kinds if kind in driving]
        self._compared = [kind for kind in kinds if kind not in driving]
        self._constrained = [kind for kind in kinds if kind in CONSTRAINED]
        # What is prefilled before a response, as text and as ids; and its limit in tokens.
        self._prefix = {
            "cot": elicitation.cot_prefix,
            "prompt": elicitation.prompt_prefix,
            "instructed": "",
        }
        self._prefix_ids = {kind: codec.prefill(text) for kind, text in self._prefix.items()}
        if "instructed" in kinds:
            self._prefix_ids["instructed"] = instruction_ids(codec, elicitation.instruction)
        self._max_new = {
            "cot": elicitation.max_new_tokens,
            "prompt": elicitation.max_action_tokens,
            "instructed": elicitation.max_new_tokens,
        }
        self._ready: dict[int, RunningEpisode] = {}
        self._seeds: dict[str, dict[int, int]] = {}
        self._pieces: dict[int, Piece] = {}  # slot -> the driver's piece of a growing text
        self._branches: dict[int, list[list[int]]] = {}  # slot -> ids of each admissible action
        self.chosen: dict[int, Chosen] = {}
        self.last: set[int] = set()
        self.decoded: dict[int, dict[Kind, Response | Choice]] = defaultdict(dict)

    @property
    def actions(self) -> dict[int, str]:
        """Slot -> the text for its environment."""
        return {slot: chosen.text for slot, chosen in self.chosen.items()}

    def act(self, live: Mapping[int, RunningEpisode]) -> None:
        """Extend the prompts and decode the driver's actions.

        An episode whose prompt no longer fits ends as "length". Raises UsageError where an action
        is to be chosen, and the environment lists none to choose among.
        """
        going_on = {slot: episode for slot, episode in live.items() if episode.ended is None}
        if self._constrained:
            self._branches = {
                slot: action_branches(self._codec, _commands(episode))
                for slot, episode in going_on.items()
            }
        self._end_full_slots(going_on)
        self._ready = {slot: each for slot, each in going_on.items() if each.ended is None}
        if not self._ready:
            return
        started_at = time.perf_counter()
        self._policy.extend({slot: episode.next_piece for slot, episode in self._ready.items()})
        for slot, episode in self._ready.items():
            episode.prompt += episode.next_piece
            check_prompt(episode.where, episode.prompt, self._policy.prompt(slot))
        self._seeds = {
            kind: {slot: episode.draw_seed(kind) for slot, episode in self._ready.items()}
            for kind in _FREE
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

    def refuse(self, slot: int) -> None:
        """Make the driver's response invalid: results that the policy wrote after it do not end."""
        response = self.decoded[slot][self._driving[0]]
        assert isinstance(response, Response)
        self.decoded[slot][self._driving[0]] = without_results(response)

    def _end_full_slots(self, live: Mapping[int, RunningEpisode]) -> None:
        lengths = self._policy.lengths
        for slot, episode in live.items():
            needed = lengths[slot] + len(episode.next_piece) + self._longest(slot)
            if needed > self._policy.max_length:
                episode.ended = "length"

    def _longest(self, slot: int) -> int:
        """Return the most tokens that may follow a slot's prompt."""
        lengths = [self._max_new["cot"] + _MARGIN]
        lengths += [
            len(self._prefix_ids[kind]) + self._max_new[kind]
            for kind in _FREE
            if kind != "instructed" or kind in {*self._driving, *self._compared}
        ]
        if self._elicitation.simulated:
            opened = len(self._codec.encode(RESULT_OPEN))
            lengths.append(lengths[0] + opened + self._elicitation.max_result_tokens)
        if self._constrained:
            codec = self._codec
            action = len(codec.action_prefix) + max(map(len, self._branches[slot]), default=0)
            lengths.append(action)
            if "cot_constrained" in self._constrained:
                lengths.append(lengths[0] + len(codec.encode(codec.think_close)) + action)
        return max(lengths)

    def _charge(self, started_at: float) -> None:
        """Share the time since then among the slots."""
        seconds = (time.perf_counter() - started_at) / len(self._ready)
        for episode in self._ready.values():
            episode.sampler_s += seconds

    def _decode(self, kind: Kind) -> None:
        """Decode one kind of action from every prompt."""
        if kind in CONSTRAINED:
            return self._constrain(kind)
        for slot, generation in self._sample(kind).items():
            self.decoded[slot][kind] = self._read(kind, slot, generation)

    def _read(self, kind: Kind, slot: int, generation: Generation) -> Response:
        prefix, seed = self._prefix[kind], self._seeds[kind][slot]
        if self._codec.growing is not None:
            response, piece = read_piece(generation, self._codec, prefix=prefix, seed=seed)
            if kind == self._driver:
                self._pieces[slot] = piece
            return response
        return read_response(
            generation,
            self._codec,
            self._ready[slot].seen,
            prefix=prefix,
            prefilled=kind == "prompt",
            seed=seed,
            to_end=self._to_end(kind),
        )

    def _to_end(self, kind: Kind) -> bool:
        """Return whether a kind is decoded up to the end of the turn."""
        return kind == "cot" and self._elicitation.to_end

    def _sample(self, kind: Kind) -> Mapping[int, Generation]:
        """Raises NotFiniteError, naming the game and the step."""
        how: dict[str, Any] = dict(self._elicitation.how(kind))
        if kind == "instructed":
            # The instruction belongs to the user's turn, which the prompt's last ids have closed.
            how["back"] = len(self._codec.response_open)
        if self._to_end(kind):
            how["stop"] = self._codec.stop_texts[-1:]
        generations = self._named(
            lambda: self._policy.sample(
                dict.fromkeys(self._ready, self._prefix_ids[kind]),
                max_new=self._max_new[kind],
                seeds=self._seeds[kind],
                **how,
            )
        )
        for slot, generation in generations.items():
            if generation.logprobs is not None and not np.isfinite(generation.logprobs).all():
                raise NotFiniteError(
                    f"{self._ready[slot].where}: a log-probability is not finite; look at the "
                    "policy's weights",
                    slot,
                )
        return generations

    def _constrain(self, kind: Kind) -> None:
        """Choose among the admissible actions of every state."""
        prefixes = {slot: self._before_action(kind, slot) for slot in self._ready}
        branches = {slot: self._branches[slot] for slot in self._ready}
        scored = self._named(lambda: self._policy.score_branches(prefixes, branches))
        for slot, episode in self._ready.items():
            self.decoded[slot][kind] = choose(
                _commands(episode),
                branches[slot],
                scored[slot],
                prefix_ids=prefixes[slot],
                close=len(self._codec.stop[0]),
                by=self._elicitation.constrained_by,
            )

    def _before_action(self, kind: Kind, slot: int) -> list[int]:
        """Return the ids between a slot's prompt and its action."""
        response = self.decoded[slot]["cot"] if kind == "cot_constrained" else None
        if not isinstance(response, Response):
            return self._prefix_ids["prompt"]
        return reasoning_before(self._codec, [*self._prefix_ids["cot"], *response.ids])

    def _named(self, call: Callable[[], T]) -> T:
        """Return what a call of the policy returns; its NotFiniteError gets game and step."""
        try:
            return call()
        except NotFiniteError as error:
            where = self._ready[error.slot].where
            raise NotFiniteError(f"{where}: {error}", error.slot) from None

    def _choose(self, slot: int, episode: RunningEpisode) -> Chosen:
        """Return the driver's action: the model's, or the expert's."""
        growing, turn = self._codec.growing, len(episode.turns)
        if self._driver == "reference":
            reference = self._references[episode.game.id][turn]
            if growing is None:
                return Chosen(reference, None, reference)
            thought = self._thoughts[episode.game.id][turn]
            return Chosen(reference, growing.piece_ids(thought, reference), reference)
        decoded = self.decoded[slot][self._driver]
        if growing is not None:
            piece = self._pieces[slot]
            # Nothing can be appended to a text that its writer has ended.
            self.last |= set() if piece.searched else {slot}
            ids = [*self._prefix_ids[self._driver], *decoded.ids]
            return Chosen(growing.action_of(piece), ids, None)
        # Environments do not accept an empty command: an invalid response costs a step.
        text = "" if decoded.action is None else decoded.action
        if isinstance(decoded, Choice):
            return Chosen(text, list(decoded.ids) if text else None, None)
        if not decoded.valid:
            return Chosen(text, None, None)
        opened = self._prefix[self._driver]
        return Chosen(text, action_ids(self._codec, decoded.ids, text, opened=opened), None)


def instruction_ids(codec: Codec, instruction: str) -> list[int]:
    """Return the ids that take the place of `response_open` before an instructed response.

    Raises DataError where the tokenizer does not know a word of the instruction.
    """
    try:
        line = codec.encode_plain(f"\n{instruction}", "the instruction")
    except DataError as error:
        raise DataError(
            f"evaluate.instruction: {error}; or leave 'instructed' out of evaluate.elicitations "
            "and evaluate.offline"
        ) from None
    return [*line, *codec.response_open]


def _commands(episode: RunningEpisode) -> Sequence[str]:
    """Return the admissible actions. Raises UsageError where the environment lists none."""
    commands = episode.seen.admissible_commands
    if commands is None:
        raise UsageError(
            f"{episode.where}: the world lists no admissible actions to choose among; leave the "
            "constrained kinds out of evaluate.elicitations and evaluate.offline"
        )
    return commands
