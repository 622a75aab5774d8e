"""D1' and D2: the environment judges revisions (`cotjax.diagnostics.revisions` says how)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from ml_collections import ConfigDict

from cotjax.diagnostics.episodes import action_of
from cotjax.diagnostics.revisions import (
    PLACES,
    Ending,
    RevisionRow,
    Verdict,
    verdict,
)
from cotjax.envs.worlds import load_world
from cotjax.errors import DataError, UsageError
from cotjax.formats import normalize_action
from cotjax.probes.probe import Checkpoint, State, drawn, states_of
from cotjax.rollout import finish
from cotjax.rollout.finish import Fork, Forked, finished
from cotjax.rollout.record import Driver

# A process takes seconds to start, and a state some 50 ms.
_STATES_A_PROCESS = 100


class RevisionsProbe:
    """The probe. All states with a CoT and a prompt response have a row."""

    name: ClassVar[str] = "revisions"
    title: ClassVar[str] = "revisions"

    def check(self, config: ConfigDict) -> None:
        """Raise UsageError for a setting out of range, or a world without an expert."""
        settings = config.probes.revisions
        if settings.states < 0:
            raise UsageError(
                f"probes.revisions.states is {settings.states}; it must be at least 0 (all)"
            )
        check_expert(config, self.name)

    def settings(self, config: ConfigDict) -> dict[str, Any]:
        """Return the expert's limit: the number of states is in the heading."""
        return {"limit": config.probes.revisions.limit}

    def states(self, at: Checkpoint) -> list[State]:
        """Return expert states and CoT-driven states, as many of each as the config says."""
        count = at.config.probes.revisions.states
        return [
            state
            for driver in PLACES
            for state in drawn(both_decoded(at, driver), at.config, count)
        ]

    def measure(self, states: Sequence[State], at: Checkpoint) -> Iterator[RevisionRow]:
        """Classify each state, and replay those whose actions are to be compared."""
        forks = {}
        for state in states:
            if taken := to_take(state):
                forks[state.key] = fork_of(state, at, taken)
            else:
                yield row_of(state, Forked())
        by_key = {state.key: state for state in states}
        limit = at.config.probes.revisions.limit
        with finished(
            at.world, list(forks.values()), limit, workers_for(len(forks), at)
        ) as outcomes:
            for key, forked in zip(forks, outcomes, strict=True):
                yield row_of(by_key[key], forked)


def check_expert(config: ConfigDict, probe: str) -> None:
    """Raise UsageError where no expert can finish: the world has none, or may take no step."""
    limit = config.probes.revisions.limit
    if limit < 1:
        raise UsageError(f"probes.revisions.limit is {limit}; it must be at least 1")
    if "expert" not in load_world(config.world).agents:
        raise UsageError(
            f"the probe {probe!r} lets the world's expert finish, and world {config.world!r} has "
            "none; leave it out of probes.names"
        )


def both_decoded(at: Checkpoint, driver: Driver) -> list[State]:
    """Return a driver's states in which a CoT and a prompt response were decoded."""
    states = at.reference_states if driver == "reference" else states_of(at.records(driver))
    return [
        state for state in states if state.turn.cot is not None and state.turn.prompt is not None
    ]


def to_take(state: State) -> tuple[str, ...]:
    """Return the actions that must be taken to judge a state; () where all are equal."""
    turn = state.turn
    reference = None if turn.reference is None else normalize_action(turn.reference)
    actions = dict.fromkeys((action_of(turn.cot), action_of(turn.prompt), reference))
    several = tuple(action for action in actions if action is not None)
    return several if len(several) > 1 else ()


def fork_of(state: State, at: Checkpoint, taken: tuple[str, ...]) -> Fork:
    """Return the fork of a state's episode. Raises DataError where its game is gone."""
    record = state.record
    if record.game.id not in at.games:
        raise DataError(
            f"the game {record.game.id} has records at {at.arm}, step {at.step}, but is not among "
            "the games that are played; evaluate again, or restore config.games"
        )
    before = record.steps[: state.number + 1]
    return Fork(
        game=at.games[record.game.id],
        task=record.task,
        actions=tuple(turn.executed for turn in before[:-1]),
        observations=tuple(turn.observation for turn in before),
        taken=taken,
    )


def workers_for(forks: int, at: Checkpoint) -> int:
    """Return how many processes are worth their start."""
    return min(at.workers, forks // _STATES_A_PROCESS)


def ending_of(found: finish.Ending) -> Ending:
    """Return how an episode ends after an action, as rows have it."""
    return Ending(steps=found.steps, unknown=found.unknown)


def row_of(state: State, forked: Forked) -> RevisionRow:
    """Return the row of a state, from the outcome of its fork."""
    turn = state.turn
    cot, prompt = action_of(turn.cot), action_of(turn.prompt)
    endings = {action: ending_of(ending) for action, ending in forked.endings.items()}

    def ending(action: str | None) -> Ending | None:
        return None if action is None else endings.get(normalize_action(action))

    found: Verdict
    if forked.differs is not None:
        found = "diverged"
    elif cot is None or prompt is None:
        found = "not_comparable"
    elif cot == prompt:
        found = "same"
    else:
        found = verdict(endings[cot], endings[prompt])
    return RevisionRow(
        **state.place,
        verdict=found,
        cot=cot,
        prompt=prompt,
        reference=turn.reference,
        cot_ending=ending(cot),
        prompt_ending=ending(prompt),
        reference_ending=ending(turn.reference),
        differs=forked.differs,
    )
