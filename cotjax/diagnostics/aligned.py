r"""D1, D2, D4, D6 and D7 on growing texts, at states of the expert's own episodes.

A state is all that stands before a piece of the expert's text: the question, its thoughts so far,
and results. The reference action is the expert's next search or answer.

    CoT action      behind a thought, as the model goes on with the text
    prompt action   at once: the likelier of `<begin_search>` and `</think>` in the state, and the
                    query or the answer that the model writes behind it

D1 is whether an action is the reference action. In D4 the world's facts judge: a right answer is
good, and so is a search for a missing fact; the action that alone is good is the better one. D6 and
D7 are the shares of attention and of the action's gradient (`cotjax.model.shares`) of the CoT
action; thoughts of before are reasoning, queries and results of before are the prompt's history.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cotjax.diagnostics.role_shares import of_prompt
from cotjax.diagnostics.statistics import NOTHING, Estimate, contrast, mean, rate
from cotjax.errors import DataError
from cotjax.runtime.files import write_atomic

Share = Mapping[str, float]
# What a share is of.
ATTENTION, GRADIENT, UNIFORM = "attention", "gradient", "uniform"


@dataclass(frozen=True)
class Side:
    """One action in a state.

    action: "" where it is malformed. same: it is the reference action. kind: it searches where that
    searches, and answers where that answers. good: D4's judge takes it.
    """

    action: str
    same: bool
    kind: bool
    good: bool


@dataclass(frozen=True)
class Aligned:
    """What was measured in one state.

    game: the question's id. number: of the expert's piece, from 0. searches: the reference action
    is a search. agree: both actions are one (D2).
    shares: ATTENTION, GRADIENT and UNIFORM (of the visible tokens) -> group -> share, of the CoT
      action; {} where that is malformed or too long.
    """

    game: str
    number: int
    searches: bool
    reference: str
    cot: Side
    prompt: Side
    agree: bool
    shares: Mapping[str, Share]


# Figure -> what counts in a state, of all states.
_RATES: Mapping[str, Callable[[Aligned], bool]] = {
    "d1_cot": lambda each: each.cot.same,
    "d1_prompt": lambda each: each.prompt.same,
    "kind_cot": lambda each: each.cot.kind,
    "kind_prompt": lambda each: each.prompt.kind,
    "d2": lambda each: each.agree,
    "d4_cot": lambda each: each.cot.good > each.prompt.good,
    "d4_prompt": lambda each: each.prompt.good > each.cot.good,
}
# Figure -> (the action's, the other one's) rates.
_GAPS = {"d1_gap": ("d1_cot", "d1_prompt"), "d4_gap": ("d4_cot", "d4_prompt")}
# Figure -> (what a share is of, its part).
_SHARES: Mapping[str, tuple[str, Callable[[Share], float]]] = {
    f"{kind}_{name}": (kind, part)
    for kind in (ATTENTION, GRADIENT, UNIFORM)
    for name, part in (
        ("prompt", of_prompt),
        ("results", lambda share: share.get("observation", 0.0)),
        ("reasoning", lambda share: share.get("reasoning", 0.0)),
    )
}
FIGURES = (*_RATES, *_GAPS, *_SHARES)


def rates(states: Sequence[Aligned]) -> dict[str, Estimate]:
    """Return every figure of these states, clustered by question."""
    by_game: dict[str, list[Aligned]] = {}
    for each in states:
        by_game.setdefault(each.game, []).append(each)
    groups = list(by_game.values())
    if not groups:
        return dict.fromkeys(FIGURES, NOTHING)
    sizes = [len(own) for own in groups]
    hits = {name: [sum(map(is_one, own)) for own in groups] for name, is_one in _RATES.items()}
    found = {name: rate(own, sizes) for name, own in hits.items()}
    for name, (ours, theirs) in _GAPS.items():
        found[name] = contrast([(1.0, hits[ours], sizes), (-1.0, hits[theirs], sizes)])
    for name, (kind, part) in _SHARES.items():
        own = [[part(each.shares[kind]) for each in group if each.shares] for group in groups]
        found[name] = mean([sum(x) for x in own], [len(x) for x in own], 1.0)
    return found


def write_aligned(path: Path, checkpoint: str, states: Iterable[Aligned]) -> None:
    """Write what was measured at a checkpoint, which `checkpoint` names by its hash."""
    lines = [{"checkpoint": checkpoint, **asdict(state)} for state in states]
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_aligned(path: Path) -> tuple[str, list[Aligned]]:
    """Return (hash of the checkpoint, states); ("", []) where there are none. Raises DataError."""
    if not path.exists():
        return "", []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        hashes = {line.pop("checkpoint") for line in lines}
        for line in lines:
            line |= {name: Side(**line[name]) for name in ("cot", "prompt")}
        found = [Aligned(**line) for line in lines]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not what was measured at the expert's states ({error}); delete it, and start "
            "the same command again"
        ) from None
    return (hashes.pop() if hashes else ""), found
