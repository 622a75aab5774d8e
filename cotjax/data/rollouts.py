"""Played episodes -> rows of a policy batch, from ids alone; text is never encoded again.

An episode becomes the tree that training knows (`cotjax.data.tokens`): the trunk is what prompts
showed, and each step's response is a branch of the ids that were sampled:

    prompt 1 | prefix, sampled ids 1 | <action> a1 </action><end> prompt 2 | prefix, sampled ids 2
    trunk    | branch 1              | trunk (the record's next prompt)     | branch 2

Only sampled ids have a log-probability, so only they have a weight: not a prefilled prefix, and not
the end of the turn where decoding did not go on to it (`rl.sample_end`). Roles are found in the
text of the ids. A token that holds part of a tag is the tag's; a malformed response is reasoning
from end to end, so there is no action to drop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cotjax.data.codec import Segments
from cotjax.data.packing import fit
from cotjax.data.pipeline import dropped_weights, packed_row
from cotjax.data.text_codec import TextCodec
from cotjax.data.tokens import TokenExample, Turn, tree_examples
from cotjax.errors import DataError, UsageError
from cotjax.masking import Dropping, Role
from cotjax.masking.sampled import response_roles

_TAGS = (Role.ACTION_OPEN, Role.ACTION_CLOSE)
BUDGETS = ("fixed_budget", "token_sum")


@dataclass(frozen=True)
class PlayedTurn:
    """One step of an episode, in ids.

    prompt: appended to the prompt for this step.
    prefix: prefilled before the response.
    ids, log_probs: [N] what was sampled, and its log-probability in nats, at temperature 1 over the
      whole vocabulary.
    valid: the response is well-formed.
    """

    prompt: tuple[int, ...]
    prefix: tuple[int, ...]
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    valid: bool


@dataclass(frozen=True)
class PlayedExample(TokenExample):
    """A tree of an episode, or one of several where it is longer than an example may be.

    id: the play's name.
    log_probs: [T] float32, of sampled tokens; 0 elsewhere.
    sampled: [T] float32, 1 on tokens that were sampled.
    advantages: [T] float32, of the step of each sampled token.
    """

    log_probs: np.ndarray
    sampled: np.ndarray
    advantages: np.ndarray


def response_segments(codec: TextCodec, turn: PlayedTurn) -> Segments:
    """Return a response with its roles, an id at a time; the prefix is prompt."""
    pieces = codec.pieces
    texts = [(pieces[id] or "") if id < len(pieces) else "" for id in turn.ids]
    roles = _roles(texts, codec, turn)
    if not turn.valid:
        roles = np.full(len(turn.ids), Role.REASONING, np.int8)
    own = [([id], Role(role)) for id, role in zip(turn.ids, roles.tolist(), strict=True)]
    return [(list(turn.prefix), Role.PROMPT), *own]


def _roles(texts: Sequence[str], codec: TextCodec, turn: PlayedTurn) -> np.ndarray:
    """Return the role of each sampled token, by its text."""
    written = "".join(texts)
    opened = codec.decode(turn.prefix) if turn.prefix else ""
    spans = [(at, at + 1) for at in range(len(written))]
    ends = (codec.template.response_end,)
    of_characters, _ = response_roles(written, spans, ends=ends, prefilled=opened)
    return roles_by_token(texts, of_characters)


def roles_by_token(texts: Sequence[str], of_characters: np.ndarray) -> np.ndarray:
    """Return the role of each token, int8, from those of the characters of their joined texts.

    A token with a part of an action tag is the tag's; else the first character that is no space
    decides. One without any continues the token before it.
    """
    written = "".join(texts)
    roles, start, last = np.empty(len(texts), np.int8), 0, int(Role.REASONING)
    for number, text in enumerate(texts):
        end = start + len(text)
        solid = [at for at in range(start, end) if not written[at].isspace()]
        own = of_characters[solid or range(start, end)].tolist()
        last = next((role for role in own if role in _TAGS), own[0] if own else last)
        roles[number], start = last, end
    return roles


def tree_turns(
    codec: TextCodec, turns: Sequence[PlayedTurn], *, ended: bool = False
) -> Iterator[Turn]:
    """Yield the steps of an episode for `tree_examples`; one without sampled ids is not trained on.

    `ended`: well-formed responses end with the end of the turn, as those of training do.
    """
    for number, turn in enumerate(turns):
        response = response_segments(codec, turn)
        if ended and turn.valid and response[-1][1] != Role.END:
            response.append((codec.encode(codec.template.response_end), Role.END))
        prompt: Segments = [(list(turn.prompt), Role.PROMPT)]
        yield Turn(number, prompt, response, [], trained=bool(turn.ids))


def played_examples(
    codec: TextCodec,
    name: str,
    turns: Sequence[PlayedTurn],
    advantages: Sequence[float],
    max_length: int,
) -> list[PlayedExample]:
    """Return the trees of an episode, each at most `max_length` tokens.

    Args:
      name: the play's; errors and draws go by it.
      advantages: of each step.

    Raises:
      DataError: a log-probability or an advantage is not finite, or their number is not that of
        what they belong to; the message names the play and the step.
    """
    check_played(name, turns, advantages)
    made = tree_examples(name, tree_turns(codec, turns), max_length)
    return [_played(example, turns, advantages) for example in made]


def _played(
    example: TokenExample, turns: Sequence[PlayedTurn], advantages: Sequence[float]
) -> PlayedExample:
    log_probs, sampled, own = np.zeros((3, len(example.ids)), np.float32)
    for step in example.steps.tolist():
        turn = turns[step]
        places = np.flatnonzero(example.branches == step - example.first_step + 1)
        places = places[len(turn.prefix) :]
        log_probs[places], sampled[places], own[places] = turn.log_probs, 1, advantages[step]
    return PlayedExample(**vars(example), log_probs=log_probs, sampled=sampled, advantages=own)


def check_played(name: str, turns: Sequence[PlayedTurn], advantages: Sequence[float]) -> None:
    """Raise DataError, naming the play, as `played_examples` says."""
    if len(advantages) != len(turns):
        raise DataError(f"{name}: {len(turns)} steps, but {len(advantages)} advantages")
    for number, (turn, advantage) in enumerate(zip(turns, advantages, strict=True)):
        if len(turn.log_probs) != len(turn.ids):
            raise DataError(
                f"{name}, step {number}: {len(turn.ids)} sampled ids, but {len(turn.log_probs)} "
                "log-probabilities; a policy gradient needs that of every id"
            )
        if not np.isfinite([*turn.log_probs, advantage]).all():
            raise DataError(f"{name}, step {number}: a log-probability or advantage is not finite")


@dataclass(frozen=True)
class PolicyRows:
    """The batch of one update, and what it leaves out.

    batch: fields of `cotjax.objectives.policy`, [rows, T]; `reference` is 0 until it is computed.
    trees: of each row, in their order; `tokens_of` says where their tokens are.
    trajectories: plays in it.
    steps, left_out: steps that are in it, and those too long with their prompt.
    """

    batch: dict[str, np.ndarray]
    trees: Sequence[Sequence[PlayedExample]]
    trajectories: int
    steps: int
    left_out: int

    def tokens_of(self) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
        """Yield (play, row, places, steps) of each tree's sampled tokens.

        places, steps: [N] where the row has the token as a target, and the step that wrote it.
        """
        for row, trees in enumerate(self.trees):
            start = 0
            for tree in trees:
                sampled = np.flatnonzero(tree.sampled)
                yield (
                    tree.id,
                    row,
                    start + sampled - 1,
                    tree.branches[sampled] + tree.first_step - 1,
                )
                start += len(tree.ids)


def policy_rows(
    plays: Mapping[str, Sequence[PlayedExample]],
    steps: Mapping[str, int],
    *,
    row_length: int,
    multiple: int,
    dropping: Dropping,
    update: int,
    budget: str = "fixed_budget",
    kl_on_dropped: bool = True,
) -> PolicyRows:
    """Pack the episodes of one update into rows, in the order of their names.

    Args:
      plays: name -> its trees.
      steps: name -> the steps that it had.
      multiple: the number of rows is filled up with padding to a multiple of this, so that a train
        step of that many rows takes them all without compiling again.
      dropping: of the action tokens; drawn by update, play and step.
      update: counts from 0.
      budget: what dropping does to the remaining tokens' weight; one of BUDGETS. "fixed_budget":
        nothing; "token_sum": they take over that of the dropped ones.
      kl_on_dropped: dropped tokens keep their KL and entropy terms; else metrics of tokens leave
        them out, too.

    Raises:
      UsageError: an unknown budget.
      DataError: there is no sampled token, or a tree is longer than a row.
    """
    if budget not in BUDGETS:
        raise UsageError(f"unknown budget {budget!r}; there are {', '.join(BUDGETS)}")
    trees = [tree for name in sorted(plays) for tree in plays[name]]
    if not trees:
        raise DataError("there is no sampled token to train on: no play has a step that fits")
    lengths = [len(tree.ids) for tree in trees]
    if max(lengths) > row_length:
        long = trees[int(np.argmax(lengths))]
        raise DataError(f"{long.id}: {max(lengths)} tokens, but a row has {row_length}")
    row_of = fit(lengths, row_length, bins=len(lengths))
    count = -(-(int(row_of.max()) + 1) // multiple) * multiple
    in_rows = [[trees[index] for index in np.flatnonzero(row_of == row)] for row in range(count)]
    packed = [_packed(own, dropping, update, row_length) for own in in_rows]
    empty = {name: np.zeros_like(array) for name, array in packed[0].items()}
    rows = {name: np.stack([(row or empty)[name] for row in packed]) for name in packed[0]}
    batch = _policy_batch(rows, in_rows, dropping.fraction_at(update), budget, kl_on_dropped)
    trained = sum(len(tree.steps) for tree in trees)
    return PolicyRows(batch, in_rows, len(plays), trained, sum(steps.values()) - trained)


def _packed(
    trees: Sequence[PlayedExample], dropping: Dropping, update: int, row_length: int
) -> dict[str, np.ndarray]:
    stored = [vars(tree) | {"id": f"{update}/{tree.id}".encode()} for tree in trees]
    return packed_row(stored, dropping, update, row_length) if stored else {}


def _policy_batch(
    rows: dict[str, np.ndarray],
    in_rows: Sequence[Sequence[PlayedExample]],
    fraction: float,
    budget: str,
    kl_on_dropped: bool,
) -> dict[str, Any]:
    rows["weights"] *= rows.pop("sampled")
    full = rows["weights"]
    batch = dropped_weights(rows, fraction)
    counted = full if budget == "fixed_budget" else batch["weights"]
    batch["budget"] = counted.sum(-1, keepdims=True)
    batch["kl_weights"] = full if kl_on_dropped else batch["weights"]
    # The last token of a row's example stands at its own position, too, which predicts nothing.
    batch["sampler"] = np.where(full > 0, batch.pop("log_probs"), np.float32(0))
    batch["advantages"] = np.where(full > 0, batch["advantages"], np.float32(0))
    batch["old"], batch["reference"] = batch["sampler"].copy(), np.zeros_like(batch["sampler"])
    batch["coefficients"] = np.zeros((len(full), 2), np.float32)  # until they are known
    batch["lengths"], batch["trajectories"] = _by_play(batch["segment_ids"], counted, in_rows)
    return batch


def _by_play(
    segment_ids_BT: np.ndarray,
    counted_BT: np.ndarray,
    in_rows: Sequence[Sequence[PlayedExample]],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of each target's play, [B, T], and the plays that begin in each row."""
    places = [
        (tree.id, row, segment)
        for row, trees in enumerate(in_rows)
        for segment, tree in enumerate(trees, start=1)
    ]
    totals: dict[str, float] = {}
    first = np.zeros((len(in_rows), 1), np.float32)
    for name, row, segment in places:
        first[row] += name not in totals
        here = counted_BT[row][segment_ids_BT[row] == segment]
        totals[name] = totals.get(name, 0.0) + float(here.sum())
    lengths = np.ones(counted_BT.shape, np.float32)
    for name, row, segment in places:
        lengths[row][segment_ids_BT[row] == segment] = max(totals[name], 1.0)
    return lengths, first
