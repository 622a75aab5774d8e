"""Trajectories -> examples of token ids with roles.

Text is tokenised once, segment by segment (see `cotjax.data.codec`), and never decoded and encoded
again. By default a trajectory becomes trees of tokens: the trunk is the prompt with its history,
and the reasoned response of each step is a branch that leaves the trunk where the step's prompt
ends:

    example   prompt 1 | <think> … </action><end> | <action> a1 </action><end> prompt 2 | <think> …
    branches  0 0 0 0  | 1 1 1 1 1 1 1 1 1 1 1 1  | 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 | 2 2 2 2
    positions 0 1 2 3  | 4 5 6 7 8 …              | 4 5 6 7 8 …                         | 20 21 …

With the attention rule of `cotjax.model.attention` this trains exactly what one example per step
would, without encoding the shared history again for every step. `Layout` has the alternatives: one
example per step, past turns that keep their thoughts, and one growing text
(`cotjax.formats.search`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cotjax.data.codec import Codec, Segments
from cotjax.data.trajectories import Trajectory
from cotjax.errors import DataError, UsageError
from cotjax.formats import state_key
from cotjax.masking import Role

FORMS = ("cot", "direct")
GROWING = "growing"
LAYOUTS = ("trajectory", "step", GROWING)
# What the form "cot" does with a trained step that has no thought.
NO_THOUGHT = ("skip", "direct", "error")


@dataclass(frozen=True)
class Layout:
    """How a trajectory becomes examples.

    name: "trajectory" (one example per episode, whose steps share their history), "step" (one
      example per step: its own prompt and response) or "growing" (one example per episode, of one
      text without turns; for a codec whose prompt has `growing`)
    history: past turns that a step's prompt shows, 0 for all. A prompt that shows fewer begins like
      an episode whose first observation is that of its earliest turn.
    past_thoughts: past turns keep their thoughts

    Raises:
      UsageError: an unknown name, or a history that does not go with it.
    """

    name: str = "trajectory"
    history: int = 0
    past_thoughts: bool = False

    def __post_init__(self):
        if self.name not in LAYOUTS:
            raise UsageError(
                f"unknown layout {self.name!r}; it must be one of {', '.join(LAYOUTS)}"
            )
        if self.history < 0:
            raise UsageError(
                f"data.history is {self.history}; it must be at least 0 (0: all turns)"
            )
        if self.history and self.name != "step":
            raise UsageError(
                "the steps of one example share their whole history; data.history needs the layout "
                "'step'"
            )
        if self.past_thoughts and self.name == GROWING:
            raise UsageError(
                "a growing text keeps its thoughts anyway; set data.past_thoughts to False"
            )

    @property
    def playable(self) -> bool:
        """Whether its prompts are those of a rollout: all turns without thoughts, or all of a
        growing text.
        """
        return not self.history and not self.past_thoughts


TREES = Layout()


@dataclass(frozen=True)
class TokenExample:
    """The tokens of one example.

    id: the trajectory's
    first_step: the first step whose response the example may train on
    steps: [R], the step of each response to train on, in order
    ids, roles, branches, positions: [T]
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

    Layout "trajectory", form "cot": trees. The responses are branches; the past direct responses in
    the trunk belong to the prompt. A trajectory too long for one tree continues in another, which
    repeats the trunk and holds only the later branches. With form "direct" (unless the template
    marks responses that do not reason), or with thoughts kept in past turns, there are no branches;
    the responses in the trunk are trained on, and so are those of a growing text. A step that is
    not `trained`, or does not fit together with its prompt, only occurs in later prompts.

    Args:
      form: "cot" (responses reason, then act) or "direct" (they only act).
      no_thought: what the form "cot" does with a trained step that has no thought: "skip" leaves
        it to later prompts alone, "direct" trains on its action alone, "error" raises.

    Raises:
      UsageError: an unknown form or `no_thought`.
      DataError: a step cannot be encoded, or lacks a thought where that is an error; the message
        names the trajectory and the step.
    """
    if form not in FORMS:
        raise UsageError(f"unknown form {form!r}; it must be one of {', '.join(FORMS)}")
    if no_thought not in NO_THOUGHT:
        raise UsageError(
            f"unknown no_thought {no_thought!r}; it must be one of {', '.join(NO_THOUGHT)}"
        )
    if (layout.name == GROWING) != (codec.growing is not None):
        raise UsageError(
            f"data.layout is {layout.name!r}, but the codec's prompt is "
            f"{'of turns' if codec.growing is None else 'one growing text'}; take both from one "
            "config"
        )
    turns = _encode_turns(codec, trajectory, form, layout.past_thoughts, no_thought)
    if layout.name == GROWING:
        return _linear_examples(trajectory.id, turns, max_length)
    if layout.name == "step":
        return _step_examples(codec, trajectory, turns, max_length, layout.history)
    # Where a template marks responses that do not reason, later prompts lack the mark.
    branches = form == "cot" or bool(codec.template.direct_open)
    if branches and not layout.past_thoughts:
        return tree_examples(trajectory.id, turns, max_length)
    return _linear_examples(trajectory.id, turns, max_length)


@dataclass(frozen=True)
class Turn:
    """A step in ids.

    number: the step
    prompt: the user's message, with the step's observation
    response: what to train on
    past: what later prompts show of the response
    """

    number: int
    prompt: Segments
    response: Segments
    past: Segments
    trained: bool


def _encode_turns(
    codec: Codec, trajectory: Trajectory, form: str, past_thoughts: bool, no_thought: str
) -> Iterator[Turn]:
    for number, step in enumerate(trajectory.steps):
        silent = form == "cot" and step.thought is None
        try:
            if silent and step.trained and no_thought == "error":
                raise DataError(
                    "the step has no thought; data.no_thought='skip' leaves such steps out, "
                    "'direct' trains on their actions alone"
                )
            state = step.admissible_commands, state_key(trajectory.game, number)
            if number and codec.growing is not None:
                prompt = codec.growing.observed(step.observation)
            elif number:
                prompt = codec.next_turn(step.observation, *state)
            else:
                prompt = codec.first_turn(trajectory.task, step.observation, *state)
            if codec.growing is not None:
                # No text predicts the first observation, which a world model would learn.
                prompt = prompt if number else _as_prompt(prompt)
                thought = None if form == "direct" else step.thought
                response = codec.growing.piece(thought, step.action)
            elif form == "direct" or step.thought is None:
                response = codec.direct(step.action)
            else:
                response = codec.reasoned(step.thought, step.action)
        except DataError as error:
            raise DataError(f"trajectory {trajectory.id!r}, step {number}: {error}") from None
        trained = step.trained and not (silent and no_thought == "skip")
        whole = past_thoughts or codec.growing is not None
        past = _as_prompt(response if whole else codec.acted(step.action))
        yield Turn(number, prompt, response, past, trained)


def _as_prompt(segments: Segments) -> Segments:
    return [(ids, Role.PROMPT) for ids, _ in segments]


def tree_examples(id: str, turns: Iterable[Turn], max_length: int) -> Iterator[TokenExample]:
    """Yield the trees of a trajectory's turns, as `trajectory_examples` describes them."""
    trunk, tree = _Tokens(), _Tokens()
    # The first step of the tree, and its length up to the end of its last response.
    first, end = 0, 0
    for turn in turns:
        trunk.append(turn.prompt, branch=0)
        tree.append(turn.prompt, branch=0)
        if len(trunk) > max_length:
            break  # later prompts are longer still
        length = _length(turn.response)
        if turn.trained and len(trunk) + length <= max_length:
            if len(tree) + length > max_length:
                if end:
                    yield tree.cut(end).example(id, first)
                tree, first = trunk.copy(), turn.number
            tree.append(turn.response, branch=turn.number - first + 1, step=turn.number)
            end = len(tree)
        trunk.append(turn.past, branch=0)
        tree.append(turn.past, branch=0)
    if end:
        yield tree.cut(end).example(id, first)


