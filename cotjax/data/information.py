"""The rows on which is measured what an action has left to learn: a fixed sample of the examples.

Which examples are in it is a function of their ids alone: the same in every arm that trains on
them, on every host, and after a resume.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cotjax.data.packing import Packing
from cotjax.data.pipeline import Example, dropped_weights, packed_row
from cotjax.data.tokens import TokenExample
from cotjax.errors import DataError
from cotjax.masking import NEVER, Dropping, MaskError, Role, draw, targets, turn_numbers

_TOKENS = ("ids", "roles", "branches", "positions")
# A target's group is role + REASONED * (its response has a thought) + DROPPED * (it is dropped).
REASONED = len(Role)
DROPPED = 2 * len(Role)
GROUPS = 4 * len(Role)

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Rows:
    """Packed rows: `fields` [N, T] of a batch of `data.pipeline`, and what tells their groups.

    reasoned: [N, T] bool, whether the response that a target is of has a thought.
    examples: number of examples in the rows.
    """

    fields: Batch
    reasoned: np.ndarray
    examples: int

    def first(self, count: int) -> Rows:
        """Return the first rows."""
        fields = {name: array[:count] for name, array in self.fields.items()}
        return replace(self, fields=fields, reasoned=self.reasoned[:count])

    def batches(
        self, size: int, own: Sequence[int], fraction: float
    ) -> Iterator[tuple[Batch, ...]]:
        """Yield (batch, {"groups": [B, T] int32}) of `size` rows, the last filled with padding.

        The batches are as a train step takes them, with nothing dropped; what the arm would drop at
        `fraction` is told by the groups. `own`: the rows of a batch that this process makes.
        """
        fields = dict(self.fields)
        draws = fields.pop("draws")
        groups = fields["roles"] + REASONED * self.reasoned.astype(np.int32)
        groups += DROPPED * (draws < np.float32(fraction))
        whole = dropped_weights(fields | {"draws": np.full_like(draws, NEVER)}, 0.0)
        for first in range(0, len(groups), size):
            rows = [first + index for index in own]
            yield _taken(whole, rows), _taken({"groups": groups}, rows)


def _taken(arrays: Batch, rows: list[int]) -> Batch:
    """Return these rows of each array; one beyond the last is padding."""
    count = len(next(iter(arrays.values())))
    there = np.asarray([row < count for row in rows])[:, None]
    index = np.minimum(rows, count - 1)
    return {name: np.where(there, array[index], 0).astype(array.dtype)
            for name, array in arrays.items()}  # fmt: skip


class RemovedTokens:
    """Counts the supervised tokens that each arm drops, at its largest fraction, in epoch 0.

    droppings: arm -> what it drops.
    """

    def __init__(self, droppings: Mapping[str, Dropping]):
        self._droppings = droppings
        self._dropped, self._supervised = Counter[str](), Counter[str]()

    def add(self, example: TokenExample) -> None:
        """Count an example. Raises MaskError for one that an arm's control cannot drop from."""
        stored = vars(example) | {"id": example.id.encode()}
        for arm, dropping in self._droppings.items():
            row = packed_row([stored], dropping, 0, len(example.ids))
            gone = row["draws"] < np.float32(dropping.largest)
            self._dropped[arm] += int(row["weights"][gone].sum())
            self._supervised[arm] += int(row["weights"].sum())

    def lines(self) -> Iterator[str]:
        """Yield a line for each arm that drops anything."""
        for arm, dropping in self._droppings.items():
            if dropping.drops() and (total := self._supervised[arm]):
                share = 100 * self._dropped[arm] / total
                yield (
                    f"arm {arm!r} drops {share:.3g} % of the {total:,} supervised tokens; their "
                    "share of the loss may be far smaller: it is measured when training starts"
                )


