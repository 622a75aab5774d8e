"""Choices from a model's runs: where a search made the answer right, and where it made it wrong.

As AutoCoA does (arXiv 2503.06580): of the plays of a question, one searched and one did not. Where
only the first was right, its search is chosen over the other's answer, else the reverse. Both begin
with the words that they share.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cotjax.envs.lessons import Choice
from cotjax.envs.worlds import World
from cotjax.errors import DataError, EnvError
from cotjax.formats.search import SEARCH_OPEN
from cotjax.rollout.record import Record

_REASONS = {
    "env_error": "episodes that the environment broke",
    "invalid": "episodes whose first response is invalid, or refused",
    "one_kind": "questions with plays of one kind alone, with a search or without",
    "equal": "questions on which a search made no difference",
    "same": "questions on which both plays begin the same to the end of one",
}


@dataclass
class ChoiceCounts:
    """How many choices runs give in each direction, and by reason (of _REASONS) what gives none."""

    searches: int = 0
    others: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def lines(self) -> Iterator[str]:
        """Yield lines of text."""
        yield f"{self.searches:,} questions are right with a search alone, {self.others:,} without"
        for reason, text in _REASONS.items():
            if count := self.left_out[reason]:
                yield f"left out: {count:,} {text}"


@dataclass(frozen=True)
class _Play:
    """The first piece of an episode, and how the episode ended."""

    text: str
    searched: bool
    won: bool
    record: Record


def choices_of_records(
    world: World, records: Iterable[Record], count: int, seed: int
) -> tuple[list[Choice], ChoiceCounts]:
    """Return choices, half in each direction and at most `count`, at most one of a question.

    Args:
      records: CoT-driven episodes of training games; those of other drivers are ignored.
      seed: draws which are taken where there are more.

    Raises:
      DataError: there is none in one direction.
      UsageError: the world has no growing text.
    """
    counts = ChoiceCounts()
    plays: dict[str, list[_Play]] = defaultdict(list)
    for record in records:
        if record.driver == "cot" and (play := _play(world, record, counts)) is not None:
            plays[record.game.id].append(play)
    found: dict[bool, list[Choice]] = {True: [], False: []}
    for name in sorted(plays):
        made = _choice(plays[name])
        if isinstance(made, Choice):
            found[made.searches].append(made)
        else:
            counts.left_out[made] += 1
    counts.searches, counts.others = len(found[True]), len(found[False])
    half = min(count // 2, counts.searches, counts.others)
    if not half:
        raise DataError(f"no choice in one direction: {'; '.join(counts.lines())}")
    rng = random.Random(f"choices of records {seed}")
    kept = [choice for direction in (True, False) for choice in rng.sample(found[direction], half)]
    return sorted(kept, key=lambda choice: choice.id), counts


def _play(world: World, record: Record, counts: ChoiceCounts) -> _Play | None:
    if record.ended == "env_error" or not record.steps:
        counts.left_out["env_error"] += 1
        return None
    pieces: list[str] = []
    for step in record.steps:
        response = step.cot
        if response is None or response.action is None or not step.accepted:
            break
        try:
            pieces.append(world.piece_text(response.thought, response.action))
        except EnvError:
            break
    if not pieces:
        counts.left_out["invalid"] += 1
        return None
    # Behind results the texts of two plays differ anyway, so the first piece is all that counts.
    searched = any(SEARCH_OPEN in piece for piece in pieces)
    return _Play(pieces[0], searched, record.success, record)


def _choice(plays: list[_Play]) -> Choice | str:
    """Return the choice of a question's plays, or why there is none, a key of _REASONS."""
    with_search = [play for play in plays if play.searched]
    without = [play for play in plays if not play.searched]
    if not with_search or not without:
        return "one_kind"
    for chosen, rejected in ((with_search, without), (without, with_search)):
        right = next((play for play in chosen if play.won), None)
        wrong = next((play for play in rejected if not play.won), None)
        # A kind that was right in one sample and wrong in another says nothing.
        if right and wrong and not any(play.won for play in rejected):
            return _between(right, wrong)
    return "equal"


def _between(right: _Play, wrong: _Play) -> Choice | str:
    shared = _shared(right.text, wrong.text)
    chosen, rejected = right.text[len(shared) :], wrong.text[len(shared) :]
    if not chosen.strip() or not rejected.strip():
        return "same"
    record = right.record
    observation = record.steps[0].observation
    name = f"choice/{record.game.id}"
    return Choice(name, record.task, observation, shared, chosen, rejected, right.searched)


def _shared(one: str, other: str) -> str:
    """Return what two texts begin with, up to the end of a word."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    head = one[:count]
    if all(len(text) == count or text[count].isspace() for text in (one, other)):
        return head
    return head[: max(head.rfind(" "), 0)]  # the last word differs
