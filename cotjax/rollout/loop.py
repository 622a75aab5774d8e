"""The host-side loop: many episodes over a policy's slots. A policy is ids in, ids out.

At each turn the loop appends the new part of every live slot's prompt, decodes the driver's actions from it and sends them to the
environments. While those answer, and where an episode is over begin the next game, it decodes the actions that are only noted beside
the driver's, from the same cached prompts. So the environments' time is hidden behind decoding, and nothing depends on who is faster.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from cotjax import formats
from cotjax.envs.base import Game, Observation
from cotjax.errors import EnvError, UsageError
from cotjax.rollout.background import in_background
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

    def branch(self, prefixes: Mapping[int, Sequence[int]], *, max_new: int, seeds: Mapping[int, int], **how: Any) -> Mapping[int, Any]: ...


class Environments(Protocol):
    """Slots of environments (`cotjax.envs.pool.EnvPool` is one)."""

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


@dataclass
class _Episode:
    game: Game
    seed: int
    task: str = ""
    observation: Observation | None = None
    prompt: list[int] = field(default_factory=list)  # ids that the policy's slot holds
    next_piece: list[int] = field(default_factory=list)  # ids to append to them
    steps: list[dict] = field(default_factory=list)
    env_error: str | None = None
    env_faults: list[str] = field(default_factory=list)
    ended: str | None = None
    environment_s: float = 0.0
    waited_s: float = 0.0
    sampler_s: float = 0.0
    started_at: float = field(default_factory=time.perf_counter)

    @property
    def where(self) -> str:
        return f"{self.game.id}, step {len(self.steps) + 1}"


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
) -> None:
    """Play every game once and hand each finished episode's record to `on_record`.

    Args:
      driver: "cot" (the prompt action is decoded beside it at every state), "prompt" (prompt actions alone), or "reference"
        (both are decoded, and `references[game.id]` is executed).
      codec: ids of prompts, prefixes and text (`cotjax.data.tokens.Codec`).
      seed: with the game's id, the turn and the kind of action, the source of a sampled response's randomness.
      both: decode both kinds of action, or the driver's alone; None: as the driver has it.
      on_step: called after each step with what the record says of it, and what the environment answered (None: it failed).

    An environment that fails for good ends its episode as "env_error"; the record says so, and the other episodes go on.

    Raises:
      InternalError: a prompt does not go on with exactly the ids that were sampled (see `cotjax.rollout.tokens`).
    """
    if driver not in DRIVERS:
        raise UsageError(f"unknown driver {driver!r}; there are {', '.join(DRIVERS)}")
    waiting = list(reversed(games))
    live: dict[int, _Episode] = {}
    while waiting or live:
        _fill(live, waiting, policy, codec, environments, seed)
        turn = _Turn(policy, codec, elicitation, driver, references, driver != "prompt" if both is None else both)
        turn.act(live)
        moved = in_background(_move, environments, turn.actions, turn.last, waiting)  # one at a time, in order
        turn.compare()
        started_at = time.perf_counter()
        moves = moved.result()
        # At most what the environments took: that a thread wakes up late on a busy machine is not their doing.
        waited = min((time.perf_counter() - started_at) / max(1, len(turn.executed)), moves.seconds)
        _advance(live, turn.executed, moves, waited, codec, on_step)
        for slot, episode in list(live.items()):
            if episode.ended:
                episode.env_faults = moves.faults[slot] if slot in moves.faults else list(environments.faults(slot))
                on_record(episode.game, _as_record(episode, driver, elicitation))
                del live[slot]
        _begin(live, moves.starting, moves.begun, 0.0, policy, codec, seed)


@dataclass
class _Moves:
    """What the environments did with a turn's actions."""

    answers: dict[int, Observation | EnvError] = field(default_factory=dict)
    faults: dict[int, list[str]] = field(default_factory=dict)  # of the slots whose episode is over
    starting: dict[int, Game] = field(default_factory=dict)  # what these slots play next
    begun: dict[int, tuple[str, Observation] | EnvError] = field(default_factory=dict)
    seconds: float = 0.0  # a slot that was sent an action


def _move(environments: Environments, actions: dict[int, str], last: set[int], waiting: list[Game]) -> _Moves:
    """Send the actions, and let the slots whose episode is over with them (it is the `last` step, or the game says so) begin the next."""
    if not actions:
        return _Moves()
    started_at = time.perf_counter()
    answers = environments.step(actions)
    over = [slot for slot in actions if slot in last or _ends(answers[slot])]
    faults = {slot: list(environments.faults(slot)) for slot in over}
    starting = {slot: waiting.pop() for slot in over[: len(waiting)]}
    begun = environments.reset(starting) if starting else {}
    return _Moves(answers, faults, starting, begun, (time.perf_counter() - started_at) / len(actions))


def _ends(answer: Observation | EnvError) -> bool:
    return isinstance(answer, EnvError) or answer.won or answer.done


def _fill(live: dict[int, _Episode], waiting: list[Game], policy: Policy, codec: Any, environments: Environments, seed: int) -> None:
    """Give the next games to slots that are free: at the start, and where a prompt had grown too long."""
    free = [slot for slot in range(policy.slots) if slot not in live][: len(waiting)]
    if not free:
        return
    starting = {slot: waiting.pop() for slot in free}
    started_at = time.perf_counter()
    begun = environments.reset(starting)
    _begin(live, starting, begun, (time.perf_counter() - started_at) / len(free), policy, codec, seed)


