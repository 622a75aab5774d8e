"""Rows of states on the devices: compiled once a size, measured a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from cotjax.diagnostics.role_shares import GROUPS
from cotjax.model.params import Params, param_shardings
from cotjax.model.platform import compiler_options
from cotjax.model.sharding import batch_parts, batch_sharding
from cotjax.model.shares import Asked, Shares, lower
from cotjax.probes.groups import ACTION, REASONING, Tokens
from cotjax.probes.probe import Weights
from cotjax.sample.buckets import CAPACITY_BUCKETS, bucket

# Tokens of an action that a program is compiled for.
ACTION_BUCKETS = (16, 32, 64, 128, 256, 512)
# What the queries may not see: nothing; the reasoning; or the reasoning, which the tags and the
# action's tokens do not see either.
NOTHING, MASKED, BLOCKED = "nothing", "masked", "blocked"


class Size(NamedTuple):
    """Tokens of a row, and of its action."""

    row: int
    action: int


@dataclass(frozen=True)
class Row:
    """A row to measure.

    Attributes:
      kind: the caller's name of it, among those of its state.
      hidden: NOTHING, MASKED or BLOCKED.
    """

    kind: str
    tokens: Tokens
    hidden: str = NOTHING

    @property
    def size(self) -> Size:
        """What it is compiled for."""
        action = self.tokens.groups.count(ACTION)
        return Size(bucket(len(self.tokens.ids), CAPACITY_BUCKETS), bucket(action, ACTION_BUCKETS))


@dataclass(frozen=True)
class Answer:
    """What was found of one row.

    Attributes:
      nats: of the action.
      likeliest: the most likely id in each place of the action.
      attention: [L, R]; gradient: [L, R] or None; input: [R] or None. As model.shares.Shares.
      uniform: [R], the share of the tokens that the queries see, mean over queries.
    """

    nats: float
    likeliest: tuple[int, ...]
    attention: np.ndarray
    gradient: np.ndarray | None
    input: np.ndarray | None
    uniform: np.ndarray


@dataclass
class Programs:
    """The programs of one model with its weights.

    Attributes:
      rows: measured at once on each copy of the weights.
    """

    weights: Weights
    rows: int
    with_gradient: bool
    _params: Params = field(init=False)
    _compiled: dict[Size, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model, params, mesh = self.weights
        self._params = jax.device_put(
            jax.tree.map(lambda x: x.astype(model.compute_as), params),
            param_shardings(model, mesh),
        )

    def of(self, weights: Weights) -> Programs:
        """Return these programs, as far as they are compiled, with other weights of the model."""
        return Programs(weights, self.rows, self.with_gradient, self._compiled)

    def ask(self, states: Sequence[Sequence[Row]]) -> Iterator[tuple[int, dict[str, Answer]]]:
        """Yield each state's number and the answer of each of its kinds, as soon as it has all.

        Rows of one size are measured together.
        """
        answers: list[dict[str, Answer]] = [{} for _ in states]
        by_size: dict[Size, list[tuple[int, Row]]] = {}
        for number, rows in enumerate(states):
            if not rows:
                yield number, {}
            for row in rows:
                by_size.setdefault(row.size, []).append((number, row))
        batch = self.rows * batch_parts(self.weights.mesh)
        for size, alike in sorted(by_size.items()):
            for start in range(0, len(alike), batch):
                part = alike[start : start + batch]
                found = self._run([row for _, row in part], size, batch)
                for (number, row), answer in zip(part, found, strict=True):
                    answers[number][row.kind] = answer
                    if len(answers[number]) == len(states[number]):
                        yield number, answers[number]

    def _run(self, rows: Sequence[Row], size: Size, batch: int) -> list[Answer]:
        mesh = self.weights.mesh
        arrays = [_arrays(row, size) for row in rows]
        arrays += [_arrays(None, size)] * (batch - len(rows))
        asked = Asked(**{name: np.stack([each[name] for each in arrays]) for name in arrays[0]})
        with jax.set_mesh(mesh):
            if size not in self._compiled:
                lowered = lower(
                    self.weights.model, mesh, batch, *size, len(GROUPS), self.with_gradient
                )
                options: Any = compiler_options(mesh)
                self._compiled[size] = lowered.compile(compiler_options=options)
            found = jax.device_get(
                self._compiled[size](self._params, jax.device_put(asked, batch_sharding(mesh)))
            )
        return [_answer(found, number, each) for number, each in enumerate(arrays[: len(rows)])]


def _arrays(row: Row | None, size: Size) -> Mapping[str, np.ndarray]:
    """Return the fields of `Asked` for one row, [T] and [Q]; None: a row of padding."""
    tokens = Tokens([], []) if row is None else row.tokens
    ids, branches = np.zeros(size.row, np.int32), np.zeros(size.row, np.int32)
    groups = np.full(size.row, -1, np.int32)
    ids[: len(tokens.ids)], groups[: len(tokens.ids)] = tokens.ids, tokens.groups
    reasoning = groups == REASONING
    at = np.full(size.action, size.row, np.int32)
    # A query predicts the token behind it.
    asked = np.flatnonzero(groups == ACTION) - 1
    at[: len(asked)] = asked
    hidden = NOTHING if row is None else row.hidden
    if hidden == BLOCKED:
        # What is behind the reasoning stays on the trunk, which never sees a branch.
        branches[reasoning] = 1
    return {
        "ids_BT": ids,
        "groups_BT": groups,
        "branches_BT": branches,
        "masked_BT": reasoning if hidden == MASKED else np.zeros(size.row, bool),
        "at_BQ": at,
    }


def _answer(found: Shares, number: int, row: Mapping[str, np.ndarray]) -> Answer:
    at = row["at_BQ"][row["at_BQ"] < len(row["ids_BT"])]

    def own(values: jax.Array) -> np.ndarray:
        return np.asarray(values[number], np.float64)

    gradient, of_input = found.gradient_BLR, found.input_BR
    return Answer(
        nats=float(own(found.nats_BQ).sum()),
        likeliest=tuple(int(id_) for id_ in found.likeliest_BQ[number][: len(at)]),
        attention=own(found.attention_BLR),
        gradient=None if gradient is None else own(gradient),
        input=None if of_input is None else own(of_input),
        uniform=_uniform(row, at),
    )


def _uniform(row: Mapping[str, np.ndarray], at: np.ndarray) -> np.ndarray:
    """Return each group's share of the tokens that queries see, mean over queries: [R]."""
    seen = (row["groups_BT"] >= 0) & (row["branches_BT"] == 0) & ~row["masked_BT"]
    of_groups = (row["groups_BT"][None, :] == np.arange(len(GROUPS))[:, None]) & seen
    counts = of_groups.cumsum(axis=1)[:, at]
    return (counts / counts.sum(axis=0)).mean(axis=1)
