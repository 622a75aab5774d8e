"""D2's floor: several responses of each kind, sampled from one state.

Episodes and expert states may be decoded greedily; the samples of this probe never are. In all else
they are drawn as the study's elicitation says. `cotjax.diagnostics.floor` says what is made of
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

from ml_collections import ConfigDict

from cotjax.diagnostics.episodes import action_of
from cotjax.diagnostics.floor import NAME, FloorRow
from cotjax.envs.base import Observation
from cotjax.errors import UsageError
from cotjax.probes.probe import Checkpoint, State
from cotjax.probes.prompts import in_slots, named
from cotjax.rollout.elicitation import DRAWN
from cotjax.rollout.episode import read_response, response_seed

# Kind -> fields of the elicitation: what is prefilled, and the limit in tokens.
_KINDS = {
    "cot": ("cot_prefix", "max_new_tokens"),
    "prompt": ("prompt_prefix", "max_action_tokens"),
}


class FloorProbe:
    """The probe. Every drawn expert state has a row."""

    name: ClassVar[str] = NAME
    title: ClassVar[str] = "D2's floor"

    def check(self, config: ConfigDict) -> None:
        """Raise UsageError for settings under which all samples would be equal."""
        settings = config.probes.floor
        if settings.samples < 2:
            raise UsageError(f"probes.floor.samples is {settings.samples}; it must be at least 2")
        if settings.temperature <= 0:
            raise UsageError(
                f"probes.floor.temperature is {settings.temperature}; it must be more than 0, for "
                "greedy responses of a state are equal"
            )
        if config.evaluate.top_k == 1:
            raise UsageError(
                "evaluate.top_k is 1, so all samples of a state would be equal; leave the probe "
                f"{self.name!r} out of probes.names, or set another top_k"
            )

    def settings(self, config: ConfigDict) -> dict[str, Any]:
        """Return how the samples are drawn."""
        return {
            "seed": config.seed,
            "samples": config.probes.floor.samples,
            "max_new_tokens": config.evaluate.max_new_tokens,
            "max_action_tokens": config.evaluate.max_action_tokens,
            **_how(config),
        }

    def states(self, at: Checkpoint) -> list[State]:
        """Return the drawn expert states."""
        return at.expert_states

    def measure(self, states: Sequence[State], at: Checkpoint) -> Iterator[FloorRow]:
        """Sample the responses of as many states at once as the policy has slots."""
        for batch in in_slots(at.policy, states):
            actions = {kind: _actions(kind, batch, at) for kind in _KINDS}
            for slot, state in batch.items():
                yield FloorRow(
                    **state.place, cot=actions["cot"][slot], prompt=actions["prompt"][slot]
                )


def _actions(
    kind: str, batch: dict[int, State], at: Checkpoint
) -> dict[int, tuple[str | None, ...]]:
    """Return slot -> the actions of the slot's samples; None for an invalid response."""
    prefix_field, limit_field = _KINDS[kind]
    elicited = next(iter(batch.values())).record.elicitation
    prefix: str = elicited.get(prefix_field) or ""
    actions: dict[int, tuple[str | None, ...]] = dict.fromkeys(batch, ())
    for number in range(at.config.probes.floor.samples):
        seeds = {slot: _seed(kind, state, number, at) for slot, state in batch.items()}
        generations = named(
            batch,
            partial(
                at.policy.sample,
                dict.fromkeys(batch, at.codec.prefill(prefix)),
                max_new=at.config.evaluate[limit_field],
                seeds=seeds,
                **_how(at.config),
            ),
        )
        for slot, state in batch.items():
            response = read_response(
                generations[slot],
                at.codec,
                Observation(state.turn.observation, None, won=False, done=False),
                prefix=prefix,
                prefilled=kind == "prompt",
                seed=seeds[slot],
            )
            actions[slot] += (action_of(response),)
    return actions


def _how(config: ConfigDict) -> dict[str, float]:
    """Return how the next id is drawn, as keyword arguments of a policy's `sample`."""
    how = {name: config.evaluate[name] for name in DRAWN}
    return how | {"temperature": config.probes.floor.temperature}


def _seed(kind: str, state: State, number: int, at: Checkpoint) -> int:
    """Return the seed of one sample, which no response of an episode has."""
    kind = f"{NAME}/{kind}/{state.record.sample}"
    return response_seed(at.config.seed, state.record.game.id, state.number, kind, number)
