"""The host-side loop: plays many episodes over a policy's slots.

At each turn the loop appends the new part of every live slot's prompt, decodes the driver's
actions from it and sends them to the environments. While the environments answer, and start the
next game where an episode is over, the loop decodes

- the other kinds of action, if there are any, from the same cached prompts; and
- the other half of the slots, if the caller has divided them. The two halves take turns:

      decode              A1   B1   A2   B2   A3
      environments of A        ----      ----
      environments of B             ----      ----

Decoding thus hides the environments' time, and no result depends on which is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial

from cotjax.envs.base import Observation, Play
from cotjax.errors import EnvError, UsageError
from cotjax.rollout.background import in_background
from cotjax.rollout.contracts import Codec, Environments, Policy
from cotjax.rollout.decoding import Experts, TurnDecoder
from cotjax.rollout.elicitation import Elicitation, kinds_decoded
from cotjax.rollout.episode import Chosen, RunningEpisode
from cotjax.rollout.growing import Results, SimulatedSearch, answered
from cotjax.rollout.record import DRIVERS, Driver, Episode, Kind, Turn
from cotjax.rollout.tokens import check_continues

OnRecord = Callable[[Play, Episode], None]
OnStep = Callable[[Turn, Observation | None], None]


def play(
    plays: Sequence[Play],
    *,
    policy: Policy,
    codec: Codec,
    environments: Environments,
    driver: Driver,
    elicitation: Elicitation,
    seed: int,
    on_record: OnRecord,
    references: Mapping[str, Sequence[str]] | None = None,
    thoughts: Mapping[str, Sequence[str | None]] | None = None,
    on_step: OnStep = lambda turn, answer: None,
    kinds: Collection[Kind] | None = None,
    second_half: tuple[Policy, Environments] | None = None,
) -> None:
    """Play games and pass each finished episode to `on_record`.

    Args:
      plays: no two of them equal. Each is the same alone and among others, in any order and slot.
      driver: the kind of action that is played, or "reference": `references[game.id]` is, after
        `thoughts[game.id]` in one growing text.
      seed: a response's randomness depends on it, the game's id, the play's sample, the turn and
        the kind of action.
      kinds: the kinds of action that are decoded in every state, besides the driver's own; None:
        prompt actions too for "cot", both for "reference", and the driver's alone for others.
      on_step: called after each step with the turn and the environment's answer (None: it failed).
      second_half: a policy with the same weights, and environments, that do every other play in
        turn with `policy` and `environments`. The two share no slots.

    An environment that fails for good ends its episode as "env_error"; the other episodes go on.
    Whatever text an environment gives, the model reads it as text.

    Raises:
      NotFiniteError: the policy's logits or log-probabilities are not finite; names game and step.
      InternalError: a prompt does not continue with exactly the sampled ids (see
        `cotjax.rollout.tokens`).
    """
    if driver not in DRIVERS:
        raise UsageError(f"unknown driver {driver!r}; choose one of {', '.join(DRIVERS)}")
    _check_apart(plays)
    half = partial(
        _Slots,
        codec=codec,
        driver=driver,
        elicitation=elicitation,
        seed=seed,
        experts=(references or {}, thoughts or {}),
        kinds=kinds_decoded(driver, kinds),
        on_step=on_step,
        on_record=on_record,
        idle=_Idle(),
    )
    pairs = [(policy, environments), *([second_half] if second_half else [])]
    # Which half does a play does not depend on which one is faster.
    halves = [half(*pair, list(plays[n :: len(pairs)])) for n, pair in enumerate(pairs)]
    while any(each.playing for each in halves):
        for each in halves:
            each.receive()
            each.send()


def _check_apart(plays: Sequence[Play]) -> None:
    """Raise UsageError for two plays that would be equal."""
    if len({(each.game.id, each.sample) for each in plays}) < len(plays):
        raise UsageError(
            "two plays of one game have the same sample number, so they would be equal; number "
            "them 0, 1, …"
        )


@dataclass
class _Moves:
    """What the environments did with a turn's actions.

    Attributes:
      answers: slot -> the answer to its action.
      over: slots whose episode is over -> its faults.
      starting: slot -> what it plays next.
      begun: slot -> how that game began.
      seconds: time of the environments, per slot that was sent an action, or that starts a game
        where none was sent one.
    """

    answers: Mapping[int, Observation | EnvError]
    over: dict[int, list[str]]
    starting: dict[int, Play]
    begun: Mapping[int, tuple[str, Observation] | EnvError]
    seconds: float


def _move(
    environments: Environments,
    turn: TurnDecoder,
    live: Collection[int],
    empty: Iterable[int],
    waiting: list[Play],
) -> _Moves:
    """Send the actions, and start the next game in each slot that is empty, or whose episode is
    over.

    An episode is over after its `last` step, when its environment says so, or when its slot was
    sent no action.
    """
    started_at = time.perf_counter()
    actions = turn.actions
    answers = environments.step(actions) if actions else {}
    over = {
        slot: list(environments.faults(slot))
        for slot in live
        if slot not in actions or slot in turn.last or _ends(answers[slot])
    }
    free = [*over, *empty]
    starting = {slot: waiting.pop(0) for slot in free[: len(waiting)]}
    games = {slot: each.game for slot, each in starting.items()}
    begun = environments.reset(games) if games else {}
    seconds = (time.perf_counter() - started_at) / max(1, len(actions or starting))
    return _Moves(answers, over, starting, begun, seconds)


def _ends(answer: Observation | EnvError) -> bool:
    return isinstance(answer, EnvError) or answer.won or answer.done


@dataclass
class _Idle:
    """Seconds in which the loop has decoded nothing, waiting for the environments of any half."""

    seconds: float = 0.0


@dataclass
class _Slots:
    """A policy's slots with their environments, and what they play.

    Attributes:
      waiting: what is yet to start.
      live: slot -> its episode.
      sent: the turn whose actions are at the environments, what these will have done, and
        `idle.seconds` when they were sent.
    """

    policy: Policy
    environments: Environments
    waiting: list[Play]
    codec: Codec
    driver: Driver
    elicitation: Elicitation
    seed: int
    experts: Experts
    kinds: Collection[Kind]
    on_step: OnStep
    on_record: OnRecord
    idle: _Idle
    live: dict[int, RunningEpisode] = field(default_factory=dict)
    sent: tuple[TurnDecoder, Future[_Moves], float] | None = None
    simulated: SimulatedSearch | None = field(init=False)

    def __post_init__(self) -> None:
        if self.driver == "reference":  # results are the expert's, as its pieces are
            self.elicitation = replace(self.elicitation, simulated=False)
        # Who writes the results of a growing text: None for the environments.
        self.simulated = None
        if self.elicitation.simulated:
            self.simulated = SimulatedSearch(self.policy, self.codec, self.elicitation)

    @property
    def playing(self) -> bool:
        """Whether any play is not over."""
        return bool(self.waiting or self.live or self.sent)

    def send(self) -> None:
        """Decode a turn, and send the driver's actions as soon as they are decoded."""
        if not self.playing:
            return
        turn = TurnDecoder(
            self.policy, self.codec, self.elicitation, self.driver, self.experts, self.kinds
        )
        turn.act(self.live)
        empty = [slot for slot in range(self.policy.slots) if slot not in self.live]
        # One thread at a time, so the environments see their calls in order.
        moves = in_background(_move, self.environments, turn, list(self.live), empty, self.waiting)
        self.sent = turn, moves, self.idle.seconds
        turn.compare()

    def receive(self) -> None:
        """Record what the environments answered, and begin the games that they have started."""
        if self.sent is None:
            return
        (turn, future, idle_before), self.sent = self.sent, None
        started_at = time.perf_counter()
        moves = future.result()
        self.idle.seconds += time.perf_counter() - started_at
        # While the loop waited for the other half, it decoded nothing for this one either.
        waited = (self.idle.seconds - idle_before) / max(1, len(turn.chosen or moves.starting))
        # Cap at the environments' own time, so scheduler delays are not charged to them.
        waited = min(waited, moves.seconds)
        self._advance(turn, moves, waited)
        for slot, faults in moves.over.items():
            episode = self.live.pop(slot)
            episode.env_faults = faults
            self.on_record(episode.play, episode.finish(self.driver, self.elicitation, self.kinds))
        self._begin(moves, *((0.0, 0.0) if turn.chosen else (moves.seconds, waited)))

    def _advance(self, turn: TurnDecoder, moves: _Moves, waited: float) -> None:
        """Record the turn, and prepare the next one from what the environments answered.

        `waited`: seconds per slot in which nothing was decoded.
        """
        results: Mapping[int, Results] = {}
        if self.codec.growing is not None:
            goes_on = {
                slot: answer
                for slot, answer in moves.answers.items()
                if slot not in moves.over and isinstance(answer, Observation)
            }
            text = self.codec.growing, self.simulated
            seen, results = answered(self.live, turn.chosen, goes_on, *text)
            moves.answers = {**moves.answers, **seen}
        for slot, chosen in turn.chosen.items():
            episode, answer = self.live[slot], moves.answers[slot]
            episode.environment_s += moves.seconds
            episode.waited_s += waited
            if isinstance(answer, EnvError):
                played = episode.add_turn(chosen, turn.decoded[slot], None)
                episode.fail(answer)
                self.on_step(played, None)
                continue
            result = results.get(slot)
            if result is not None and not result.closed:
                turn.refuse(slot)
            played = episode.add_turn(chosen, turn.decoded[slot], answer)
            if answer.won:
                episode.ended = "won"
            elif slot in moves.over or (result is not None and not result.closed):
                episode.ended = "step_limit"
            elif result is not None:
                episode.next_piece = [*(chosen.ids or ()), *result.ids]
            else:
                episode.next_piece = self._next_turn(episode, chosen, answer)
            self.on_step(played, answer)

    def _next_turn(self, episode: RunningEpisode, chosen: Chosen, answer: Observation) -> list[int]:
        """Return the ids of the executed action and of the next turn."""
        sampled = chosen.ids
        piece = self.codec.next_prompt(
            chosen.text if sampled is None else sampled,
            answer.text,
            answer.admissible_commands,
            episode.state,
        )
        if sampled is not None:
            check_continues(episode.where, piece, sampled, self.codec)
        return piece

    def _begin(self, moves: _Moves, seconds: float, waited: float) -> None:
        """Make episodes of the games that the environments have started.

        `seconds`, `waited`: time of the environments per slot, and the part in which nothing was
        decoded; 0 for games that began together with a turn's actions, whose time is counted with
        that turn.
        """
        self.policy.reset(moves.starting)
        for slot, play in moves.starting.items():
            episode = RunningEpisode(play, self.seed, environment_s=seconds, waited_s=waited)
            self.live[slot] = episode
            answer = moves.begun[slot]
            if isinstance(answer, EnvError):
                episode.fail(answer)
                continue
            episode.task, episode.observation = answer
            seen = episode.observation
            episode.next_piece = self.codec.first_prompt(
                episode.task, seen.text, seen.admissible_commands, episode.state
            )
