"""The host-side loop: many episodes over a policy's slots. A policy is ids in, ids out.

At each turn the loop appends the new part of every live slot's prompt, decodes the driver's actions from it and sends them to the
environments. While those answer, and where an episode is over begin the next game, it decodes the actions that are only noted beside
the driver's, from the same cached prompts. So the environments' time is hidden behind decoding, and nothing depends on who is faster.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from cotjax import formats
from cotjax.envs.base import Game, Observation
from cotjax.errors import EnvError, NotFiniteError, UsageError
from cotjax.rollout.background import in_background
from cotjax.rollout.episode import Episode, as_action, as_record, draw_seed
from cotjax.rollout.tokens import action_ids, check_continues, check_prompt

DRIVERS = ("cot", "prompt", "reference")
# How the next id is drawn: of an Elicitation's fields, those that a policy's `branch` takes.
DRAWN = ("temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size")


class Policy(Protocol):
    """What the loop needs of a sampler (`cotjax.sample.sampler.Sampler` is one)."""

    slots: int
    max_length: int
    lengths: np.ndarray

    def reset(self, slots: Iterable[int]) -> None: ...

    def extend(self, pieces: Mapping[int, Sequence[int]]) -> None: ...

    def prompt(self, slot: int) -> Sequence[int]: ...

    def branch(
        self,
        prefixes: Mapping[int, Sequence[int]],
        *,
        max_new: int,
        seeds: Mapping[int, int],
        **how: Any,
    ) -> Mapping[int, Any]: ...


class Environments(Protocol):
    """Slots of environments (`cotjax.envs.pool.pool.EnvPool` is one)."""

    def reset(self, games: dict[int, Game]) -> dict[int, tuple[str, Observation] | EnvError]: ...

    def step(self, actions: dict[int, str]) -> dict[int, Observation | EnvError]: ...

    def faults(self, slot: int) -> Sequence[str]: ...


@dataclass(frozen=True)
class Elicitation:
    """How actions are drawn out of the model: stated in every record, fixed across checkpoints.

    The fields named in DRAWN are those of `cotjax.sample.sampling.Sampling`; `temperature` 0 is greedy.
    `max_new_tokens` bounds a CoT response, `max_action_tokens` a prompt action (tokens).
    `cot_prefix` is prefilled before a CoT response ("" leaves it to the model whether it reasons).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    max_new_tokens: int = 96
    max_action_tokens: int = 16
    max_steps: int = 30
    cot_prefix: str = ""
    prompt_prefix: str = formats.ACTION_OPEN
    history: str = "observations and executed actions; past reasoning is not part of the prompt"

    @property
    def how(self) -> dict[str, float]:
        """How the next id is drawn, as a policy's `branch` takes it."""
        return {name: getattr(self, name) for name in DRAWN}


