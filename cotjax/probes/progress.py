"""How far played episodes came: the expert finishes lost ones (`cotjax.diagnostics.progress`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from ml_collections import ConfigDict

from cotjax.diagnostics.progress import PROBE, ProgressRow
from cotjax.diagnostics.revisions import Ending
from cotjax.probes.probe import Checkpoint, State
from cotjax.probes.revisions import check_expert, ending_of, fork_of, workers_for
from cotjax.rollout.finish import finished
from cotjax.rollout.record import KINDS


class ProgressProbe:
    """The probe. Every played episode has a row; only those that were lost are replayed."""

    name: ClassVar[str] = PROBE
    title: ClassVar[str] = "progress of episodes"

    def check(self, config: ConfigDict) -> None:
        """Raise UsageError for a limit out of range, or a world without an expert."""
        check_expert(config, self.name)

    def settings(self, config: ConfigDict) -> dict[str, Any]:
        """Return the expert's limit."""
        return {"limit": config.probes.revisions.limit}

    def states(self, at: Checkpoint) -> list[State]:
        """Return the last state of every episode that was played."""
        return [
            State(record, len(record.steps) - 1) for record in at.records(*KINDS) if record.steps
        ]

    def measure(self, states: Sequence[State], at: Checkpoint) -> Iterator[ProgressRow]:
        """Let the expert finish every lost episode after its last action."""
        own = [state.record for state in at.reference_states]
        starts = {each.game.id: len(each.steps) for each in own if each.success}
        lost = [state for state in states if not state.record.success]
        for state in states:
            if state.record.success:
                yield _row(state, starts, Ending(steps=0, unknown=None))
        forks = [fork_of(state, at, (state.turn.executed,)) for state in lost]
        limit = at.config.probes.revisions.limit
        with finished(at.world, forks, limit, workers_for(len(forks), at)) as outcomes:
            for state, forked in zip(lost, outcomes, strict=True):
                ending = forked.endings.get(state.turn.executed)
                ended = None if ending is None else ending_of(ending)
                yield _row(state, starts, ended, forked.differs)


def _row(
    state: State, starts: dict[str, int], ending: Ending | None, differs: str | None = None
) -> ProgressRow:
    start = starts.get(state.record.game.id)
    return ProgressRow(**state.place, start=start, ending=ending, differs=differs)
