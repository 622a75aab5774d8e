"""An episode while it is played, and the making of its record."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from cotjax import formats
from cotjax.envs.base import Game, Observation, Play
from cotjax.rollout.contracts import Codec, Generation
from cotjax.rollout.elicitation import Elicitation
from cotjax.rollout.record import (
    Choice,
    Driver,
    Ended,
    Episode,
    Kind,
    PlayedGame,
    Response,
    Timing,
    Turn,
)
from cotjax.rollout.tokens import text_to_stop


@dataclass(frozen=True)
class Chosen:
    """The action that a slot's environment receives.

    Attributes:
      text: what is sent; "" for an invalid response.
      ids: the action as it was sampled or scored; None where it was not, or cannot go on as ids.
      reference: the expert's action, where one is replayed.
    """

    text: str
    ids: list[int] | None
    reference: str | None


def response_seed(seed: int, game_id: str, turn: int, kind: str, sample: int) -> int:
    """Return the seed (64 bits) of a response's sampling, unique in the study of this seed."""
    key = f"{seed}/{game_id}/{turn}/{kind}" + (f"/{sample}" if sample > 0 else "")
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


@dataclass
class RunningEpisode:
    """One episode while it is played.

    Attributes:
      seed: the study's seed.
      observation: the environment's last answer; None before it has started.
      prompt: ids that the policy's slot holds.
      next_piece: ids to append to them at the next turn.
      ended: None while it goes on.
    """

    play: Play
    seed: int
    task: str = ""
    observation: Observation | None = None
    prompt: list[int] = field(default_factory=list)
    next_piece: list[int] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    env_error: str | None = None
    env_faults: list[str] = field(default_factory=list)
    ended: Ended | None = None
    environment_s: float = 0.0
    waited_s: float = 0.0
    sampler_s: float = 0.0
    started_at: float = field(default_factory=time.perf_counter)

    @property
    def game(self) -> Game:
        """The game that is played."""
        return self.play.game

    @property
    def where(self) -> str:
        """The play and the step being played, for messages."""
        return f"{self.play}, step {len(self.turns) + 1}"

    @property
    def state(self) -> str:
        """The game and the number of the state to answer, which decide its sampled actions."""
        return formats.state_key(self.game.id, len(self.turns))

    @property
    def seen(self) -> Observation:
        """The observation that the current turn answers."""
        assert self.observation is not None, f"{self.where}: the episode has not started"
        return self.observation

    def draw_seed(self, kind: str) -> int:
        """Return the seed (64 bits) of this turn's response of one kind, unique in the study."""
        return response_seed(self.seed, self.game.id, len(self.turns), kind, self.play.sample)

    def fail(self, error: Exception) -> None:
        """End the episode: its environment failed for good."""
        self.ended, self.env_error = "env_error", str(error)

    def add_turn(
        self,
        chosen: Chosen,
        decoded: Mapping[Kind, Response | Choice],
        answer: Observation | None,
    ) -> Turn:
        """Append the turn that was just played. `answer`: None where the environment failed."""
        of_kind: dict[Any, Any] = {"cot": None, "prompt": None, **decoded}
        commands = self.seen.admissible_commands
        turn = Turn(
            observation=self.seen.text,
            admissible_commands=None if commands is None else tuple(commands),
            prompt_ids=tuple(self.next_piece),
            prompt_length=len(self.prompt),
            **of_kind,
            reference=chosen.reference,
            executed=chosen.text,
            accepted=answer.accepted if answer else None,
            score=answer.score if answer else None,
        )
        self.turns.append(turn)
        if answer is not None:
            self.observation = answer
        return turn

    def finish(self, driver: Driver, elicitation: Elicitation, kinds: Collection[Kind]) -> Episode:
        """Return what is recorded of the episode, which is over. `kinds`: those decoded."""
        assert self.ended is not None, f"{self.where}: the episode is not over"
        return Episode(
            driver=driver,
            game=PlayedGame(id=self.game.id, task_type=self.game.task_type, split=self.game.split),
            seed=self.seed,
            sample=self.play.sample,
            task=self.task,
            success=self.ended == "won",
            score=self.observation.score if self.observation else None,
            ended=self.ended,
            env_error=self.env_error,
            env_faults=tuple(self.env_faults),
            elicitation=elicitation.recorded(kinds),
            steps=tuple(self.turns),
            final_observation=self.observation.text if self.observation else None,
            timing=Timing(
                environment_s=round(self.environment_s, 4),
                waited_s=round(self.waited_s, 4),
                sampler_s=round(self.sampler_s, 4),
                total_s=round(time.perf_counter() - self.started_at, 4),
            ),
        )


def read_response(
    generation: Generation,
    codec: Codec,
    observation: Observation,
    *,
    prefix: str,
    prefilled: bool,
    seed: int,
    to_end: bool = False,
) -> Response:
    """Parse a generation and return what is recorded of it.

    `prefix`: the text before it. `prefilled`: the prefix opened the action (a prompt response).
    `to_end`: see `cotjax.rollout.elicitation.Elicitation`.
    """
    text = codec.decode(generation.ids)
    read = text_to_stop(codec, generation.ids, text)
    parsed = formats.parse_response(
        read if prefilled else prefix + read, prefilled=prefilled, stopped=generation.stopped
    )
    if to_end and parsed.action is not None and not generation.stopped:
        parsed = formats.Response(parsed.thought, None, "cut")
    if parsed.action is not None and not codec.encodable(parsed.action):
        parsed = formats.Response(parsed.thought, None, "control_token")
    commands = observation.admissible_commands
    return response_of(
        generation,
        text,
        seed=seed,
        thought=parsed.thought,
        action=parsed.action,
        reason=parsed.reason,
        problem=parsed.problem,
        admissible=None if commands is None else parsed.action in commands,
    )


def response_of(
    generation: Generation,
    text: str,
    *,
    seed: int,
    thought: str | None,
    action: str | None,
    reason: str | None,
    problem: str | None,
    admissible: bool | None = None,
) -> Response:
    """Return what is recorded of a generation with this text, which was parsed."""
    logprobs = generation.logprobs
    return Response(
        text=text,
        thought=thought,
        action=action,
        valid=reason is None,
        reason=reason,
        problem=problem,
        admissible=admissible,
        ids=tuple(int(i) for i in generation.ids),
        new_tokens=generation.new_tokens,
        stopped=bool(generation.stopped),
        seed=seed,
        logprob=None if logprobs is None else float(sum(logprobs)),
        logprobs=None if logprobs is None else tuple(round(float(x), 6) for x in logprobs),
    )