def play(
    games: Sequence[Game],
    *,
    policy: Policy,
    codec: Any,
    environments: Environments,
    driver: str,
    elicitation: Elicitation,
    seed: int,
    on_record: Callable[[Game, dict], None],
    references: Mapping[str, Sequence[str]] | None = None,
    on_step: Callable[[dict, Observation | None], None] = lambda step, answer: None,
    both: bool | None = None,
    samples: Sequence[int] | None = None,
) -> None:
    """Play every game once and hand each finished episode's record to `on_record`.

    Args:
      driver: "cot" (the prompt action is decoded beside it at every state), "prompt" (prompt actions alone), or "reference"
        (both are decoded, and `references[game.id]` is executed).
      codec: ids of prompts, prefixes and text (`cotjax.data.codec.Codec`).
      seed: with the game's id, the sample, the turn and the kind of action, the source of a sampled response's randomness.
      both: decode both kinds of action, or the driver's alone; None: as the driver has it.
      on_step: called after each step with what the record says of it, and what the environment answered (None: it failed).
      samples: the number of each episode among those of its game; None: a game that comes again is its next sample.

    An environment that fails for good ends its episode as "env_error"; the record says so, and the other episodes go on. Whatever text
    an environment gives, the model reads it as text.

    Raises:
      NotFiniteError: the policy's logits or log-probabilities are NaN or infinite; the message names the game and the step.
      InternalError: a prompt does not go on with exactly the ids that were sampled (see `cotjax.rollout.tokens`).
    """
    if driver not in DRIVERS:
        raise UsageError(f"unknown driver {driver!r}; there are {', '.join(DRIVERS)}")
    waiting = list(reversed(_numbered(games, samples)))
    live: dict[int, Episode] = {}
    while waiting or live:
        _fill(live, waiting, policy, codec, environments, seed)
        turn = _Turn(
            policy,
            codec,
            elicitation,
            driver,
            references,
            driver != "prompt" if both is None else both,
        )
        turn.act(live)
        moved = in_background(
            _move, environments, turn.actions, turn.last, waiting
        )  # one at a time, in order
        turn.compare()
        started_at = time.perf_counter()
        moves = moved.result()
        # At most what the environments took: that a thread wakes up late on a busy machine is not their doing.
        waited = min((time.perf_counter() - started_at) / max(1, len(turn.executed)), moves.seconds)
        _advance(live, turn.executed, moves, waited, codec, on_step)
        for slot, episode in list(live.items()):
            if episode.ended:
                episode.env_faults = (
                    moves.faults[slot] if slot in moves.faults else list(environments.faults(slot))
                )
                on_record(episode.game, as_record(episode, driver, elicitation))
                del live[slot]
        _begin(live, moves.starting, moves.begun, 0.0, policy, codec, seed)


def _numbered(games: Sequence[Game], samples: Sequence[int] | None) -> list[tuple[Game, int]]:
    """The games, each with the number of its episode among those of the same game."""
    if samples is None:
        seen: Counter = Counter()
        samples = []
        for game in games:
            samples.append(seen[game.id])
            seen[game.id] += 1
    numbered = list(zip(games, samples, strict=True))
    if len({(game.id, sample) for game, sample in numbered}) < len(numbered):
        raise UsageError(
            "two samples of one game have the same number, so they would be equal; number them 0, 1, …"
        )
    return numbered


@dataclass
class _Moves:
    """What the environments did with a turn's actions."""

    answers: dict[int, Observation | EnvError] = field(default_factory=dict)
    faults: dict[int, list[str]] = field(default_factory=dict)  # of the slots whose episode is over
    starting: dict[int, tuple[Game, int]] = field(
        default_factory=dict
    )  # what these slots play next: a game, and which sample of it
    begun: dict[int, tuple[str, Observation] | EnvError] = field(default_factory=dict)
    seconds: float = 0.0  # a slot that was sent an action


def _move(
    environments: Environments,
    actions: dict[int, str],
    last: set[int],
    waiting: list[tuple[Game, int]],
) -> _Moves:
    """Send the actions, and let the slots whose episode is over with them (it is the `last` step, or the game says so) begin the next."""
    if not actions:
        return _Moves()
    started_at = time.perf_counter()
    answers = environments.step(actions)
    over = [slot for slot in actions if slot in last or _ends(answers[slot])]
    faults = {slot: list(environments.faults(slot)) for slot in over}
    starting = {slot: waiting.pop() for slot in over[: len(waiting)]}
    begun = _reset(environments, starting) if starting else {}
    return _Moves(
        answers, faults, starting, begun, (time.perf_counter() - started_at) / len(actions)
    )


def _ends(answer: Observation | EnvError) -> bool:
    return isinstance(answer, EnvError) or answer.won or answer.done


def _reset(
    environments: Environments, starting: Mapping[int, tuple[Game, int]]
) -> dict[int, tuple[str, Observation] | EnvError]:
    return environments.reset({slot: game for slot, (game, _) in starting.items()})


