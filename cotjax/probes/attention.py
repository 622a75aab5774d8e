"""D6: attention by group while actions are predicted, and the same without the reasoning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from cotjax.diagnostics.attention import Attended, AttentionRow, Hidden
from cotjax.probes.asking import BLOCKED, MASKED, NOTHING, Answer, Programs, Row
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

_PROMPT = "prompt"


class AttentionProbe(ResponsesProbe):
    """Measures D6 at expert states, on the CoT response as it was decoded."""

    name: ClassVar[str] = "attention"
    title: ClassVar[str] = "attention by group"

    def measure(self, states: Sequence[State], at: Checkpoint) -> Iterator[AttentionRow]:
        """As `Probe.measure`."""
        limit = at.config.evaluate.max_length
        found = [responses_of(state, at.codec, limit) for state in states]
        say_skipped(at, self.name, (each.skipped for each in found))
        programs = Programs(at.weights, at.config.probes.attention.rows, with_gradient=False)
        for number, answers in programs.ask([_rows(each) for each in found]):
            yield _row(states[number], found[number], answers)


def _rows(found: Responses) -> list[Row]:
    rows = []
    if found.cot is not None:
        rows = [Row(hidden, found.cot, hidden) for hidden in (NOTHING, MASKED, BLOCKED)]
    if found.prompt is not None:
        rows.append(Row(_PROMPT, found.prompt))
    return rows


def _row(state: State, found: Responses, answers: dict[str, Answer]) -> AttentionRow:
    usual = answers.get(NOTHING)

    def attended(kind: str, tokens: Tokens | None) -> Attended | None:
        answer = answers.get(kind)
        if answer is None or tokens is None:
            return None
        return Attended(
            **measured(answer, tokens),
            share=by_group(answer.attention.sum(axis=0)),
            **of_layers(answer.attention),
        )

    def without(kind: str) -> Hidden | None:
        return None if usual is None else Hidden(**change(answers[kind], usual))

    return AttentionRow(
        **state.place,
        skipped=found.skipped,
        cot=attended(NOTHING, found.cot),
        prompt=attended(_PROMPT, found.prompt),
        masked=without(MASKED),
        blocked=without(BLOCKED),
    )
