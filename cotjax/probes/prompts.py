"""States' prompts in the slots of a policy, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from cotjax.errors import NotFiniteError
from cotjax.probes.probe import State
from cotjax.rollout.contracts import Policy
from cotjax.rollout.tokens import check_prompt

T = TypeVar("T")


def in_slots(policy: Policy, states: Sequence[State]) -> Iterator[dict[int, State]]:
    """Yield slot -> state, with the states' prompts in these slots, until all states came.

    The prompts' ids are those of the records. Prompts of about the same length come together.
    """
    ordered = sorted(states, key=lambda state: (-state.turn.prompt_length, state.key))
    for start in range(0, len(ordered), policy.slots):
        batch = dict(enumerate(ordered[start : start + policy.slots]))
        policy.reset(range(policy.slots))
        policy.extend({slot: state.prompt_ids for slot, state in batch.items()})
        for slot, state in batch.items():
            check_prompt(where(state), state.prompt_ids, policy.prompt(slot))
        yield batch


def where(state: State) -> str:
    """Return the game and the step of a state, for messages."""
    return f"{state.record.game.id}, step {state.number + 1}"


def named(batch: Mapping[int, State], call: Callable[[], T]) -> T:
    """Return what a call of the policy returns; its NotFiniteError gets game and step."""
    try:
        return call()
    except NotFiniteError as error:
        raise NotFiniteError(f"{where(batch[error.slot])}: {error}", error.slot) from None
