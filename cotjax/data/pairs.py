"""Pairs of a chosen and a rejected response, or episode, as examples of token ids.

    step pair         one prompt, two branches: one state, chosen and rejected (thought, action)
    triple            FRODO's: a step pair, and a third branch, rejected thought and chosen action
    trajectory pair   two trees side by side, a won and a lost episode of a game (arXiv 2403.02502)

The ids are those of training and of sampling: a rejected response that a model sampled keeps its
ids. `cotjax.data.pair_store` keeps pairs on disk, `cotjax.rl.pairs` reads them from records.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from cotjax.data.codec import Codec, Segments
from cotjax.data.sides import CHOSEN
from cotjax.data.tokens import TREES, TokenExample, forked_example, trajectory_examples
from cotjax.data.trajectories import Trajectory
from cotjax.errors import DataError
from cotjax.formats import normalize_action, state_key
from cotjax.masking import RESPONSE_ROLES, Role, draw

FORMS = ("step", "triple", "trajectory")
# Why there is no pair: code -> text for people.
REASONS = {
    "no_thought": "of a step without a thought",
    "untrained": "of a step marked as not trained on",
    "no_rejected": "without a rejected response",
    "unnamed": "whose rejected thought does not name its action",
    "too_long": "longer than data.max_length",
    "no_lost": "of a won episode without a lost one of its game",
}
SLACK = 5  # steps by which a lost episode may be longer than the won one (ETO)


@dataclass(frozen=True)
class PairExample(TokenExample):
    """A pair, or a triple.

    segments: [T] int8, 0 or 1: tokens of different segments do not see each other.
    sides: [T] int8, the side that a response's token belongs to; 0 on prompts.
    """

    segments: np.ndarray
    sides: np.ndarray


@dataclass(frozen=True)
class Answer:
    """A response in ids, in two parts: reasoning with its tags, and the rest.

    action: the text that the environment receives.
    """

    thought: Segments
    acted: Segments
    action: str


class Answers(Protocol):
    """Where rejected responses come from."""

    def __call__(self, trajectory: Trajectory, number: int, prompt: Segments) -> Answer | None:
        """Return a response that is worse than that of a trajectory's step; None: there is none."""


@dataclass
class PairCounts:
    """How many pairs were made, and by reason (a key of REASONS) how many were not."""

    pairs: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def lines(self) -> Iterator[str]:
        """Yield lines of text."""
        yield f"{self.pairs:,} pairs"
        for reason, text in REASONS.items():
            if count := self.left_out[reason]:
                yield f"left out: {count:,} {text}"


# ---- pairs of responses


def step_pairs(
    codec: Codec,
    trajectories: Iterable[Trajectory],
    answers: Answers,
    max_length: int,
    counts: PairCounts,
    *,
    triples: bool = False,
    differing: bool = False,
) -> Iterator[PairExample]:
    """Yield a pair for each step whose response has a worse one, in the order of the trajectories.

    Args:
      answers: gives the rejected response of a step.
      triples: yield FRODO's triples. The rejected thought has to name its action, so that it
        supports it.
      differing: the sides begin where the responses differ; what they share is prompt.

    Raises:
      DataError: a step cannot be encoded; the message names the trajectory and the step.
    """
    for trajectory in trajectories:
        prompt: Segments = []
        for number, step in enumerate(trajectory.steps):
            prompt += _next_prompt(codec, trajectory, number)
            made = _step_pair(
                codec, trajectory, number, prompt, answers, triples=triples, differing=differing
            )
            if isinstance(made, PairExample) and len(made.ids) > max_length:
                made = "too_long"
            if isinstance(made, str):
                counts.left_out[made] += 1
            else:
                counts.pairs += 1
                yield made
            prompt += [(ids, Role.PROMPT) for ids, _ in codec.acted(step.action)]


