"""Rejected responses and lost episodes that a model sampled, from its records, for pairs.

The records are those of training games: `cotjax evaluate --model BASE --split train` writes them.
Records of other games match no chosen trajectory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from cotjax.data.codec import Codec, Segments
from cotjax.data.pairs import Answer
from cotjax.data.rollouts import tree_turns
from cotjax.data.tokens import TokenExample, tree_examples
from cotjax.data.trajectories import Trajectory
from cotjax.formats import THINK_CLOSE
from cotjax.masking import Role
from cotjax.rl.records import name_of, turns_of
from cotjax.rollout.record import Record

Judge = Callable[[Record, int], bool]


class SampledAnswers:
    """Rejected responses that the model sampled in the expert's states (driver `reference`).

    A response is rejected if it is well-formed, acts differently from the expert, and `is_worse`.
    Its prompt has to be the one that training would show, id for id.

    Args:
      records: of driver `reference`; others are ignored.
      is_worse: says whether the response to a record's turn is worse than the expert's; None: any
        other action is.
    """

    def __init__(self, codec: Codec, records: Iterable[Record], is_worse: Judge | None = None):
        self._codec, self._is_worse = codec, is_worse
        self._of_game: dict[str, list[Record]] = defaultdict(list)
        for record in records:
            if record.driver == "reference" and record.ended != "env_error":
                self._of_game[record.game.id].append(record)

    def __call__(self, trajectory: Trajectory, number: int, prompt: Segments) -> Answer | None:
        """As `cotjax.data.pairs.Answers`."""
        shown = [id for ids, _ in prompt for id in ids]
        for record in self._of_game[trajectory.game]:
            found = self._answer(record, number, shown)
            if found is not None and found.action != record.steps[number].reference:
                return found
        return None

    def _answer(self, record: Record, number: int, shown: list[int]) -> Answer | None:
        steps = record.steps[: number + 1]
        read = [id for step in steps for id in step.prompt_ids]
        if len(steps) <= number or read != shown:
            return None
        cot = steps[number].cot
        if cot is None or not cot.valid or cot.thought is None or cot.action is None:
            return None
        if self._is_worse is not None and not self._is_worse(record, number):
            return None
        turn = list(tree_turns(self._codec, turns_of(record, self._codec), ended=True))[number]
        # A prefilled "<think>" is part of the response that training would write.
        response: Segments = [
            (ids, Role.REASONING if role == Role.PROMPT else role) for ids, role in turn.response
        ]
        opens = next(at for at, (_, role) in enumerate(response) if role != Role.REASONING)
        thought, acted = response[:opens], response[opens:]
        said = self._codec.decode([id for ids, _ in thought for id in ids])
        # A token may hold the ends of both tags, and belongs to neither part alone.
        if not said.rstrip().endswith(THINK_CLOSE):
            return None
        return Answer(thought, acted, cot.action)


def lost_episodes(
    codec: Codec, records: Iterable[Record], max_length: int
) -> dict[str, list[TokenExample]]:
    """Return the lost CoT-driven episodes of records as trees, by game: those that fit into one."""
    trees: dict[str, list[TokenExample]] = defaultdict(list)
    for record in records:
        if record.driver != "cot" or record.success or record.ended == "env_error":
            continue
        turns = tree_turns(codec, turns_of(record, codec), ended=True)
        made = list(tree_examples(name_of(record), turns, max_length))
        if made and made[0].first_step == 0:
            trees[record.game.id].append(made[0])
    return dict(trees)
