"""D7: gradient of actions by group, and the same actions after another state's thought."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from cotjax.diagnostics.gradient import GradientRow, Reached, Swapped
from cotjax.probes.asking import Answer, Programs, Row
from cotjax.probes.groups import Tokens
from cotjax.probes.probe import Checkpoint, State
from cotjax.probes.responses import (
    Responses,
    ResponsesProbe,
    by_group,
    change,
    measured,
    of_layers,
    responses_of,
    say_skipped,
)

_COT, _PROMPT, _SWAPPED = "cot", "prompt", "swapped"
Found = tuple[State, Responses]


class GradientProbe(ResponsesProbe):
    """Measures D7 at expert states, on the CoT response as it was decoded."""

    name: ClassVar[str] = "gradient"
    title: ClassVar[str] = "gradient by group"

    def measure(self, states: Sequence[State], at: Checkpoint) -> Iterator[GradientRow]:
        """As `Probe.measure`."""
        limit = at.config.evaluate.max_length
        # A swapped thought may be of any state, measured or not.
        all_found = [(state, responses_of(state, at.codec, limit)) for state in self.states(at)]
        left = {state.key for state in states}
        found = [each for each in all_found if each[0].key in left]
        say_skipped(at, self.name, (each.skipped for _, each in found))
        swaps = [_nearest(each, all_found) for each in found]
        rows = [
            _rows(responses, other, limit)
            for (_, responses), other in zip(found, swaps, strict=True)
        ]
        programs = Programs(at.weights, at.config.probes.gradient.rows, with_gradient=True)
        for number, answers in programs.ask(rows):
            yield _row(*found[number], swaps[number], answers)


def _nearest(own: Found, all_found: Sequence[Found]) -> Found | None:
    """Return the state of another game whose thought's length is nearest; None for none.

    Of the same domain; not one with the same thought. Of equally near ones the first.
    """
    state, responses = own
    length = len(responses.thought)
    others = [
        (abs(len(other[1].thought) - length), other[0].key, other)
        for other in all_found
        if length
        and other[1].thought
        and other[0].record.domain == state.record.domain
        and other[0].record.game.id != state.record.game.id
        and other[1].thought != responses.thought
    ]
    return min(others, key=lambda each: each[:2])[2] if others else None


def _rows(found: Responses, other: Found | None, limit: int) -> list[Row]:
    rows = []
    if found.cot is not None:
        rows.append(Row(_COT, found.cot))
        if other is not None:
            swapped = found.with_thought(other[1].thought)
            if len(swapped.ids) <= limit:
                rows.append(Row(_SWAPPED, swapped))
    if found.prompt is not None:
        rows.append(Row(_PROMPT, found.prompt))
    return rows


def _row(
    state: State, found: Responses, other: Found | None, answers: dict[str, Answer]
) -> GradientRow:
    def reached(kind: str, tokens: Tokens | None) -> Reached | None:
        answer = answers.get(kind)
        if answer is None or tokens is None:
            return None
        assert answer.gradient is not None and answer.input is not None
        return Reached(
            **measured(answer, tokens),
            share=by_group(answer.gradient.sum(axis=0)),
            input_share=by_group(answer.input),
            **of_layers(answer.gradient),
        )

    swapped = None
    if other is not None and _SWAPPED in answers:
        swapped = Swapped(
            game=other[0].record.game.id,
            turn=other[0].number,
            own_tokens=len(found.thought),
            tokens=len(other[1].thought),
            **change(answers[_SWAPPED], answers[_COT]),
        )
    return GradientRow(
        **state.place,
        skipped=found.skipped,
        cot=reached(_COT, found.cot),
        prompt=reached(_PROMPT, found.prompt),
        swapped=swapped,
    )