def sample(source: Sequence[Example], count: int, dropping: Dropping) -> list[Example]:
    """Return at most `count` examples of a source, drawn by their ids.

    Held-out examples may lack what a control drops; those are passed over, for training never
    meets them.
    """

    def drawn(index: int) -> tuple[float, int]:
        example = source[index]
        key = f"information/{example['id'].decode()}/{example.get('first_step', 0)}"
        return draw(0, key), index

    examples: list[Example] = []
    for _, index in sorted(map(drawn, range(len(source)))):
        if len(examples) == count:
            break
        try:
            packed_row([source[index]], dropping, 0, len(source[index]["ids"]))
        except MaskError:
            continue
        examples.append(source[index])
    if not examples:
        raise DataError(f"none of the {len(source)} examples has what this arm drops")
    return examples


def packed(examples: Sequence[Example], dropping: Dropping, row_length: int) -> Rows:
    """Pack examples into rows, with the draws of the first epoch."""
    lengths = np.array([len(example["ids"]) for example in examples], np.int32)
    packing = Packing(lengths, row_length, seed=0)
    rows, reasoned = [], np.zeros((packing.rows, row_length), bool)
    for number in range(packing.rows):
        here = [examples[index] for index in packing.row(number)[1]]
        rows.append(packed_row(here, dropping, 0, row_length))
        marks = np.concatenate([targets(_reasoned(example["roles"])) for example in here])
        reasoned[number, : len(marks)] = marks
    fields = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return Rows(fields, reasoned, len(examples))


def packed_without_thoughts(
    examples: Sequence[Example], dropping: Dropping, row_length: int
) -> Rows:
    """Pack the same responses without their thoughts; their actions alone have weight."""
    bare = [one for example in examples for one in without_thoughts(example)]
    rows = packed(bare, replace(dropping, fraction=0.0, supervised=(Role.ACTION,)), row_length)
    return replace(rows, examples=len(examples))


def without_thoughts(example: Example) -> list[Example]:
    """Return an example whose responses begin with `<action>`: their prompts are what they were.

        ids        prompt <think> t </think> <action> go </action> <end> | more of the prompt
        branches   0      1       1 1        1        1  1         1     | 0
        positions  0      1       2 3        4        5  6         7     | 1
        becomes
        ids        prompt                    <action> go </action> <end> | more of the prompt
        positions  0                         1        2  3         4     | 1

    On a trunk a later response's prompt holds the thoughts of earlier ones. There each response
    with a thought becomes an example of its own, which ends with it.
    """
    roles, branches = np.asarray(example["roles"]), np.asarray(example["branches"])
    thought = roles == Role.REASONING
    if not thought.any():
        return [dict(example)]
    if not (thought & (branches == 0)).any():
        return [_cut(example, ~thought)]
    turns = turn_numbers(roles)
    own = []
    for turn in np.unique(turns[thought]):
        here = turns == turn
        kept = (turns <= turn) & ~(thought & here)
        # Earlier responses are part of the prompt here.
        own.append(_cut(_trained(example, here), kept))
    silent = ~np.isin(turns, turns[thought])
    if (silent & (roles == Role.ACTION)).any():
        own.append(_trained(example, silent))
    return own


def _trained(example: Example, here: np.ndarray) -> Example:
    """Return an example whose other tokens belong to the prompt."""
    roles = np.asarray(example["roles"])
    return dict(example) | {"roles": np.where(here, roles, np.minimum(roles, np.int8(Role.PROMPT)))}


def _cut(example: Example, kept: np.ndarray) -> Example:
    """Return the kept tokens; positions close up within their branch."""
    branches, positions = np.asarray(example["branches"]), np.asarray(example["positions"]).copy()
    for branch in np.unique(branches[~kept]):
        here = branches == branch
        positions[here] -= np.cumsum(~kept[here])
    moved = {name: np.asarray(example[name])[kept] for name in _TOKENS if name != "positions"}
    return dict(example) | moved | {"positions": positions[kept]}


def _reasoned(roles: np.ndarray) -> np.ndarray:
    """Return for each token whether the response it belongs to has a thought: [T] bool."""
    turns = turn_numbers(np.asarray(roles))
    return np.isin(turns, turns[np.asarray(roles) == Role.REASONING])