def _next_prompt(codec: Codec, trajectory: Trajectory, number: int) -> Segments:
    step, key = trajectory.steps[number], state_key(trajectory.game, number)
    try:
        if number:
            return codec.next_turn(step.observation, step.admissible_commands, key)
        return codec.first_turn(trajectory.task, step.observation, step.admissible_commands, key)
    except DataError as error:
        raise DataError(f"trajectory {trajectory.id!r}, step {number}: {error}") from None


def _step_pair(
    codec: Codec,
    trajectory: Trajectory,
    number: int,
    prompt: Segments,
    answers: Answers,
    *,
    triples: bool,
    differing: bool,
) -> PairExample | str:
    """Return the pair of a step, or why there is none."""
    step = trajectory.steps[number]
    if not step.trained:
        return "untrained"
    if step.thought is None:
        return "no_thought"
    worse = answers(trajectory, number, prompt)
    if worse is None or normalize_action(worse.action) == normalize_action(step.action):
        return "no_rejected"
    try:
        chosen = codec.thinks(step.thought), codec.acted(step.action)
    except DataError as error:
        raise DataError(f"trajectory {trajectory.id!r}, step {number}: {error}") from None
    responses = [[*chosen[0], *chosen[1]], [*worse.thought, *worse.acted]]
    if triples:
        said = codec.decode([id for ids, _ in worse.thought for id in ids])
        if not _names(said, worse.action):
            return "unnamed"
        responses.append([*worse.thought, *chosen[1]])
    if differing:
        shared, responses = divided(responses)
        prompt = [*prompt, *shared]
    return branched(forked_example(trajectory.id, number, prompt, responses))


def _names(thought: str, action: str) -> bool:
    """Return whether a thought says an action, however its whitespace and case are."""
    return normalize_action(action).lower() in normalize_action(thought).lower()


def branched(example: TokenExample) -> PairExample:
    """Return an example of `forked_example` as a pair: branch n is side n."""
    sides = np.where(np.isin(example.roles, RESPONSE_ROLES), example.branches, 0)
    return PairExample(
        **vars(example), segments=np.zeros(len(sides), np.int8), sides=sides.astype(np.int8)
    )


def divided(responses: Sequence[Segments]) -> tuple[Segments, list[Segments]]:
    """Return the ids that all responses begin with, as a prompt, and the rest of each.

    The rest is empty where one response begins with the whole of another.
    """
    flat = [[(id_, role) for ids, role in response for id_ in ids] for response in responses]
    count = 0
    for ids in zip(*([id_ for id_, _ in response] for response in flat), strict=False):
        if len(set(ids)) > 1:
            break
        count += 1
    shared = [([id_], Role.PROMPT) for id_, _ in flat[0][:count]]
    return shared, [[([id_], role) for id_, role in response[count:]] for response in flat]


class OtherStates:
    """Rejected responses without sampling: the thought and action of another state of the episode.

    The action differs from that of the state and is admissible there. Drawn by a stable hash.
    """

    def __init__(self, codec: Codec, seed: int = 0):
        self._codec, self._seed = codec, seed

    def __call__(self, trajectory: Trajectory, number: int, prompt: Segments) -> Answer | None:
        """As `Answers`."""
        here = trajectory.steps[number]
        allowed = {normalize_action(command) for command in here.admissible_commands}
        allowed.discard(normalize_action(here.action))
        others = [
            other
            for other in trajectory.steps
            if other.thought is not None and normalize_action(other.action) in allowed
        ]
        if not others:
            return None
        drawn = draw(self._seed, f"rejected/{trajectory.id}/{number}")
        other = others[int(drawn * len(others))]
        return Answer(
            self._codec.thinks(other.thought or ""), self._codec.acted(other.action), other.action
        )