def forked_example(
    id: str, step: int, prompt: Segments, responses: Sequence[Segments]
) -> TokenExample:
    """Return an example whose branches are several responses to one prompt, branches 1, 2, ….

    The last id of the prompt begins every branch, where it predicts the response's first id:

        example   prompt without its last id q | q response 1 … | q response 2 …
        branches  0 0 0 0 0 0 0 0 0 0 0 0 0 0  | 1 1 1 1 1 1 1  | 2 2 2 2 2 2 2

    Raises:
      DataError: the prompt is empty.
    """
    ids = [(id_, role) for part, role in prompt for id_ in part]
    if not ids:
        raise DataError(f"trajectory {id!r}, step {step}: the prompt is empty")
    *trunk, (last, role) = ids
    tokens = _Tokens()
    tokens.append([([id_], own) for id_, own in trunk], branch=0)
    for number, response in enumerate(responses, start=1):
        tokens.append([([last], role), *response], branch=number, step=step)
    return tokens.example(id, step)


def _linear_examples(id: str, turns: Iterator[Turn], max_length: int) -> Iterator[TokenExample]:
    line, end = _Tokens(), 0
    for turn in turns:
        line.append(turn.prompt, branch=0)
        response = turn.response if turn.trained else turn.past
        if len(line) + _length(response) > max_length:
            break  # later prompts contain this response, and are longer still
        line.append(response, branch=0, step=turn.number if turn.trained else None)
        end = len(line) if turn.trained else end
    if end:
        yield line.cut(end).example(id, 0)


def _step_examples(
    codec: Codec, trajectory: Trajectory, turns: Iterator[Turn], max_length: int, history: int
) -> Iterator[TokenExample]:
    seen: list[Turn] = []
    for turn in turns:
        start = max(0, turn.number - history) if history else 0
        tokens = _Tokens()
        for past in seen[start:]:
            first = past.number == start
            prompt = _first_prompt(codec, trajectory, past) if first else past.prompt
            tokens.append(prompt, branch=0)
            tokens.append(past.past, branch=0)
        tokens.append(turn.prompt, branch=0)
        if len(tokens) > max_length and not history:
            break  # later prompts are longer still
        if turn.trained and len(tokens) + _length(turn.response) <= max_length:
            tokens.append(turn.response, branch=0, step=turn.number)
            yield tokens.example(trajectory.id, turn.number)
        seen.append(turn)


def _first_prompt(codec: Codec, trajectory: Trajectory, turn: Turn) -> Segments:
    """Return the user's message of a history that begins with this turn."""
    if turn.number == 0:
        return turn.prompt
    step, key = trajectory.steps[turn.number], state_key(trajectory.game, turn.number)
    return codec.first_turn(trajectory.task, step.observation, step.admissible_commands, key)


def _length(segments: Segments) -> int:
    return sum(len(ids) for ids, _ in segments)


class _Tokens:
    """Growing lists of tokens; the positions of a branch continue from its trunk."""

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
        """Append segments to the trunk (branch 0) or as a new branch.

        Args:
          step: the step of the response that the segments are, if it is trained on.
        """
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
        """Return the first `length` tokens; no response to train on may be cut."""
        head = self.copy()
        for name in ("ids", "roles", "branches", "positions"):
            del getattr(head, name)[length:]
        return head

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
