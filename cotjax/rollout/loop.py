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

DRIVERS = ("cot", "prompt", "reference")


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


@dataclass(frozen=True)
class Elicitation:
    """How actions are drawn out of the model: stated in every record, fixed across checkpoints.

    `temperature` 0 is greedy; `top_k`, `top_p` and `repetition_penalty` are those of `cotjax.sample.sampling.Sampling`.
    `max_new_tokens` bounds a CoT response, `max_action_tokens` a prompt action (tokens).
    `cot_prefix` is prefilled before a CoT response ("" leaves it to the model whether it reasons).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 96
    max_action_tokens: int = 16
    max_steps: int = 30
    cot_prefix: str = ""
    prompt_prefix: str = formats.ACTION_OPEN
    history: str = "observations and executed actions; past reasoning is not part of the prompt"

    @property
    def how(self) -> dict[str, float]:
        """How the next id is drawn, as a policy's `branch` takes it."""
        return {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "repetition_penalty")}


@dataclass
class _Episode:
    game: Game
    seed: int
    task: str = ""
    observation: Observation | None = None
    next_piece: list[int] = field(default_factory=list)
    steps: list[dict] = field(default_factory=list)
    error: str | None = None
    ended: str | None = None
    environment_s: float = 0.0
    sampler_s: float = 0.0


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
) -> None:
    """Play every game once and hand each finished episode's record to `on_record`.

    Args:
      driver: "cot" (the prompt action is decoded beside it at every state), "prompt" (prompt actions alone), or "reference"
        (both are decoded, and `references[game.id]` is executed).
      codec: ids of prompts, prefixes and text (`cotjax.data.tokens.Codec`).
      seed: with the game's id, the turn and the kind of action, the source of a sampled response's randomness.

    An environment that fails ends its episode as "env_error"; the record says so, and the other episodes go on.
    """
    if driver not in DRIVERS:
        raise UsageError(f"unknown driver {driver!r}; there are {', '.join(DRIVERS)}")
    waiting = list(reversed(games))
    live: dict[int, _Episode] = {}
    while waiting or live:
        _fill(live, waiting, policy, codec, environments, seed)
        turn = _Turn(policy, codec, elicitation, driver, references)
        turn.decode(live)
        _advance(live, turn.executed, codec, environments)
        for slot, episode in list(live.items()):
            if episode.ended:
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
            episode.ended, episode.error = "env_error", str(answer)
            continue
        episode.task, episode.observation = answer
        episode.next_piece = codec.first_prompt(episode.task, episode.observation.text)


class _Turn:
    """One turn of all live slots: extend the prompts, decode from them, note what was decoded."""

    def __init__(self, policy: Policy, codec: Any, elicitation: Elicitation, driver: str, references):
        self._policy, self._codec, self._elicitation, self._driver = policy, codec, elicitation, driver
        self._references = references
        self.executed: dict[int, str] = {}

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
        prompt = self._branch(ready, "prompt", elicitation.max_action_tokens)
        cot = self._branch(ready, "cot", elicitation.max_new_tokens) if self._driver != "prompt" else {}
        seconds = (time.perf_counter() - started_at) / len(ready)
        for slot, episode in ready.items():
            episode.sampler_s += seconds
            self._note(slot, episode, prompt.get(slot), cot.get(slot))

    def _branch(self, ready: dict[int, _Episode], kind: str, max_new: int) -> dict[int, dict]:
        text = self._elicitation.prompt_prefix if kind == "prompt" else self._elicitation.cot_prefix
        prefix = self._codec.encode(text) if text else []
        seeds = {slot: _seed(episode, kind) for slot, episode in ready.items()}
        generations = self._policy.branch(dict.fromkeys(ready, prefix), max_new=max_new, seeds=seeds, **self._elicitation.how)
        return {slot: _as_action(generation, self._codec, ready[slot].observation, kind, text) for slot, generation in generations.items()}

    def _note(self, slot: int, episode: _Episode, prompt: dict | None, cot: dict | None) -> None:
        reference = None
        if self._driver == "reference":
            reference = self._references[episode.game.id][len(episode.steps)]
        chosen = {"cot": cot, "prompt": prompt, "reference": {"action": reference}}[self._driver]["action"]
        # The environment answers "Nothing happens" to an empty command: an invalid response costs a step, as it should.
        executed = "" if chosen is None else chosen
        self.executed[slot] = executed
        episode.steps.append(
            {
                "observation": episode.observation.text,
                "admissible_commands": list(episode.observation.admissible_commands),
                "executed": executed,
                "reference": reference,
                "nothing_happens": False,
                "prompt_length": int(self._policy.lengths[slot]),
                "cot": cot,
                "prompt": prompt,
            }
        )
        if len(episode.steps) >= self._elicitation.max_steps:
            episode.ended = "step_limit"  # unless this last action wins: see _advance


def _advance(live: dict[int, _Episode], executed: dict[int, str], codec: Any, environments: Environments) -> None:
    """Send the actions, and read what they changed."""
    if not executed:
        return
    started_at = time.perf_counter()
    answers = environments.step(executed)
    seconds = (time.perf_counter() - started_at) / len(executed)
    for slot, action in executed.items():
        episode, answer = live[slot], answers[slot]
        episode.environment_s += seconds
        if isinstance(answer, EnvError):
            episode.ended, episode.error = "env_error", str(answer)
            continue
        episode.observation = answer
        episode.steps[-1]["nothing_happens"] = answer.text.startswith("Nothing happens")
        if answer.won:
            episode.ended = "won"
        elif answer.done:
            episode.ended = "step_limit"
        else:
            episode.next_piece = codec.next_prompt(action, answer.text)


def _as_action(generation: Any, codec: Any, observation: Observation, kind: str, prefix: str) -> dict:
    text = codec.decode(generation.ids)
    response = formats.parse_response(text if kind == "prompt" else prefix + text, prefilled=kind == "prompt")
    if response.action is not None and not codec.encodable(response.action):
        response = formats.Response(response.thought, None, "a control token inside the action")
    return {
        "text": text,
        "thought": response.thought,
        "action": response.action,
        "valid": response.problem is None,
        "problem": response.problem,
        "admissible": response.action in observation.admissible_commands,
        "ids": [int(i) for i in generation.ids],
        "logprob": float(sum(generation.logprobs)),
        "new_tokens": len(generation.ids),
    }


def _as_record(episode: _Episode, driver: str, elicitation: Elicitation) -> dict:
    return {
        "driver": driver,
        "game": {"id": episode.game.id, "task_type": episode.game.task_type, "split": episode.game.split},
        "seed": episode.seed,
        "task": episode.task,
        "success": episode.ended == "won",
        "ended": episode.ended,
        "error": episode.error,
        "elicitation": asdict(elicitation),
        "steps": episode.steps,
        "final_observation": episode.observation.text if episode.observation else None,
        "timing": {"environment_s": round(episode.environment_s, 4), "sampler_s": round(episode.sampler_s, 4)},
    }


def _seed(episode: _Episode, kind: str) -> int:
    key = f"{episode.seed}/{episode.game.id}/{len(episode.steps)}/{kind}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big") >> 1
