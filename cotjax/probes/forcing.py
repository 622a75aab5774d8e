"""Forces thoughts: the action that a checkpoint gives after a thought that it did not write.

    prompt of the state | <think> the given thought </think><action>   sampled: action </action>
    prompt of the state | <think> the given beginning                  sampled: thought and action

The prompt's ids are those of the record, and the thought is encoded as in training. What is sampled
is drawn as the study's elicitation says. The seed depends on state and thought alone, so the same
thought always gets the same action.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cotjax.data.codec import Codec
from cotjax.diagnostics.episodes import action_of
from cotjax.envs.base import Observation
from cotjax.errors import DataError, NotFiniteError
from cotjax.probes.probe import Checkpoint, State
from cotjax.rollout.contracts import Generation
from cotjax.rollout.elicitation import DRAWN
from cotjax.rollout.episode import read_response
from cotjax.rollout.tokens import check_prompt


@dataclass(frozen=True)
class Asked:
    """A thought that is forced. `closed`: it is over; else the model goes on with it."""

    thought: str
    closed: bool = True


@dataclass(frozen=True)
class Answer:
    """What followed a forced thought.

    Attributes:
      action: with whitespace normalised; None where the response is invalid.
      reason: why it is invalid, as in records.
      tokens: of the thought that was forced.
    """

    action: str | None
    reason: str | None
    tokens: int


Wanted = Sequence[tuple[State, Collection[Asked]]]


class Forcing:
    """Forces thoughts at many states at once.

    Args:
      name: of the probe; seeds depend on it.
    """

    def __init__(self, at: Checkpoint, name: str):
        settings = at.config.evaluate
        self._at, self._name = at, name
        self._how = {field: settings[field] for field in DRAWN}
        self._most_new = {True: settings.max_action_tokens, False: settings.max_new_tokens}

    def decode(self, wanted: Wanted) -> Iterator[tuple[State, dict[Asked, Answer]]]:
        """Yield every state with what followed each of its thoughts.

        A thought that does not fit into `evaluate.max_length` has no answer.

        Raises NotFiniteError, naming the game and the step.
        """
        # Prompts of about the same length share a batch.
        ordered = sorted(wanted, key=lambda each: (-len(each[0].prompt_ids), each[0].key))
        slots = self._at.policy.slots
        for start in range(0, len(ordered), slots):
            batch = ordered[start : start + slots]
            yield from zip((state for state, _ in batch), self._decode_batch(batch), strict=True)

    def _decode_batch(self, batch: Wanted) -> list[dict[Asked, Answer]]:
        policy = self._at.policy
        policy.reset(range(policy.slots))
        states = dict(enumerate(state for state, _ in batch))
        policy.extend({slot: state.prompt_ids for slot, state in states.items()})
        for slot, state in states.items():
            check_prompt(_where(state), state.prompt_ids, policy.prompt(slot))
        answers: list[dict[Asked, Answer]] = [{} for _ in batch]
        for closed in (True, False):
            # In each round one thought of every slot, without those that came before.
            rows = [
                [each for each in dict.fromkeys(asked) if each.closed == closed]
                for _, asked in batch
            ]
            for number in range(max(map(len, rows), default=0)):
                now = {slot: row[number] for slot, row in enumerate(rows) if number < len(row)}
                for slot, answer in self._round(states, now, closed).items():
                    answers[slot][now[slot]] = answer
        return answers

    def _round(
        self, states: Mapping[int, State], now: Mapping[int, Asked], closed: bool
    ) -> dict[int, Answer]:
        """Decode one thought of each slot."""
        codec, policy = self._at.codec, self._at.policy
        most_new = self._most_new[closed]
        prefixes = {slot: forced_ids(codec, asked) for slot, asked in now.items()}
        fitting = {
            slot: ids
            for slot, ids in prefixes.items()
            if policy.lengths[slot] + len(ids) + most_new <= policy.max_length
        }
        if not fitting:
            return {}
        seeds = {slot: self._seed(states[slot], now[slot]) for slot in fitting}
        try:
            generations = policy.sample(fitting, max_new=most_new, seeds=seeds, **self._how)
        except NotFiniteError as error:
            raise NotFiniteError(f"{_where(states[error.slot])}: {error}", error.slot) from None
        return {
            slot: self._read(generations[slot], states[slot], now[slot], seeds[slot])
            for slot in fitting
        }

    def _read(self, generation: Generation, state: State, asked: Asked, seed: int) -> Answer:
        response = read_response(
            generation,
            self._at.codec,
            Observation("", state.turn.admissible_commands, won=False, done=False),
            # The thought itself is not read again: it is text, whatever it says.
            prefix="" if asked.closed else self._at.codec.template.think_open,
            prefilled=asked.closed,
            seed=seed,
        )
        return Answer(action_of(response), response.reason, tokens(self._at.codec, asked.thought))

    def _seed(self, state: State, asked: Asked) -> int:
        """Return 64 bits that the state and the thought alone decide."""
        key = (self._at.config.seed, self._name, *state.key, asked.thought, asked.closed)
        digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")


def forced_ids(codec: Codec, asked: Asked) -> list[int]:
    """Return the ids of a thought as training has them; of a closed one, with `<action>` behind."""
    template = codec.template
    if not asked.closed:
        thought = codec.encode_plain(asked.thought, "the thought", lenient=True)
        return [*codec.encode(template.think_open), *thought]
    if not asked.thought and template.direct_open:
        # What such templates write before a response that does not reason.
        return [*codec.encode(template.direct_open), *codec.action_prefix]
    segments = codec.thinks(asked.thought, lenient=True)
    return [*(id_ for ids, _ in segments for id_ in ids), *codec.action_prefix]


def tokens(codec: Codec, thought: str) -> int:
    """Return the number of a thought's tokens, without its tags."""
    return len(codec.encode_plain(thought, "the thought", lenient=True))


def first_tokens(codec: Codec, thought: str, count: int) -> str:
    """Return the text of a thought's first tokens."""
    ids = codec.encode_plain(thought, "the thought", lenient=True)
    if count >= len(ids):
        return thought
    # A character may consist of several tokens.
    return codec.decode(ids[:count]).rstrip("\ufffd").rstrip() if count > 0 else ""


def forceable(codec: Codec, thought: str | None) -> bool:
    """Whether a sampled thought is text that can be forced as it is: not empty, and without tags.

    A thought with a tag in it, which a model may well write, would become other tokens.
    """
    if not thought or not thought.strip():
        return False
    try:
        codec.encode_plain(thought, "the thought")
    except DataError:
        return False
    return True


def own_trace(codec: Codec, state: State) -> tuple[str, str] | str:
    """Return a state's own thought and CoT action; or why it has none that can be forced.

    The reasons: "no_response" (none was decoded), "invalid" (no valid action), "no_thought",
    "tag" (the thought cannot be written as plain text).
    """
    response = state.turn.cot
    if response is None:
        return "no_response"
    action = action_of(response)
    if action is None:
        return "invalid"
    if not (response.thought or "").strip():
        return "no_thought"
    if not forceable(codec, response.thought):
        return "tag"
    return str(response.thought).strip(), action


def _where(state: State) -> str:
    return f"{state.record.game.id}, step {state.number + 1}"