def _fill(
    live: dict[int, Episode],
    waiting: list[tuple[Game, int]],
    policy: Policy,
    codec: Any,
    environments: Environments,
    seed: int,
) -> None:
    """Give the next games to slots that are free: at the start, and where a prompt had grown too long."""
    free = [slot for slot in range(policy.slots) if slot not in live][: len(waiting)]
    if not free:
        return
    starting = {slot: waiting.pop() for slot in free}
    started_at = time.perf_counter()
    begun = _reset(environments, starting)
    _begin(
        live, starting, begun, (time.perf_counter() - started_at) / len(free), policy, codec, seed
    )


def _begin(
    live: dict[int, Episode],
    starting: dict[int, tuple[Game, int]],
    begun: dict[int, Any],
    waited: float,
    policy: Policy,
    codec: Any,
    seed: int,
) -> None:
    """`waited`: seconds a slot that nothing else was done in; a game that began with a turn's actions is counted among what they took."""
    policy.reset(starting)
    for slot, (game, sample) in starting.items():
        episode = live[slot] = Episode(game, sample, seed, environment_s=waited, waited_s=waited)
        answer = begun[slot]
        if isinstance(answer, EnvError):
            episode.ended, episode.env_error = "env_error", str(answer)
            continue
        episode.task, episode.observation = answer
        episode.next_piece = codec.first_prompt(episode.task, episode.observation.text)


