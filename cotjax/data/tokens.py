"""Trajectories -> token ids and roles. Text is tokenised once, segment by segment, and never decoded and encoded again.

A trajectory becomes trees of tokens. The trunk is the prompt with its history; each step's reasoned response is a branch that
leaves the trunk where its prompt ends:

    row       prompt 1 | <think> … </action><end> | <action> a1 </action><end> prompt 2 | <think> … </action><end> | …
    branches  0 0 0 0 0  1 1 1 1 1 1 1 1 1 1 1 1    0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0    2 2 2 2 2 2 2 2 2 2 2 2
    positions 0 1 2 3 4  5 6 7 8 …                  5 6 7 8 …                            20 21 …

With the attention rule of `cotjax.model.attention` this trains exactly what one row a step would (each step its own prompt and
response), without encoding the shared history again for every step. `Layout` says what else there is: one example a step, and past
turns that keep their thoughts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cotjax.data.codec import Codec, Segments
from cotjax.data.trajectories import Trajectory
from cotjax.errors import DataError, UsageError
from cotjax.masking import Role

FORMS = ("cot", "direct")
LAYOUTS = ("trajectory", "step")
NO_THOUGHT = (
    "skip",
    "direct",
    "error",
)  # what becomes of a step without a thought in the form "cot"


@dataclass(frozen=True)
class Layout:
    """How a trajectory becomes examples.

    `name`: "trajectory" (one example an episode, the steps share their history) or "step" (one example a step: its own prompt and
    response). `history`: past turns that a step's prompt shows, 0 for all; a prompt that shows fewer begins like an episode whose
    first observation is that of its earliest turn. `past_thoughts`: past turns keep their thoughts. A rollout's prompts show all
    turns without thoughts, so only such layouts can be played.
    """

    name: str = "trajectory"
    history: int = 0
    past_thoughts: bool = False

    def __post_init__(self):
        if self.name not in LAYOUTS:
            raise UsageError(f"unknown layout {self.name!r}; there are {', '.join(LAYOUTS)}")
        if self.history < 0:
            raise UsageError(
                f"a history of {self.history} turns cannot be; give at least 0, which is all of them"
            )
        if self.history and self.name != "step":
            raise UsageError(
                "steps of one sequence share all of their history; a shorter one needs the layout 'step'"
            )

    @property
    def playable(self) -> bool:
        """Whether its prompts are those that a rollout builds."""
        return not self.history and not self.past_thoughts


TREES = Layout()


@dataclass(frozen=True)
class TokenExample:
    """One example's tokens.

    steps: [R], the trajectory's step that each of its responses is of, in their order; `first_step`: the step that its history of
      trained responses begins with. The other arrays have length T.
    """

    id: str
    first_step: int
    steps: np.ndarray
    ids: np.ndarray
    roles: np.ndarray
    branches: np.ndarray
    positions: np.ndarray


def trajectory_examples(
    codec: Codec,
    trajectory: Trajectory,
    form: str,
    max_length: int,
    layout: Layout = TREES,
    no_thought: str = "skip",
) -> Iterator[TokenExample]:
    """Yield the examples of one trajectory, each at most `max_length` tokens.

    `form` "cot": responses reason, then act. `form` "direct": they act alone. A step that is not `trained`, or that does not fit
    together with its prompt, is history alone. `no_thought`: what the form "cot" does with a trained step that has no thought: "skip"
    makes it history, "direct" trains its action alone, "error" refuses the trajectory.

    Layout "trajectory", form "cot": trees. The responses are branches, the past direct responses in the trunk are prompt; a
    trajectory too long for one tree goes on in another that holds the trunk again but only the later branches. Form "direct", and
    thoughts kept in past turns: no branches; the trunk's responses are those to train on.

    Raises:
      UsageError: an unknown form or `no_thought`.
      DataError: a step cannot be encoded, or has no thought where that is an error; the message names the trajectory and the step.
    """
    if form not in FORMS:
        raise UsageError(f"unknown response form {form!r}; there are {', '.join(FORMS)}")
    if no_thought not in NO_THOUGHT:
        raise UsageError(f"unknown no_thought {no_thought!r}; there are {', '.join(NO_THOUGHT)}")
    turns = _encoded(codec, trajectory, form, layout.past_thoughts, no_thought)
    if layout.name == "step":
        return _steps(codec, trajectory, turns, max_length, layout.history)
    branching = form == "cot" and not layout.past_thoughts
    return (
        _trees(trajectory.id, turns, max_length)
        if branching
        else _line(trajectory.id, turns, max_length)
    )


@dataclass(frozen=True)
class _Turn:
    """A step in ids: its observation, the response to train on, and what later prompts show of it."""

    number: int
    prompt: Segments
    response: Segments
    past: Segments
    trained: bool


def _encoded(
    codec: Codec, trajectory: Trajectory, form: str, past_thoughts: bool, no_thought: str
) -> Iterator[_Turn]:
    for number, step in enumerate(trajectory.steps):
        silent = form == "cot" and step.thought is None
        try:
            if silent and step.trained and no_thought == "error":
                raise DataError(
                    "the step has no thought; data.no_thought='skip' leaves such steps out, 'direct' trains their actions alone"
                )
            prompt = (
                codec.next_turn(step.observation)
                if number
                else codec.first_turn(trajectory.task, step.observation)
            )
            direct = codec.direct(step.action)
            response = (
                direct if form == "direct" or silent else codec.reasoned(step.thought, step.action)
            )
        except DataError as error:
            raise DataError(f"trajectory {trajectory.id!r}, step {number}: {error}") from None
        trained = step.trained and not (silent and no_thought == "skip")
        yield _Turn(
            number, prompt, response, _as_prompt(response if past_thoughts else direct), trained
        )


def _as_prompt(segments: Segments) -> Segments:
    return [(ids, Role.PROMPT) for ids, _ in segments]


def _trees(name: str, turns: Iterator[_Turn], max_length: int) -> Iterator[TokenExample]:
    trunk, tree = _Tokens(), _Tokens()
    first, end = 0, 0  # the tree's first step, and its length up to its last response
    for turn in turns:
        trunk.append(turn.prompt, branch=0)
        tree.append(turn.prompt, branch=0)
        if len(trunk) > max_length:
            break  # later prompts are longer still
        length = _length(turn.response)
        if turn.trained and len(trunk) + length <= max_length:
            if len(tree) + length > max_length:
                if end:
                    yield tree.cut(end).example(name, first)
                tree, first = trunk.copy(), turn.number
            tree.append(turn.response, branch=turn.number - first + 1, step=turn.number)
            end = len(tree)
        trunk.append(turn.past, branch=0)
        tree.append(turn.past, branch=0)
    if end:
        yield tree.cut(end).example(name, first)


def _line(name: str, turns: Iterator[_Turn], max_length: int) -> Iterator[TokenExample]:
    line, end = _Tokens(), 0
    for turn in turns:
        line.append(turn.prompt, branch=0)
        response = turn.response if turn.trained else turn.past
        if len(line) + _length(response) > max_length:
            break  # later prompts hold this response, and are longer still
        line.append(response, branch=0, step=turn.number if turn.trained else None)
        end = len(line) if turn.trained else end
    if end:
        yield line.cut(end).example(name, 0)


def _steps(
    codec: Codec, trajectory: Trajectory, turns: Iterator[_Turn], max_length: int, history: int
) -> Iterator[TokenExample]:
    seen: list[_Turn] = []
    for turn in turns:
        start = max(0, turn.number - history) if history else 0
        tokens = _Tokens()
        for past in seen[start:]:
            tokens.append(
                past.prompt if past.number > start else _opening(codec, trajectory, start, past),
                branch=0,
            )
            tokens.append(past.past, branch=0)
        tokens.append(turn.prompt, branch=0)
        if len(tokens) > max_length and not history:
            break  # later prompts are longer still
        if turn.trained and len(tokens) + _length(turn.response) <= max_length:
            tokens.append(turn.response, branch=0, step=turn.number)
            yield tokens.example(trajectory.id, turn.number)
        seen.append(turn)


def _opening(codec: Codec, trajectory: Trajectory, start: int, turn: _Turn) -> Segments:
    """The first turn of a prompt whose history begins at step `start`."""
    return (
        codec.first_turn(trajectory.task, trajectory.steps[start].observation)
        if start
        else turn.prompt
    )


def _length(segments: Segments) -> int:
    return sum(len(ids) for ids, _ in segments)


class _Tokens:
    """Growing token arrays; positions of a branch continue from its trunk."""

    def __init__(self):
        self.ids: list[int] = []
        self.roles: list[int] = []
        self.branches: list[int] = []
        self.positions: list[int] = []
        self.steps: list[int] = []
        self._trunk_length = 0

    def __len__(self) -> int:
        return len(self.ids)

    def copy(self) -> _Tokens:
        other = _Tokens()
        for name in ("ids", "roles", "branches", "positions", "steps"):
            setattr(other, name, list(getattr(self, name)))
        other._trunk_length = self._trunk_length
        return other

    def append(self, segments: Segments, branch: int, step: int | None = None) -> None:
        """`step`: of the response that the segments are, where they are one to train on."""
        self.steps += [] if step is None else [step]
        position = self._trunk_length
        for ids, role in segments:
            self.ids.extend(ids)
            self.roles.extend([int(role)] * len(ids))
            self.branches.extend([branch] * len(ids))
            self.positions.extend(range(position, position + len(ids)))
            position += len(ids)
        if branch == 0:
            self._trunk_length = position

    def cut(self, length: int) -> _Tokens:
        kept = self.copy()
        for name in ("ids", "roles", "branches", "positions"):
            del getattr(kept, name)[length:]
        return kept

    def example(self, id: str, first_step: int) -> TokenExample:
        return TokenExample(
            id,
            first_step,
            np.asarray(self.steps, np.int32),
            np.asarray(self.ids, np.int32),
            np.asarray(self.roles, np.int32),
            np.asarray(self.branches, np.int32),
            np.asarray(self.positions, np.int32),
        )
