"""The host-side loop: many episodes over a policy's slots. Dumb and synchronous; a policy is ids in, ids out.

At each turn the loop appends the new part of every live slot's prompt, decodes the actions asked for from that same cached
prompt, sends the driver's action to the environment, and goes on. A slot whose episode ended takes the next game.
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
from cotjax.rollout.tokens import action_ids, check_continues, check_prompt

DRIVERS = ("cot", "prompt", "reference")


class Policy(Protocol):
    """What the loop needs of a sampler (`cotjax.sample.sampler.Sampler` is one)."""

    slots: int
    max_length: int
    lengths: np.ndarray

    def reset(self, slots: Iterable[int]) -> None: ...

    def extend(self, pieces: Mapping[int, Sequence[int]]) -> None: ...

    def branch(
        self, prefixes: Mapping[int, Sequence[int]], *, max_new: int, temperature: float, seeds: Mapping[int, int]
    ) -> Mapping[int, Any]: ...


class Environments(Protocol):
    """Slots of environments (`cotjax.envs.pool.EnvPool` is one)."""

    def reset(self, games: dict[int, Game]) -> dict[int, tuple[str, Observation] | EnvError]: ...

    def step(self, actions: dict[int, str]) -> dict[int, Observation | EnvError]: ...

    def faults(self, slot: int) -> Sequence[str]: ...


@dataclass(frozen=True)
class Elicitation:
    """How actions are drawn out of the model: stated in every record, fixed across checkpoints.

    `temperature` 0 is greedy. `max_new_tokens` bounds a CoT response, `max_action_tokens` a prompt action (tokens).
    `cot_prefix` is prefilled before a CoT response ("" leaves it to the model whether it reasons).
    """

    temperature: float = 0.0
    max_new_tokens: int = 96
    max_action_tokens: int = 16
    max_steps: int = 30
    cot_prefix: str = ""
    prompt_prefix: str = formats.ACTION_OPEN
    history: str = "observations and executed actions; past reasoning is not part of the prompt"


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
    both: bool = False,
) -> None:
    """Play every game once and hand each finished episode's record to `on_record`.

    Args:
      driver: "cot" (the prompt action is decoded beside it at every state), "prompt" (prompt actions alone), or "reference"
        (both are decoded, and `references[game.id]` is executed).
      codec: ids of prompts, prefixes and text (`cotjax.data.tokens.Codec`).
      seed: with the game's id, the turn and the kind of action, the source of a sampled response's randomness.
      both: decode the CoT action beside the prompt action under the driver "prompt" too, which does without.
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
        turn = _Turn(policy, codec, elicitation, driver, references, both or driver != "prompt")
        turn.decode(live)
        _advance(live, turn.executed, codec, environments, on_step)
        for slot, episode in list(live.items()):
            if episode.ended:
                episode.env_faults = list(environments.faults(slot))
                on_record(episode.game, _as_record(episode, driver, elicitation))
                del live[slot]


def _fill(live: dict[int, _Episode], waiting: list[Game], policy: Policy, codec: Any, environments: Environments, seed: int) -> None:
    """Give free slots the next games."""
    free = [slot for slot in range(policy.slots) if slot not in live][: len(waiting)]
    if not free:
        return
    starting = {slot: waiting.pop() for slot in free}
    policy.reset(free)
    started_at = time.perf_counter()
    answers = environments.reset(starting)
    seconds = (time.perf_counter() - started_at) / len(free)
    for slot, game in starting.items():
        episode = live[slot] = _Episode(game, seed, environment_s=seconds)
        answer = answers[slot]
        if isinstance(answer, EnvError):
            episode.ended, episode.env_error = "env_error", str(answer)
            continue
        episode.task, episode.observation = answer
        episode.next_piece = codec.first_prompt(episode.task, episode.observation.text)