def _begin(
    live: dict[int, _Episode], starting: dict[int, Game], begun: dict[int, Any], waited: float, policy: Policy, codec: Any, seed: int
) -> None:
    """`waited`: seconds a slot that nothing else was done in; a game that began with a turn's actions is counted among what they took."""
    policy.reset(starting)
    for slot, game in starting.items():
        episode = live[slot] = _Episode(game, seed, environment_s=waited, waited_s=waited)
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

    def __init__(self, policy: Policy, codec: Any, elicitation: Elicitation, driver: str, references, both: bool):
        self._policy, self._codec, self._elicitation, self._driver = policy, codec, elicitation, driver
        self._references = references
        kinds = [kind for kind in ("cot", "prompt") if both or kind == driver]
        self._first, self._beside = [kind for kind in kinds if kind == driver], [kind for kind in kinds if kind != driver]
        self._ready: dict[int, _Episode] = {}
        self._seeds: dict[str, dict[int, int]] = {}
        self.executed: dict[int, tuple[str, list[int] | None]] = {}  # what is sent, and its sampled ids where it has some
        self.last: set[int] = set()  # slots whose episode ends with this step, whatever it does

    @property
    def actions(self) -> dict[int, str]:
        return {slot: action for slot, (action, _) in self.executed.items()}

    def act(self, live: dict[int, _Episode]) -> None:
        """Extend the prompts, and decode the driver's actions."""
        elicitation, longest, lengths = self._elicitation, self._policy.max_length, self._policy.lengths
        for slot, episode in live.items():
            needed = lengths[slot] + len(episode.next_piece) + elicitation.max_new_tokens + 8
            if episode.ended is None and needed > longest:
                episode.ended = "length"
        self._ready = ready = {slot: episode for slot, episode in live.items() if episode.ended is None}
        if not ready:
            return
        started_at = time.perf_counter()
        self._policy.extend({slot: episode.next_piece for slot, episode in ready.items()})
        lengths = self._policy.lengths
        for slot, episode in ready.items():
            episode.prompt += episode.next_piece
            check_prompt(episode.where, episode.prompt, int(lengths[slot]))
        self._seeds = {kind: {slot: _seed(episode, kind) for slot, episode in ready.items()} for kind in ("cot", "prompt")}
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
        elicitation, seeds = self._elicitation, self._seeds[kind]
        text, max_new = elicitation.cot_prefix, elicitation.max_new_tokens
        if kind == "prompt":
            text, max_new = elicitation.prompt_prefix, elicitation.max_action_tokens
        prefix = self._codec.encode(text) if text else []
        generations = self._policy.branch(dict.fromkeys(self._ready, prefix), max_new=max_new, seeds=seeds, **elicitation.how)
        return {
            slot: _as_action(generation, self._codec, self._ready[slot].observation, kind, text, seeds[slot])
            for slot, generation in generations.items()
        }

    def _note(self, slot: int, episode: _Episode, decoded: dict[str, dict]) -> None:
        reference = None
        if self._driver == "reference":
            reference = self._references[episode.game.id][len(episode.steps)]
        own = decoded.get(self._driver)
        chosen = own["action"] if own else reference
        # The environment answers "Nothing happens" to an empty command: an invalid response costs a step, as it should.
        executed = "" if chosen is None else chosen
        sampled = None
        if own and own["valid"]:
            sampled = action_ids(self._codec, own["ids"], executed, prefilled=self._driver == "prompt")
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
    live: dict[int, _Episode],
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
        episode.steps[-1]["nothing_happens"] = answer.text.startswith("Nothing happens")
        if answer.won:
            episode.ended = "won"
        elif answer.done or slot in moves.faults:
            episode.ended = "step_limit"
        else:
            episode.next_piece = codec.next_prompt(action if sampled is None else sampled, answer.text)
            if sampled is not None:
                check_continues(episode.where, episode.next_piece, sampled, codec)
        on_step(episode.steps[-1], answer)


def _as_action(generation: Any, codec: Any, observation: Observation, kind: str, prefix: str, seed: int) -> dict:
    text = codec.decode(generation.ids)
    prefilled = kind == "prompt"
    response = formats.parse_response(text if prefilled else prefix + text, prefilled=prefilled, stopped=generation.stopped)
    if response.action is not None and not codec.encodable(response.action):
        response = formats.Response(response.thought, None, "control_token")
    logprobs = generation.logprobs  # None from a policy that gives none
    measured = {} if logprobs is None else {"logprob": float(sum(logprobs)), "logprobs": [round(float(x), 6) for x in logprobs]}
    return {
        "text": text,
        "thought": response.thought,
        "action": response.action,
        "valid": response.reason is None,
        "reason": response.reason,
        "problem": response.problem,
        "admissible": response.action in observation.admissible_commands,
        "ids": [int(i) for i in generation.ids],
        "new_tokens": len(generation.ids),
        "stopped": bool(generation.stopped),
        "seed": seed,
        **measured,
    }


def _as_record(episode: _Episode, driver: str, elicitation: Elicitation) -> dict:
    return {
        "driver": driver,
        "game": {"id": episode.game.id, "task_type": episode.game.task_type, "split": episode.game.split},
        "seed": episode.seed,
        "task": episode.task,
        "success": episode.ended == "won",
        "ended": episode.ended,
        "env_error": episode.env_error,
        "env_faults": episode.env_faults,
        "elicitation": asdict(elicitation),
        "steps": episode.steps,
        "final_observation": episode.observation.text if episode.observation else None,
        "timing": {
            "environment_s": round(episode.environment_s, 4),
            "waited_s": round(episode.waited_s, 4),
            "sampler_s": round(episode.sampler_s, 4),
            "total_s": round(time.perf_counter() - episode.started_at, 4),
        },
    }


def _seed(episode: _Episode, kind: str) -> int:
    key = f"{episode.seed}/{episode.game.id}/{len(episode.steps)}/{kind}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big") >> 1