class _Turn:
    """One turn of all live slots: extend the prompts, decode from them, note what was decoded.

    `act` decodes what the environments wait for, `compare` what is only noted beside it: that, they need not wait for.
    """

    def __init__(
        self,
        policy: Policy,
        codec: Any,
        elicitation: Elicitation,
        driver: str,
        references,
        both: bool,
    ):
        self._policy, self._codec, self._elicitation, self._driver = (
            policy,
            codec,
            elicitation,
            driver,
        )
        self._references = references
        kinds = [kind for kind in ("cot", "prompt") if both or kind == driver]
        self._first, self._beside = (
            [kind for kind in kinds if kind == driver],
            [kind for kind in kinds if kind != driver],
        )
        # kind -> what is prefilled before a response, as text and as ids; and the tokens that it may have.
        self._prefix = {"cot": elicitation.cot_prefix, "prompt": elicitation.prompt_prefix}
        self._prefix_ids = {
            kind: codec.encode(text) if text else [] for kind, text in self._prefix.items()
        }
        self._max_new = {"cot": elicitation.max_new_tokens, "prompt": elicitation.max_action_tokens}
        self._ready: dict[int, Episode] = {}
        self._where: dict[int, str] = {}
        self._seeds: dict[str, dict[int, int]] = {}
        self.executed: dict[
            int, tuple[str, list[int] | None]
        ] = {}  # what is sent, and its sampled ids where it has some
        self.last: set[int] = set()  # slots whose episode ends with this step, whatever it does

    @property
    def actions(self) -> dict[int, str]:
        return {slot: action for slot, (action, _) in self.executed.items()}

    def act(self, live: dict[int, Episode]) -> None:
        """Extend the prompts, and decode the driver's actions."""
        lengths = self._policy.lengths
        response = max(
            self._max_new["cot"] + 8,
            *(len(self._prefix_ids[kind]) + self._max_new[kind] for kind in self._prefix),
        )
        for slot, episode in live.items():
            if (
                episode.ended is None
                and lengths[slot] + len(episode.next_piece) + response > self._policy.max_length
            ):
                episode.ended = "length"
        self._ready = ready = {
            slot: episode for slot, episode in live.items() if episode.ended is None
        }
        if not ready:
            return
        started_at = time.perf_counter()
        self._policy.extend({slot: episode.next_piece for slot, episode in ready.items()})
        for slot, episode in ready.items():
            episode.prompt += episode.next_piece
            check_prompt(episode.where, episode.prompt, self._policy.prompt(slot))
        self._where = {slot: episode.where for slot, episode in ready.items()}
        self._seeds = {
            kind: {slot: draw_seed(episode, kind) for slot, episode in ready.items()}
            for kind in ("cot", "prompt")
        }
        decoded = {kind: self._branch(kind) for kind in self._first}
        self._took(started_at)
        for slot, episode in ready.items():
            self._note(slot, episode, {kind: actions[slot] for kind, actions in decoded.items()})

    def compare(self) -> None:
        """Decode the other actions of the same states, from the same cached prompts."""
        if not self._ready:
            return
        started_at = time.perf_counter()
        for kind in self._beside:
            for slot, action in self._branch(kind).items():
                self._ready[slot].steps[-1][kind] = action
        self._took(started_at)

    def _took(self, started_at: float) -> None:
        seconds = (time.perf_counter() - started_at) / len(self._ready)
        for episode in self._ready.values():
            episode.sampler_s += seconds

    def _branch(self, kind: str) -> dict[int, dict]:
        seeds, how = self._seeds[kind], self._elicitation.how
        try:
            prefixes = dict.fromkeys(self._ready, self._prefix_ids[kind])
            generations = self._policy.branch(
                prefixes, max_new=self._max_new[kind], seeds=seeds, **how
            )
        except NotFiniteError as error:
            raise NotFiniteError(f"{self._where[error.slot]}: {error}", error.slot) from None
        actions = {}
        for slot, generation in generations.items():
            if generation.logprobs is not None and not np.isfinite(generation.logprobs).all():
                raise NotFiniteError(
                    f"{self._where[slot]}: a log-probability is not finite; look at the policy's weights",
                    slot,
                )
            actions[slot] = as_action(
                generation,
                self._codec,
                self._ready[slot].observation,
                kind,
                self._prefix[kind],
                seeds[slot],
            )
        return actions

    def _note(self, slot: int, episode: Episode, decoded: dict[str, dict]) -> None:
        reference = None
        if self._driver == "reference":
            reference = self._references[episode.game.id][len(episode.steps)]
        own = decoded.get(self._driver)
        chosen = own["action"] if own else reference
        # The environment answers "Nothing happens" to an empty command: an invalid response costs a step, as it should.
        executed = "" if chosen is None else chosen
        sampled = None
        if own and own["valid"]:
            sampled = action_ids(
                self._codec, own["ids"], executed, opened=self._prefix[self._driver]
            )
        self.executed[slot] = executed, sampled
        episode.steps.append(
            {
                "observation": episode.observation.text,
                "admissible_commands": list(episode.observation.admissible_commands),
                "executed": executed,
                "reference": reference,
                "nothing_happens": False,
                "prompt_length": len(episode.prompt),
                "prompt_ids": episode.next_piece,
                "cot": None,
                "prompt": None,
                **decoded,
            }
        )
        if len(episode.steps) >= self._elicitation.max_steps:
            self.last.add(slot)


def _advance(
    live: dict[int, Episode],
    executed: dict[int, tuple[str, list[int] | None]],
    moves: _Moves,
    waited: float,
    codec: Any,
    on_step: Callable[[dict, Observation | None], None],
) -> None:
    """Read what the actions changed. `waited`: seconds a slot that nothing was decoded in."""
    for slot, (action, sampled) in executed.items():
        episode, answer = live[slot], moves.answers[slot]
        episode.environment_s += moves.seconds
        episode.waited_s += waited
        if isinstance(answer, EnvError):
            episode.ended, episode.env_error = "env_error", str(answer)
            on_step(episode.steps[-1], None)
            continue
        episode.observation = answer
        episode.steps[-1]["nothing_happens"] = not answer.accepted
        if answer.won:
            episode.ended = "won"
        elif answer.done or slot in moves.faults:
            episode.ended = "step_limit"
        else:
            episode.next_piece = codec.next_prompt(
                action if sampled is None else sampled, answer.text
            )
            if sampled is not None:
                check_continues(episode.where, episode.next_piece, sampled, codec)
        on_step(episode.steps[-1], answer)
