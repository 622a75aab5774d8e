"""The responses of a state as D6 and D7 measure them: prompt, thought and action, with groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cotjax.data.codec import Codec
from cotjax.diagnostics.role_shares import GROUPS, NATS, PROMPT, Skipped
from cotjax.errors import UsageError
from cotjax.probes.asking import Answer
from cotjax.probes.groups import ACTION, REASONING, Tokens, prompt_tokens, response_tokens
from cotjax.probes.probe import Checkpoint, State
from cotjax.rollout.record import Response

_DIGITS = 6  # decimals that are kept: beyond them results depend on the mesh
_SKIPPED: Mapping[Skipped, str] = {
    "prompt": "a prompt that the codec does not write",
    "invalid": "no valid CoT response",
    "no_thought": "no thought",
    "length": "more tokens than the limit",
}


class Responses(NamedTuple):
    """What is measured of a state.

    Attributes:
      cot, prompt: tokens from the prompt's first to the action's last; None where it was skipped.
      start: number of the prompt's tokens.
      skipped: why there is no `cot`.
    """

    cot: Tokens | None
    prompt: Tokens | None
    start: int
    skipped: Skipped | None

    @property
    def thought(self) -> list[int]:
        """The ids of the thought."""
        return [] if self.cot is None else self.cot.only(REASONING)

    def with_thought(self, ids: Sequence[int]) -> Tokens:
        """Return the CoT response with other ids for its thought."""
        assert self.cot is not None
        at = self.cot.groups.index(REASONING)
        end = len(self.cot.groups) - self.cot.groups[::-1].index(REASONING)
        before, after = (
            Tokens(self.cot.ids[part], self.cot.groups[part])
            for part in (slice(0, at), slice(end, None))
        )
        return before + Tokens(list(ids), [REASONING] * len(ids)) + after


class ResponsesProbe:
    """What the probes of D6 and D7 have in common (a `Probe` but for `measure`)."""

    name: ClassVar[str]

    def check(self, config: ConfigDict) -> None:
        """Raise UsageError for an impossible `config.probes.<name>.rows`."""
        rows = config.probes[self.name].rows
        if rows < 1:
            raise UsageError(f"probes.{self.name}.rows is {rows}; it must be at least 1")

    def settings(self, config: ConfigDict) -> dict[str, Any]:
        """As `Probe.settings`."""
        return {
            "states": config.probes.states,
            "seed": config.seed,
            "max_length": config.evaluate.max_length,
            "compute_dtype": config.model.compute_dtype,
            "groups": list(GROUPS),
        }

    def states(self, at: Checkpoint) -> list[State]:
        """Return the drawn expert states."""
        return at.expert_states


def responses_of(state: State, codec: Codec, limit: int) -> Responses:
    """Return what is measured of a state. `limit`: tokens; longer responses are skipped."""
    shown = prompt_tokens(codec, state.record, state.number)
    if shown is None:
        return Responses(None, None, 0, "prompt")
    prefixes = state.record.elicitation
    cot = _whole(codec, shown, state.turn.cot, prefixes.get("cot_prefix", ""))
    prompt = _whole(codec, shown, state.turn.prompt, prefixes.get("prompt_prefix", ""))
    if prompt is not None and len(prompt.ids) > limit:
        prompt = None
    skipped: Skipped | None = None
    if cot is None:
        skipped = "invalid"
    elif REASONING not in cot.groups:
        skipped = "no_thought"
    elif len(cot.ids) > limit:
        skipped = "length"
    return Responses(None if skipped else cot, prompt, len(shown.ids), skipped)


def _whole(codec: Codec, shown: Tokens, response: Response | None, prefix: str) -> Tokens | None:
    """Return a valid response behind its prompt; None for another."""
    if response is None or not response.valid:
        return None
    tokens = response_tokens(codec, [*codec.prefill(prefix), *response.ids])
    return shown + tokens if ACTION in tokens.groups else None


def say_skipped(at: Checkpoint, name: str, skipped: Iterable[Skipped | None]) -> None:
    """Say how many states have no CoT measurement, and why."""
    found = list(skipped)
    reasons = [
        f"{count} with {_SKIPPED[reason]}" for reason in _SKIPPED if (count := found.count(reason))
    ]
    if reasons:
        at.say(
            f"{name}, {at.arm} at step {at.step}: {len(found) - found.count(None)} of "
            f"{len(found)} states are not measured: {', '.join(reasons)}"
        )


def measured(answer: Answer, tokens: Tokens) -> dict[str, Any]:
    """Return the fields of `role_shares.Response`."""
    return {
        "nats": rounded(answer.nats),
        "tokens": len(answer.likeliest),
        "length": len(tokens.ids) - 1,
        "uniform": by_group(answer.uniform),
    }


def change(answer: Answer, usual: Answer) -> dict[str, Any]:
    """Return how an action differs from the usual one: `nats` and `changed`."""
    nats = min(max(answer.nats - usual.nats, -NATS), NATS)
    return {"nats": rounded(nats), "changed": answer.likeliest != usual.likeliest}


def by_group(values: np.ndarray) -> dict[str, float]:
    """Return each group's share of values by group, [R]; groups of 0 are left out."""
    total = values.sum()
    return {
        group: rounded(value / total)
        for group, value in zip(GROUPS, values, strict=True)
        if total > 0 and value > 0
    }


def by_layer(values: np.ndarray, groups: Iterable[str]) -> tuple[float, ...]:
    """Return the share of some groups together in each layer of values [L, R]."""
    numbers = [number for number, group in enumerate(GROUPS) if group in set(groups)]
    totals = values.sum(axis=1)
    parts = values[:, numbers].sum(axis=1)
    return tuple(
        rounded(part / total) if total > 0 else 0.0
        for part, total in zip(parts, totals, strict=True)
    )


def of_layers(values: np.ndarray) -> dict[str, Any]:
    """Return the shares of prompt and reasoning by layer, of values [L, R]."""
    return {
        "prompt_by_layer": by_layer(values, PROMPT),
        "reasoning_by_layer": by_layer(values, ("reasoning",)),
    }


def rounded(value: float) -> float:
    """Return a value to the digits that are kept."""
    return round(float(value), _DIGITS) + 0.0