class _Turn:
    """One turn of all live slots: extend the prompts, decode from them, note what was decoded."""

    def __init__(self, policy: Policy, codec: Any, elicitation: Elicitation, driver: str, references, both: bool):
        self._policy, self._codec, self._elicitation, self._driver = policy, codec, elicitation, driver
        self._references, self._both = references, both
        self.executed: dict[int, tuple[str, list[int] | None]] = {}  # what is sent, and its sampled ids where it has some

    def decode(self, live: dict[int, _Episode]) -> None:
        elicitation, longest = self._elicitation, self._policy.max_length
        for slot, episode in live.items():
            needed = self._policy.lengths[slot] + len(episode.next_piece) + elicitation.max_new_tokens + 8
            if episode.ended is None and needed > longest:
                episode.ended = "length"
        ready = {slot: episode for slot, episode in live.items() if episode.ended is None}
        if not ready:
            return
        started_at = time.perf_counter()
        self._policy.extend({slot: episode.next_piece for slot, episode in ready.items()})
        for slot, episode in ready.items():
            episode.prompt += episode.next_piece
            check_prompt(episode.where, episode.prompt, int(self._policy.lengths[slot]))
        prompt = self._branch(ready, "prompt", elicitation.max_action_tokens)
        cot = self._branch(ready, "cot", elicitation.max_new_tokens) if self._both else {}
        seconds = (time.perf_counter() - started_at) / len(ready)
        for slot, episode in ready.items():
            episode.sampler_s += seconds
            self._note(slot, episode, prompt.get(slot), cot.get(slot))

    def _branch(self, ready: dict[int, _Episode], kind: str, max_new: int) -> dict[int, dict]:
        text = self._elicitation.prompt_prefix if kind == "prompt" else self._elicitation.cot_prefix
        prefix = self._codec.encode(text) if text else []
        seeds = {slot: _seed(episode, kind) for slot, episode in ready.items()}
        generations = self._policy.branch(
            dict.fromkeys(ready, prefix), max_new=max_new, temperature=self._elicitation.temperature, seeds=seeds
        )
        return {
            slot: _as_action(generation, self._codec, ready[slot].observation, kind, text, seeds[slot])
            for slot, generation in generations.items()
        }

    def _note(self, slot: int, episode: _Episode, prompt: dict | None, cot: dict | None) -> None:
        reference = None
        if self._driver == "reference":
            reference = self._references[episode.game.id][len(episode.steps)]
        chosen = {"cot": cot, "prompt": prompt, "reference": {"action": reference}}[self._driver]["action"]
        # The environment answers "Nothing happens" to an empty command: an invalid response costs a step, as it should.
        executed = "" if chosen is None else chosen
        own = {"cot": cot, "prompt": prompt, "reference": None}[self._driver]
        sampled = action_ids(self._codec, own["ids"], executed, prefilled=own is prompt) if own and own["valid"] else None
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
                "cot": cot,
                "prompt": prompt,
            }
        )
        if len(episode.steps) >= self._elicitation.max_steps:
            episode.ended = "step_limit"  # unless this last action wins: see _advance


def _advance(
    live: dict[int, _Episode],
    executed: dict[int, tuple[str, list[int] | None]],
    codec: Any,
    environments: Environments,
    on_step: Callable[[dict, Observation | None], None],
) -> None:
    """Send the actions, and read what they changed."""
    if not executed:
        return
    started_at = time.perf_counter()
    answers = environments.step({slot: action for slot, (action, _) in executed.items()})
    seconds = (time.perf_counter() - started_at) / len(executed)
    for slot, (action, sampled) in executed.items():
        episode, answer = live[slot], answers[slot]
        episode.environment_s += seconds
        if isinstance(answer, EnvError):
            episode.ended, episode.env_error = "env_error", str(answer)
            on_step(episode.steps[-1], None)
            continue
        episode.observation = answer
        episode.steps[-1]["nothing_happens"] = answer.text.startswith("Nothing happens")
        if answer.won:
            episode.ended = "won"
        elif answer.done:
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
            "sampler_s": round(episode.sampler_s, 4),
            "total_s": round(time.perf_counter() - episode.started_at, 4),
        },
    }


def _seed(episode: _Episode, kind: str) -> int:
    key = f"{episode.seed}/{episode.game.id}/{len(episode.steps)}/{kind}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big") >> 1
