"""The host-side loop: plays many episodes over a policy's slots.

At each turn the loop appends the new part of every live slot's prompt, decodes the driver's
actions from it and sends them to the environments. While the environments answer, and start the
next game where an episode is over, the loop decodes the other kinds of action from the same cached
prompts. Decoding thus hides the environments' time, and no result depends on which is faster.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from cotjax.envs.base import Game, Observation
from cotjax.errors import EnvError, UsageError
from cotjax.rollout.background import in_background
from cotjax.rollout.contracts import Codec, Environments, Policy
from cotjax.rollout.decoding import TurnDecoder
from cotjax.rollout.elicitation import Elicitation, kinds_decoded
from cotjax.rollout.episode import RunningEpisode
from cotjax.rollout.record import DRIVERS, Driver, Episode, Kind, Turn
from cotjax.rollout.tokens import check_continues

# A game, and the number of the episode among those of this game.
Numbered = tuple[Game, int]
OnStep = Callable[[Turn, Observation | None], None]


def play(
    games: Sequence[Game],
    *,
    policy: Policy,
    codec: Codec,
    environments: Environments,
    driver: Driver,
    elicitation: Elicitation,
    seed: int,
    on_record: Callable[[Game, Episode], None],
    references: Mapping[str, Sequence[str]] | None = None,
    on_step: OnStep = lambda turn, answer: None,
    kinds: Collection[Kind] | None = None,
    samples: Sequence[int] | None = None,
) -> None:
    """Play every game once and pass each finished episode to `on_record`.

    Args:
      driver: the kind of action that is played, or "reference": `references[game.id]` is.
      seed: a response's randomness depends on it, the game's id, the sample, the turn and the kind
        of action.
      kinds: the kinds of action that are decoded in every state, besides the driver's own; None:
        prompt actions too for "cot", both for "reference", and the driver's alone for others.
      on_step: called after each step with the turn and the environment's answer (None: it failed).
      samples: each episode's number among those of its game; None: in the order of `games`.

    An environment that fails for good ends its episode as "env_error"; the other episodes go on.
    Whatever text an environment gives, the model reads it as text.

    Raises:
      NotFiniteError: the policy's logits or log-probabilities are NaN or infinite; the message
        names the game and the step.
      InternalError: a prompt does not continue with exactly the sampled ids (see
        `cotjax.rollout.tokens`).
    """
    if driver not in DRIVERS:
        raise UsageError(f"unknown driver {driver!r}; choose one of {', '.join(DRIVERS)}")
    kinds = kinds_decoded(driver, kinds)
    waiting = list(reversed(_number(games, samples)))
    live: dict[int, RunningEpisode] = {}
    while waiting or live:
        _fill(live, waiting, policy, codec, environments, seed)
        turn = TurnDecoder(policy, codec, elicitation, driver, references, kinds)
        turn.act(live)
        # One thread at a time, so the environments see their calls in order.
        future = in_background(_move, environments, turn.actions, turn.last, waiting)
        turn.compare()
        started_at = time.perf_counter()
        moves = future.result()
        # Cap at the environments' own time, so scheduler delays are not charged to them.
        waited = min((time.perf_counter() - started_at) / max(1, len(turn.chosen)), moves.seconds)
        _advance(live, turn, moves, waited, codec, on_step)
        for slot, episode in list(live.items()):
            if episode.ended:
                faults = moves.faults.get(slot)
                episode.env_faults = list(environments.faults(slot) if faults is None else faults)
                on_record(episode.game, episode.finish(driver, elicitation, kinds))
                del live[slot]
        _begin(live, moves.starting, moves.begun, 0.0, policy, codec, seed)


def _number(games: Sequence[Game], samples: Sequence[int] | None) -> list[Numbered]:
    """Pair the games with the numbers of their episodes. Raises UsageError for equal pairs."""
    if samples is None:
        seen: Counter[str] = Counter()
        samples = []
        for game in games:
            samples.append(seen[game.id])
            seen[game.id] += 1
    numbered = list(zip(games, samples, strict=True))
    if len({(game.id, sample) for game, sample in numbered}) < len(numbered):
        raise UsageError(
            "two samples of one game have the same number, so they would be equal; number them "
            "0, 1, …"
        )
    return numbered


@dataclass
class _Moves:
    """What the environments did with a turn's actions.

    Attributes:
      faults: faults of the slots whose episode is over.
      starting: slot -> the game that it plays next.
      begun: slot -> how that game began.
      seconds: time of the environments, per slot that was sent an action.
    """

    answers: Mapping[int, Observation | EnvError] = field(default_factory=dict)
    faults: dict[int, list[str]] = field(default_factory=dict)
    starting: dict[int, Numbered] = field(default_factory=dict)
    begun: Mapping[int, tuple[str, Observation] | EnvError] = field(default_factory=dict)
    seconds: float = 0.0


def _move(
    environments: Environments, actions: dict[int, str], last: set[int], waiting: list[Numbered]
) -> _Moves:
    """Send the actions, and start the next game in each slot whose episode is over.

    An episode is over after its `last` step, or when its environment says so.
    """
    if not actions:
        return _Moves()
    started_at = time.perf_counter()
    answers = environments.step(actions)
    over = [slot for slot in actions if slot in last or _ends(answers[slot])]
    faults = {slot: list(environments.faults(slot)) for slot in over}
    starting = {slot: waiting.pop() for slot in over[: len(waiting)]}
    begun = _reset(environments, starting) if starting else {}
    seconds = (time.perf_counter() - started_at) / len(actions)
    return _Moves(answers, faults, starting, begun, seconds)


def _ends(answer: Observation | EnvError) -> bool:
    return isinstance(answer, EnvError) or answer.won or answer.done


def _reset(
    environments: Environments, starting: Mapping[int, Numbered]
) -> Mapping[int, tuple[str, Observation] | EnvError]:
    return environments.reset({slot: game for slot, (game, _) in starting.items()})


def _fill(
    live: dict[int, RunningEpisode],
    waiting: list[Numbered],
    policy: Policy,
    codec: Codec,
    environments: Environments,
    seed: int,
) -> None:
    """Start games in free slots: at the beginning, and where a prompt had grown too long."""
    free = [slot for slot in range(policy.slots) if slot not in live][: len(waiting)]
    if not free:
        return
    starting = {slot: waiting.pop() for slot in free}
    started_at = time.perf_counter()
    begun = _reset(environments, starting)
    waited = (time.perf_counter() - started_at) / len(free)
    _begin(live, starting, begun, waited, policy, codec, seed)


def _begin(
    live: dict[int, RunningEpisode],
    starting: Mapping[int, Numbered],
    begun: Mapping[int, tuple[str, Observation] | EnvError],
    waited: float,
    policy: Policy,
    codec: Codec,
    seed: int,
) -> None:
    """Make episodes of the games that environments have started.

    `waited`: seconds per slot in which nothing was decoded; 0 for games that began together with a
    turn's actions, whose time is counted with that turn.
    """
    policy.reset(starting)
    for slot, (game, sample) in starting.items():
        episode = RunningEpisode(game, sample, seed, environment_s=waited, waited_s=waited)
        live[slot] = episode
        answer = begun[slot]
        if isinstance(answer, EnvError):
            episode.fail(answer)
            continue
        episode.task, episode.observation = answer
        seen = episode.observation
        episode.next_piece = codec.first_prompt(
            episode.task, seen.text, seen.admissible_commands, episode.state
        )


def _advance(
    live: Mapping[int, RunningEpisode],
    turn: TurnDecoder,
    moves: _Moves,
    waited: float,
    codec: Codec,
    on_step: OnStep,
) -> None:
    """Record the turn, and prepare the next one from what the environments answered.

    `waited`: seconds per slot in which nothing was decoded.
    """
    for slot, chosen in turn.chosen.items():
        episode, answer = live[slot], moves.answers[slot]
        episode.environment_s += moves.seconds
        episode.waited_s += waited
        if isinstance(answer, EnvError):
            played = episode.add_turn(chosen, turn.decoded[slot], None)
            episode.fail(answer)
            on_step(played, None)
            continue
        played = episode.add_turn(chosen, turn.decoded[slot], answer)
        if answer.won:
            episode.ended = "won"
        elif answer.done or slot in moves.faults:
            episode.ended = "step_limit"
        else:
            sampled = chosen.ids
            episode.next_piece = codec.next_prompt(
                chosen.text if sampled is None else sampled,
                answer.text,
                answer.admissible_commands,
                episode.state,
            )
            if sampled is not None:
                check_continues(episode.where, episode.next_piece, sampled, codec)
        on_step(played, answer)
