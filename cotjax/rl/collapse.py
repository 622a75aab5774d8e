"""Whether thoughts depend on their prompts: the mutual information of the two, by a step's plays.

RAGEN-2 (arXiv 2604.06268) calls it template collapse where a policy keeps its entropy, but writes
the same thoughts whatever it sees; then a CoT action is a prompt action with a preface. For K
states of different groups, each thought t_j is scored behind each prompt p_i:

    information   mean over j of log p(t_j | p_j) - log mean_i p(t_j | p_i): at most log K nats, and
                  0 where thoughts do not depend on prompts
    over_others   the same with the mean over the other prompts alone, which has no bound
    retrieved     share of thoughts that are likeliest behind their own prompt

A row holds one prompt as a trunk with the thoughts as its branches, so that K prompts are read once
each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from cotjax.data.codec import Codec, Segments
from cotjax.data.packing import fit
from cotjax.data.pipeline import packed_row
from cotjax.data.rollouts import PlayedTurn, response_segments
from cotjax.data.tokens import TokenExample, forked_example
from cotjax.masking import Dropping, Role, draw
from cotjax.rl.records import turns_of
from cotjax.rl.rollouts import Rollouts
from cotjax.rl.run import RLRun
from cotjax.rl.update import Batch


@dataclass(frozen=True)
class Thought:
    """A sampled thought in ids: its whole prompt, what was prefilled, and what was sampled."""

    prompt: tuple[int, ...]
    prefix: tuple[int, ...]
    ids: tuple[int, ...]


def thoughts_of(
    rollouts: Rollouts, codec: Codec, count: int, row_length: int, seed: int
) -> list[Thought]:
    """Return at most `count` thoughts of a step, drawn by the seed, each of another group.

    No two have one prompt, and each fits into a row behind every other's prompt.
    """
    found = [
        (draw(seed, f"collapse/{play.name}/{number}", rollouts.about.step), position, thought)
        for position, play, episode in zip(
            rollouts.positions, rollouts.plays, rollouts.episodes, strict=True
        )
        for number, thought in enumerate(_thoughts(turns_of(episode, codec), codec))
    ]
    kept: list[Thought] = []
    groups: set[int] = set()
    for _, position, thought in sorted(found, key=lambda each: each[:2]):
        several = [*kept, thought]
        longest = max(len(each.prompt) for each in several)
        longest += max(len(each.prefix) + len(each.ids) for each in several)
        new = position not in groups and all(each.prompt != thought.prompt for each in kept)
        if len(kept) < count and new and thought.ids and longest <= row_length:
            kept.append(thought)
            groups.add(position)
    return kept


def _thoughts(turns: Sequence[PlayedTurn], codec: Codec) -> Iterator[Thought]:
    prompt: tuple[int, ...] = ()
    for turn in turns:
        prompt += turn.prompt
        (_, *sampled) = response_segments(codec, turn)
        roles = [role for _, role in sampled]
        ends = next((at for at, role in enumerate(roles) if role != Role.REASONING), len(roles))
        yield Thought(prompt, turn.prefix, turn.ids[:ends])


def thoughts_compared(
    run: RLRun, rollouts: Rollouts, codec: Codec, score: Callable[[Batch], np.ndarray]
) -> dict[str, float] | None:
    """Return the measures above, and "prompts", of a step; None where there are not two thoughts.

    `score`: (batch) -> log-probabilities of its targets, [B, T], under the policy that played.
    """
    length, rows = run.settings.row_length, run.settings.batch
    thoughts = thoughts_of(rollouts, codec, run.rl.information, length, run.seed)
    if len(thoughts) < 2:
        return None
    return measures(totals(thoughts, score, length, rows))


def totals(
    thoughts: Sequence[Thought], score: Callable[[Batch], np.ndarray], row_length: int, rows: int
) -> np.ndarray:
    """Return log p(t_j | p_i) of each prompt i and thought j, float64 [K, K].

    `score` takes batches of `rows` rows of `row_length` tokens.
    """
    trees = [
        tree for number in range(len(thoughts)) for tree in _trees(thoughts, number, row_length)
    ]
    row_of = fit([len(tree.ids) for _, _, tree in trees], row_length, bins=len(trees))
    found = np.zeros((len(thoughts), len(thoughts)))
    count = -(-(int(row_of.max()) + 1) // rows) * rows
    in_rows = [[trees[at] for at in np.flatnonzero(row_of == row)] for row in range(count)]
    packed = [
        packed_row([vars(tree) | {"id": b""} for _, _, tree in own], Dropping.of(), 0, row_length)
        for own in in_rows
        if own
    ]
    packed += [{name: np.zeros_like(x) for name, x in packed[0].items()}] * (count - len(packed))
    for first in range(0, count, rows):
        batch = {
            name: np.stack([row[name] for row in packed[first : first + rows]])
            for name in packed[0]
        }
        scores = score(batch | {"kl_weights": batch["weights"]})
        for own, scores_T in zip(in_rows[first : first + rows], scores, strict=True):
            start = 0
            for prompt, responses, tree in own:
                places = np.flatnonzero(tree.roles == Role.REASONING)
                of = np.array(responses)[tree.branches[places] - 1]
                np.add.at(found[prompt], of, scores_T[start + places - 1].astype(np.float64))
                start += len(tree.ids)
    return found


def _trees(
    thoughts: Sequence[Thought], number: int, row_length: int
) -> Iterator[tuple[int, list[int], TokenExample]]:
    """Yield (prompt, thoughts, tree): all thoughts behind one prompt, in as few trees as fit."""
    prompt: Segments = [(list(thoughts[number].prompt), Role.PROMPT)]
    own: list[int] = []
    length = len(thoughts[number].prompt) - 1
    for other, thought in enumerate(thoughts):
        # The prompt's last id begins each branch.
        more = 1 + len(thought.prefix) + len(thought.ids)
        if own and length + more > row_length:
            yield number, own, _forked(prompt, [thoughts[each] for each in own])
            own, length = [], len(thoughts[number].prompt) - 1
        own.append(other)
        length += more
    yield number, own, _forked(prompt, [thoughts[each] for each in own])


def _forked(prompt: Segments, thoughts: Sequence[Thought]) -> TokenExample:
    responses: list[Segments] = [
        [(list(each.prefix), Role.PROMPT), (list(each.ids), Role.REASONING)] for each in thoughts
    ]
    return forked_example("collapse", 0, prompt, responses)


def measures(totals_KK: np.ndarray) -> dict[str, float]:
    """Return the measures at the top of this file from log p(t_j | p_i), [i, j]."""
    count = len(totals_KK)
    own = np.diagonal(totals_KK)
    others = np.where(np.eye(count, dtype=bool), -np.inf, totals_KK)
    among_all = logsumexp(totals_KK, axis=0) - np.log(count)
    among_others = logsumexp(others, axis=0) - np.log(count - 1)
    return {
        "prompts": count,
        "information": float(np.mean(own - among_all)),
        "over_others": float(np.mean(own - among_others)),
        "retrieved": float(np.mean(own > others.max(axis=0))),
    }