class SameState:
    """Rejected responses of other episodes, where these came by the same actions to the state.

    Args:
      trajectories: other episodes, such as an explorer's.
    """

    def __init__(self, codec: Codec, trajectories: Iterable[Trajectory]):
        self._codec = codec
        self._of_game: dict[str, list[Trajectory]] = defaultdict(list)
        for trajectory in trajectories:
            self._of_game[trajectory.game].append(trajectory)

    def __call__(self, trajectory: Trajectory, number: int, prompt: Segments) -> Answer | None:
        """As `Answers`."""
        here = trajectory.steps[number]
        before = _seen(trajectory, number)
        for other in self._of_game[trajectory.game]:
            if len(other.steps) <= number or _seen(other, number) != before:
                continue
            step = other.steps[number]
            if step.thought is None:
                continue
            if normalize_action(step.action) != normalize_action(here.action):
                return Answer(
                    self._codec.thinks(step.thought), self._codec.acted(step.action), step.action
                )
        return None


def _seen(trajectory: Trajectory, number: int) -> list[str]:
    """Return what a prompt of a trajectory shows: observations up to a step, actions before it."""
    steps = trajectory.steps[: number + 1]
    actions = [normalize_action(step.action) for step in steps[:-1]]
    return [trajectory.task, *(step.observation for step in steps), *actions]


# ---- pairs of episodes


def trajectory_pairs(
    codec: Codec,
    won: Iterable[Trajectory],
    lost: Mapping[str, Sequence[TokenExample]],
    max_length: int,
    counts: PairCounts,
) -> Iterator[PairExample]:
    """Yield a pair for every lost episode of a won one's game.

    Args:
      lost: game -> the lost episodes as trees, of any length: steps beyond those of the won episode
        and SLACK are cut.
      max_length: tokens of both together.
    """
    for trajectory in won:
        trees = list(trajectory_examples(codec, trajectory, "cot", max_length, TREES))
        whole = len(trees) == 1 and len(trees[0].steps) == len(trajectory.steps)
        others = lost.get(trajectory.game, ())
        if not others or not whole:
            counts.left_out["no_lost" if not others else "too_long"] += 1
            continue
        for other in others:
            rejected = first_steps(other, len(trajectory.steps) + SLACK)
            if len(trees[0].ids) + len(rejected.ids) > max_length:
                counts.left_out["too_long"] += 1
                continue
            counts.pairs += 1
            yield side_by_side(trees[0], rejected)


def lost_trees(
    codec: Codec, trajectories: Iterable[Trajectory], max_length: int
) -> dict[str, list[TokenExample]]:
    """Return the lost episodes of a trajectory file as trees, by game: those that fit into one."""
    trees: dict[str, list[TokenExample]] = defaultdict(list)
    for trajectory in trajectories:
        if trajectory.success is not False:
            continue
        made = list(trajectory_examples(codec, trajectory, "cot", max_length, TREES))
        if made and made[0].first_step == 0:
            trees[trajectory.game].append(made[0])
    return dict(trees)


def first_steps(tree: TokenExample, steps: int) -> TokenExample:
    """Return a tree up to the end of its first responses, `steps` of them at most."""
    kept = tree.steps[tree.steps < steps]
    within = np.isin(tree.branches, kept - tree.first_step + 1) & (tree.branches > 0)
    end = int(np.flatnonzero(within)[-1]) + 1 if within.any() else 0
    arrays = {name: getattr(tree, name)[:end] for name in ("ids", "roles", "branches", "positions")}
    return TokenExample(tree.id, tree.first_step, kept, **arrays)


def side_by_side(chosen: TokenExample, rejected: TokenExample) -> PairExample:
    """Return two episodes as a pair, whose tokens do not see those of the other."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(chosen, name), getattr(rejected, name)])

    names = ("steps", "ids", "roles", "branches", "positions")
    arrays = {name: joined(name) for name in names}
    segments = np.repeat(np.array([0, 1], np.int8), [len(chosen.ids), len(rejected.ids)])
    written = np.isin(arrays["roles"], RESPONSE_ROLES)
    return PairExample(
        chosen.id,
        chosen.first_step,
        **arrays,
        segments=segments,
        sides=np.where(written, segments + CHOSEN, 0).astype(np.int8),
    )
