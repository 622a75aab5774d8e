"""D1 and D2 by log-likelihood: scores actions of a state, with the model's reasoning and without.

`cotjax.diagnostics.likelihood` says what is made of the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from cotjax.data.codec import Codec
from cotjax.diagnostics.episodes import action_of
from cotjax.diagnostics.likelihood import NAME, LikelihoodRow, divergence, posterior
from cotjax.formats import normalize_action
from cotjax.probes.probe import Checkpoint, State
from cotjax.probes.prompts import in_slots, named
from cotjax.rollout.constrained import action_branches, reasoning_before

_DIGITS = 6  # decimals that are kept: beyond them results depend on the batch


class LikelihoodProbe:
    """The probe. Every drawn expert state has a row."""

    name: ClassVar[str] = NAME
    title: ClassVar[str] = "likelihood of actions"

    def check(self, config: ConfigDict) -> None:
        """Allow every config: scores need nothing of a world."""

    def settings(self, config: ConfigDict) -> dict[str, Any]:
        """Return the slot's length: an action that does not fit into a slot is left out."""
        return {"seed": config.seed, "max_length": config.evaluate.max_length}

    def states(self, at: Checkpoint) -> list[State]:
        """Return the drawn expert states."""
        return at.expert_states

    def measure(self, states: Sequence[State], at: Checkpoint) -> Iterator[LikelihoodRow]:
        """Score the actions of as many states at once as the policy has slots."""
        for batch in in_slots(at.policy, states):
            wanted = {slot: _Wanted.of(state, at.codec) for slot, state in batch.items()}
            prompts = {slot: each.prompt_prefix for slot, each in wanted.items()}
            reasoned = {
                slot: each.cot_prefix
                for slot, each in wanted.items()
                if each.cot_prefix is not None
            }
            after_prompt = _score(batch, prompts, wanted, at)
            after_cot = _score(batch, reasoned, wanted, at)
            for slot, state in batch.items():
                yield _row(state, wanted[slot], after_prompt.get(slot, {}), after_cot.get(slot, {}))


# Normalised action -> its log-probability.
Scores = Mapping[str, float]


@dataclass(frozen=True)
class _Wanted:
    """What is scored at a state.

    Attributes:
      prompt_prefix, cot_prefix: ids between prompt and action; None where there is no CoT response.
      branches: normalised action -> ids of the action with `</action>`.
      listed: normalised admissible actions, each once; () where none are listed.
    """

    prompt_prefix: list[int]
    cot_prefix: list[int] | None
    branches: Mapping[str, list[int]]
    listed: tuple[str, ...]

    @classmethod
    def of(cls, state: State, codec: Codec) -> _Wanted:
        turn, elicited = state.turn, state.record.elicitation
        listed = dict.fromkeys(turn.admissible_commands or ())
        texts = [*listed, turn.reference or ""]
        texts += [
            each.action
            for each in (turn.cot, turn.prompt)
            if each is not None and each.action is not None and action_of(each) is not None
        ]
        actions = {normalize_action(text): text for text in reversed(texts)}
        ids = action_branches(codec, list(actions.values()))
        cot_prefix = None
        if turn.cot is not None:
            begun = codec.prefill(elicited.get("cot_prefix") or "")
            cot_prefix = reasoning_before(codec, [*begun, *turn.cot.ids])
        return cls(
            prompt_prefix=codec.prefill(elicited["prompt_prefix"]),
            cot_prefix=cot_prefix,
            branches=dict(zip(actions, ids, strict=True)),
            listed=tuple(dict.fromkeys(map(normalize_action, listed))),
        )


def _score(
    batch: Mapping[int, State],
    prefixes: Mapping[int, Sequence[int]],
    wanted: Mapping[int, _Wanted],
    at: Checkpoint,
) -> dict[int, Scores]:
    """Return slot -> the scores of its actions behind its prefix, of those that fit into a slot."""
    policy, lengths = at.policy, at.policy.lengths
    fitting = {
        slot: {
            action: ids
            for action, ids in wanted[slot].branches.items()
            if lengths[slot] + len(prefix) + len(ids) <= policy.max_length
        }
        for slot, prefix in prefixes.items()
    }
    asked = {slot: list(branches.values()) for slot, branches in fitting.items() if branches}
    scored = named(
        batch, lambda: policy.score_branches({slot: prefixes[slot] for slot in asked}, asked)
    )
    return {
        slot: {
            action: round(float(sum(logprobs)), _DIGITS)
            for action, logprobs in zip(fitting[slot], scored[slot], strict=True)
        }
        for slot in asked
    }


def _row(state: State, wanted: _Wanted, prompt: Scores, cot: Scores) -> LikelihoodRow:
    turn = state.turn
    reference = normalize_action(turn.reference or "")
    of_prompt, of_cot = (_posterior(wanted.listed, scores) for scores in (prompt, cot))
    at = wanted.listed.index(reference) if reference in wanted.listed else None
    apart = None if of_prompt is None or of_cot is None else divergence(of_prompt, of_cot)
    return LikelihoodRow(
        **state.place,
        tokens=len(wanted.branches[reference]),
        reference=prompt.get(reference),
        reference_after_cot=cot.get(reference),
        cot=prompt.get(action_of(turn.cot) or ""),
        prompt=prompt.get(action_of(turn.prompt) or ""),
        posterior=_share(of_prompt, at),
        posterior_after_cot=_share(of_cot, at),
        divergence=None if apart is None else round(apart, _DIGITS),
    )


def _posterior(listed: Sequence[str], scores: Scores) -> np.ndarray | None:
    """Return the posterior over the listed actions; None where there is none, or one unscored."""
    if not listed or not all(action in scores for action in listed):
        return None
    return posterior([scores[action] for action in listed])


def _share(of_listed: np.ndarray | None, at: int | None) -> float | None:
    return None if of_listed is None or at is None else round(float(of_listed[at]), _DIGITS)
