"""One episode: what the loop keeps of it, and what its record says."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from cotjax import formats
from cotjax.envs.base import Game, Observation
from cotjax.rollout.tokens import text_to_stop


@dataclass
class Episode:
    """One episode while it is played."""

    game: Game
    sample: int  # which of the game's episodes it is
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


def draw_seed(episode: Episode, kind: str) -> int:
    """Return the seed, 64 bits, of the response of this kind at the episode's next step: no other response of the study has it."""
    key = f"{episode.seed}/{episode.game.id}/{len(episode.steps)}/{kind}" + f"/{episode.sample}" * (
        episode.sample > 0
    )
    return int.from_bytes(
        hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest(), "big"
    )


def as_action(
    generation: Any, codec: Any, observation: Observation, kind: str, prefix: str, seed: int
) -> dict:
    """Return what the record says of one response; `prefix`: the text that it was prefilled with."""
    text = codec.decode(generation.ids)
    prefilled = kind == "prompt"
    whole = text_to_stop(codec, generation.ids, text)
    response = formats.parse_response(
        whole if prefilled else prefix + whole, prefilled=prefilled, stopped=generation.stopped
    )
    if response.action is not None and not codec.encodable(response.action):
        response = formats.Response(response.thought, None, "control_token")
    logprobs = generation.logprobs  # None from a policy that gives none
    measured = (
        {}
        if logprobs is None
        else {"logprob": float(sum(logprobs)), "logprobs": [round(float(x), 6) for x in logprobs]}
    )
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


def as_record(episode: Episode, driver: str, elicitation: Any) -> dict:
    """Return the record of an episode that is over. `elicitation`: a dataclass."""
    return {
        "driver": driver,
        "game": {
            "id": episode.game.id,
            "task_type": episode.game.task_type,
            "split": episode.game.split,
        },
        "seed": episode.seed,
        "sample": episode.sample,
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
