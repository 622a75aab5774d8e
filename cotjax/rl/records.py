"""Records of played episodes -> their steps in ids, for rows of a policy batch and for pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cotjax.data.codec import Codec
from cotjax.data.rollouts import PlayedTurn
from cotjax.errors import DataError
from cotjax.rollout.record import Episode

# What a policy gradient can learn from: the policy itself, sampled as it is. A truncated or
# penalised distribution is another one, and its log-probabilities are not the policy's.
_AS_IT_IS = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}


def name_of(record: Episode) -> str:
    """Return the name of a play, which no other one of an update has."""
    return f"{record.game.id}#{record.sample}"


def turns_of(record: Episode, codec: Codec) -> list[PlayedTurn]:
    """Return the CoT responses of a record's turns, in ids. Log-probabilities may be missing.

    Raises DataError for a record without CoT responses, or an episode that its environment failed.
    """
    if record.ended == "env_error":
        raise DataError(f"{name_of(record)}: the environment failed; leave its whole group out")
    prefix = tuple(codec.prefill(record.elicitation.get("cot_prefix", "")))
    turns = []
    for number, turn in enumerate(record.steps):
        if turn.cot is None:
            raise DataError(f"{name_of(record)}, step {number}: the record has no CoT response")
        log_probs = turn.cot.logprobs or ()
        turns.append(PlayedTurn(turn.prompt_ids, prefix, turn.cot.ids, log_probs, turn.cot.valid))
    return turns


def check_sampled(record: Episode) -> None:
    """Raise DataError unless a record's episode was sampled from the policy as it is."""
    if record.driver != "cot":
        raise DataError(
            f"{name_of(record)}: played by {record.driver!r}; a policy gradient "
            "needs episodes that CoT responses drove"
        )
    drawn: Mapping[str, Any] = record.elicitation
    for name, needed in _AS_IT_IS.items():
        if drawn.get(name, needed) != needed:
            raise DataError(
                f"{name_of(record)}: sampled with {name} {drawn[name]}; a policy gradient needs "
                f"{needed}, with which log-probabilities are those of what was sampled"
            )
