r"""Growing texts (`cotjax.formats.search`) -> examples of token ids with roles.

    prompt   question, first observation, <think>                  PROMPT
    text     I need the land of Ko Po. So I search.                REASONING
             <begin_search>  Ko Po land  </end_search>             ACTION_OPEN, ACTION, ACTION_CLOSE
             <search_result> result 1: … </search_result>\n\n      OBSERVATION
             Result 1 says that … </think>\n\n                     REASONING
             \boxed{  Ma Ti Lo  }                                  ACTION_OPEN, ANSWER, ACTION_CLOSE
             end of the turn                                       END

Spans are found by position, so whoever wrote the results, they are OBSERVATION from the first sign
of `<search_result>` to the last line break behind `</search_result>`. The prompt's observation is
PROMPT: no text predicts it. A text is tokenised once, tag by tag and stretch by stretch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from cotjax.data.codec import Codec, Segments
from cotjax.data.growing_text import text_segments
from cotjax.data.pairs import PairCounts, PairExample, branched, divided
from cotjax.data.pipeline import Example
from cotjax.data.tokens import TokenExample, forked_example
from cotjax.envs.lessons import Choice, Lesson, Recall
from cotjax.errors import DataError
from cotjax.formats import search
from cotjax.masking import Role, roles_from_segments, turn_numbers

_LONG = "too_long"


@dataclass(frozen=True)
class GrowingSource(Sequence[Example]):
    """Examples of growing texts in memory, as a data source of `cotjax.data.pipeline`.

    left_out: number of texts that are longer than an example may be.
    """

    examples: tuple[TokenExample, ...]
    left_out: int = 0

    @property
    def lengths(self) -> np.ndarray:
        """Return the tokens of each, int32."""
        return np.fromiter((len(each.ids) for each in self.examples), np.int32, len(self.examples))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index):
        example = self.examples[index]
        roles = example.roles.astype(np.int8)
        return vars(example) | {"id": example.id.encode(), "roles": roles}


def growing_source(codec: Codec, lessons: Iterable[Lesson], max_length: int) -> GrowingSource:
    """Return the examples of all lessons of at most `max_length` tokens.

    Raises DataError when a text cannot be encoded, or none is short enough.
    """
    examples = [lesson_example(codec, lesson) for lesson in lessons]
    short = tuple(example for example in examples if len(example.ids) <= max_length)
    if not short:
        raise DataError(
            f"none of {len(examples)} texts has at most data.max_length {max_length} tokens; "
            "raise it"
        )
    return GrowingSource(short, len(examples) - len(short))


def replayed(own: GrowingSource, before: GrowingSource, share: float, seed: int) -> GrowingSource:
    """Return the examples of two sources, of whose tokens about `share` are those of `before`.

    One source is there once. The other is there as often as the share asks for, a part of it once
    more: which one, the seed decides.

    Example: 100 tokens of episodes, 400 of facts, share 0.5: the episodes four times.
    """
    wanted = share / (1 - share) * int(own.lengths.sum())
    times = wanted / int(before.lengths.sum())
    sides = (own, before) if times >= 1 else (before, own)
    once, often = (side.examples for side in sides)
    whole, rest = divmod(max(times, 1 / times), 1)
    order = np.random.default_rng(seed).permutation(len(often))
    part = tuple(often[number] for number in order[: round(rest * len(often))])
    examples = once + often * int(whole) + part
    return GrowingSource(examples, own.left_out + before.left_out)


def lesson_example(codec: Codec, lesson: Lesson) -> TokenExample:
    """Return the example of a lesson. Raises DataError, naming it, for what cannot be encoded."""
    with _naming(lesson.id):
        segments = _prompt(codec, lesson) if lesson.task else []
        segments += untrained(text_segments(codec, lesson.text), lesson.slips)
        segments.append((codec.encode(codec.template.response_end), Role.END))
    return _line(lesson.id, segments)


def untrained(segments: Segments, slips: Collection[int]) -> Segments:
    """Return the segments of a text in which the pieces of these numbers are PROMPT.

    A piece ends with its results, which stay OBSERVATION.
    """
    made: Segments = []
    number, before = 0, Role.PROMPT
    for ids, role in segments:
        number += before == Role.OBSERVATION != role
        made.append((ids, Role.PROMPT if number in slips and role != Role.OBSERVATION else role))
        before = role
    return made


def recall_example(codec: Codec, recall: Recall) -> TokenExample:
    """Return a question with its answer right behind the prompt, which alone is ANSWER."""
    with _naming(recall.id):
        segments = _prompt(codec, recall)
        segments += text_segments(codec, search.answer_text(recall.answer))
    return _line(recall.id, segments)


def choice_pairs(
    codec: Codec, choices: Iterable[Choice], max_length: int, counts: PairCounts
) -> Iterator[PairExample]:
    """Yield the pair of each choice: one trunk, and the two ways to go on as its branches.

    They begin where their ids differ, and have no end of the turn.

    Raises DataError, naming the choice, for one that cannot be encoded.
    """
    for choice in choices:
        made = choice_pair(codec, choice)
        if made is not None and len(made.ids) > max_length:
            counts.left_out[_LONG] += 1
        elif made is None:
            counts.left_out["no_rejected"] += 1
        else:
            counts.pairs += 1
            yield made


def choice_pair(codec: Codec, choice: Choice) -> PairExample | None:
    """Return the pair of a choice; None where one way is the beginning of the other."""
    with _naming(choice.id):
        begun = text_segments(codec, choice.text)
        prompt = [*_prompt(codec, choice), *((ids, Role.PROMPT) for ids, _ in begun)]
        ways = [text_segments(codec, way) for way in (choice.chosen, choice.rejected)]
    shared, ways = divided(ways)
    if not all(ways):
        return None
    return branched(forked_example(choice.id, 0, [*prompt, *shared], ways))


def _prompt(codec: Codec, asked: Lesson | Choice | Recall) -> Segments:
    """Return what stands before a growing text, `<think>` included: the prompt that is played."""
    assert codec.growing is not None, "the prompt is of turns"
    return [(ids, Role.PROMPT) for ids, _ in codec.first_turn(asked.task, asked.observation)]


def _line(name: str, segments: Segments) -> TokenExample:
    """Return an example without branches."""
    ids, roles = roles_from_segments(segments)
    steps = np.arange(turn_numbers(roles)[-1] + 1, dtype=np.int32)
    branches, positions = np.zeros_like(ids), np.arange(len(ids), dtype=np.int32)
    return TokenExample(name, 0, steps, ids, roles.astype(np.int32), branches, positions)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name the text in the message of a DataError."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name!r}: {error}") from None
