"""An episode's record as the viewer reads it: small, with a text for every token.

`Pieces` numbers the texts of tokens within one chunk, so that a chunk can be read alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cotjax.diagnostics.episodes import action_of
from cotjax.formats import normalize_action
from cotjax.masking import Dropping
from cotjax.report.viewer.measured import Key
from cotjax.report.viewer.tokens import TokenTexts
from cotjax.rollout.record import Choice, Record, Response, Turn

# What an episode's steps may be, one bit each in the index. The first is bit 0.
MARKS = (
    "revised",  # both actions are valid, and differ
    "helpful",  # of these: only the CoT action is the expert's
    "harmful",  # only the prompt action is the expert's
    "judged_helpful",  # by the environment: the CoT action is the better one
    "judged_harmful",
    "invalid",  # a response has no valid action
    "not_accepted",  # the environment did not carry out what was executed
)
_FREE = ("cot", "prompt", "instructed")
_CHOSEN = ("cot_constrained", "prompt_constrained")
_PREFIXES = {"cot": "cot_prefix", "prompt": "prompt_prefix"}
Probed = Mapping[Key, Mapping[str, Mapping[str, Any]]]


class Pieces:
    """Texts of tokens, each with a number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def numbers(self, texts: Iterable[str]) -> list[int]:
        """Return the number of each text; a new text gets the next one."""
        return [self._numbers.setdefault(text, len(self._numbers)) for text in texts]

    def texts(self) -> list[str]:
        """Return the text of each number."""
        return list(self._numbers)


def episode_entry(
    record: Record,
    texts: TokenTexts,
    dropping: Dropping | None,
    probed: Probed,
    pieces: Pieces,
) -> dict[str, Any]:
    """Return what a chunk holds of an episode.

    Args:
      dropping: what the record's arm drops; None: no loss weights are shown.
      probed: the rows of the record's checkpoint.
    """
    steps = []
    for number, turn in enumerate(record.steps):
        key = record.driver, record.game.id, record.sample, number
        rows = dict(probed.get(key, {}))
        steps.append(_step(record, turn, rows, texts, dropping, pieces))
    first = record.steps[0].prompt_ids if record.steps else ()
    return {
        "task": record.task,
        "score": record.score,
        "env_error": record.env_error,
        "env_faults": list(record.env_faults),
        "final": record.final_observation,
        "prompt": texts.prompt(first),
        "checkpoint_hash": record.checkpoint_hash,
        "steps": steps,
    }


def marks_of(entry: Mapping[str, Any]) -> int:
    """Return the marks of an entry's steps, together, as bits."""
    return sum(
        1 << bit
        for bit, mark in enumerate(MARKS)
        if any(mark in step["marks"] for step in entry["steps"])
    )


def _step(
    record: Record,
    turn: Turn,
    rows: Mapping[str, Mapping[str, Any]],
    texts: TokenTexts,
    dropping: Dropping | None,
    pieces: Pieces,
) -> dict[str, Any]:
    actions: dict[str, Any] = {}
    for kind in _FREE:
        response: Response | None = getattr(turn, kind)
        if response is not None:
            prefilled = str(record.elicitation.get(_PREFIXES.get(kind, ""), ""))
            actions[kind] = _response(
                response, prefilled, texts, dropping, record.checkpoint, pieces
            )
    for kind in _CHOSEN:
        choice: Choice | None = getattr(turn, kind)
        if choice is not None:
            actions[kind] = {
                "action": choice.action,
                "by_total": choice.by_total,
                "by_mean": choice.by_mean,
                "logprobs": _rounded(choice.logprobs),
                "lengths": list(choice.tokens),
            }
    return {
        "observation": turn.observation,
        "admissible": None if turn.admissible_commands is None else list(turn.admissible_commands),
        "prompt_length": turn.prompt_length,
        "actions": actions,
        "reference": turn.reference,
        "executed": turn.executed,
        "accepted": turn.accepted,
        "score": turn.score,
        "marks": _marks(turn, rows),
        "probes": dict(rows),
    }


def _response(
    response: Response,
    prefilled: str,
    texts: TokenTexts,
    dropping: Dropping | None,
    step: int,
    pieces: Pieces,
) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "thought": response.thought,
        "action": response.action,
        "valid": response.valid,
        "problem": response.problem,
        "admissible": response.admissible,
        "stopped": response.stopped,
        "length": response.new_tokens,
        "logprob": None if response.logprob is None else round(response.logprob, 3),
    }
    if response.logprobs is not None:
        entry["logprobs"] = _rounded(response.logprobs)
    if texts.codec is None or not response.ids:
        return entry | {"text": response.text}
    return entry | {
        "prefilled": prefilled,
        "tokens": pieces.numbers(texts.texts(response.ids)),
        "roles": texts.runs(response.ids, prefilled, dropping, step),
    }


def _rounded(logprobs: Sequence[float]) -> list[float]:
    # Two decimals are 1 % of a probability; adding 0.0 turns -0.0 into 0.0.
    return [round(value, 2) + 0.0 for value in logprobs]


def _marks(turn: Turn, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the marks of a step, in the order of MARKS."""
    cot, prompt = action_of(turn.cot), action_of(turn.prompt)
    revised = cot is not None and prompt is not None and cot != prompt
    expert = None if turn.reference is None else normalize_action(turn.reference)
    judged = rows.get("revisions", {}).get("verdict")
    responses: list[Response | None] = [getattr(turn, kind) for kind in _FREE]
    holds = {
        "revised": revised,
        "helpful": revised and expert is not None and cot == expert,
        "harmful": revised and expert is not None and prompt == expert,
        "judged_helpful": judged == "helpful",
        "judged_harmful": judged == "harmful",
        "invalid": any(each is not None and not each.valid for each in responses),
        "not_accepted": turn.accepted is False,
    }
    return [mark for mark in MARKS if holds.get(mark)]
