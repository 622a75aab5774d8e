"""Measures what the action of an arm has left to learn, while the arm trains.

Training calls a `Measure` before its first update and at every checkpoint. The measurement is made
on the mesh of training, with its kernel and remat, on micro-batches of its size, so it needs no
more memory than a step, except for a second gradient in place of the optimizer's work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from cotjax.data.information import (
    DROPPED,
    GROUPS,
    REASONED,
    Rows,
    packed,
    packed_without_thoughts,
    sample,
)
from cotjax.data.pipeline import Example
from cotjax.diagnostics.information import LEAST_REMOVED, Information, Nats, write_information
from cotjax.masking import Role
from cotjax.model.config import ModelConfig
from cotjax.model.kernels import kernel_for
from cotjax.model.params import Params, join_params, param_shardings, split_params
from cotjax.model.platform import compiler_options
from cotjax.model.sharding import batch_sharding, whole_slots
from cotjax.objectives.scores import totals_by_role
from cotjax.objectives.supervised import loss_weights, token_losses
from cotjax.runtime import distributed
from cotjax.runtime.arrays import global_batch, local_rows
from cotjax.runtime.progress import Reporter
from cotjax.study.arms import arms_of, dropping_of
from cotjax.train.remat import AUTO
from cotjax.train.run import Run
from cotjax.train.step import BATCH_FIELDS

Batch = dict[str, jax.Array]
# Rows of the sample that the gradient is of. It is computed once a role, so they are few.
_GRADIENT_ROWS = 4
_DIGITS = 6  # significant ones that are kept: beyond them results depend on the mesh


class Programs(NamedTuple):
    """What is compiled for a model on a mesh, when it is first called.

    totals: (params, batch, groups) -> [4, GROUPS] by group: of the loss as the objective weighs it,
      of the loss, of the supervised targets, and of the responses' first action tokens.
    gradient: (params, batch, [roles] coefficients) -> gradient of the objective's loss, each role's
      multiplied by its coefficient.
    products: (gradient g, gradient h) -> (<g, h>, |g|^2).
    """

    totals: Callable[[Params, Batch, jax.Array], jax.Array]
    gradient: Callable[[Params, Batch, jax.Array], dict]
    products: Callable[[dict, dict], tuple[jax.Array, jax.Array]]


@lru_cache(maxsize=4)
def programs(
    model: ModelConfig, mesh: Mesh, normalizer: str, remat: str, scan: bool, kernel: str
) -> Programs:
    """Return the programs that arms of one model, mesh and objective share."""
    kernel = kernel_for(model, mesh, kernel)

    def losses(params: Params, batch: Batch, remat: str) -> tuple[jax.Array, jax.Array]:
        losses_BT = token_losses(model, params, batch, remat=remat, scan=scan, kernel=kernel)
        return losses_BT, loss_weights(normalizer, batch)

    def totals(params: Params, batch: Batch, groups_BT: jax.Array) -> jax.Array:
        losses_BT, weights_BT = losses(params, batch, "none")
        supervised_BT = (batch["weights"] > 0).astype(jnp.float32)
        # An action begins where its target is the first of its role.
        action_BT = batch["roles"] == Role.ACTION
        begins_BT = action_BT & ~jnp.pad(action_BT, ((0, 0), (1, 0)))[:, :-1]
        values = (losses_BT * weights_BT, losses_BT, supervised_BT, supervised_BT * begins_BT)
        return jnp.stack([totals_by_role(value_BT, groups_BT, GROUPS) for value_BT in values])

    def gradient(params: Params, batch: Batch, coefficients: jax.Array) -> dict:
        trained, frozen = split_params(model, params)

        def loss(trained: dict) -> jax.Array:
            losses_BT, weights_BT = losses(join_params(model, trained, frozen), batch, remat)
            return (losses_BT * weights_BT * coefficients[batch["roles"].astype(jnp.int32)]).sum()

        return jax.grad(loss)(trained)

    def products(one: dict, other: dict) -> tuple[jax.Array, jax.Array]:
        return _product(one, other), _product(one, one)

    shardings, rows = param_shardings(model, mesh), batch_sharding(mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    on_batch, of_trained = dict.fromkeys(BATCH_FIELDS, rows), split_params(model, shardings)[0]
    options = compiler_options(mesh)
    return Programs(
        jax.jit(
            totals,
            in_shardings=(shardings, on_batch, rows),
            out_shardings=whole,
            compiler_options=options,
        ),
        jax.jit(
            gradient,
            in_shardings=(shardings, on_batch, whole),
            out_shardings=of_trained,
            compiler_options=options,
        ),
        jax.jit(products, in_shardings=(of_trained, of_trained), out_shardings=whole),
    )


def _product(one: dict, other: dict) -> jax.Array:
    """Return the inner product of two gradients, float32."""
    products = jax.tree.map(
        lambda a, b: jnp.vdot(a.astype(jnp.float32), b.astype(jnp.float32)), one, other
    )
    return jnp.stack(jax.tree.leaves(products)).sum()


class Measure:
    """Measures one arm; `cotjax.train.main.train` calls it with the parameters at checkpoints."""

    def __init__(self, arm: str, twin: str, run: Run, folder: Path, reporter: Reporter):
        self._arm, self._twin, self._run = arm, twin, run
        self._folder, self._reporter = folder, reporter
        self._rows: tuple[Rows, Rows] | None = None

    def __call__(self, step: int, params: Params, mesh: Mesh, source: Sequence[Example]) -> None:
        """Measure the parameters after `step` updates and write their row.

        `source`: the arm's held-out examples where there are any, else those that it trains on.
        """
        begun = time.perf_counter()
        row = self._row(step, params, mesh, source)
        if distributed.first():
            write_information(self._folder, row)
        seconds = time.perf_counter() - begun
        self._reporter.say(f"  step {step}: {_said(row)} ({seconds:.1f} s)")

    def _row(self, step: int, params: Params, mesh: Mesh, source: Sequence[Example]) -> Information:
        settings, dropping = self._run.settings, self._run.dropping
        if self._rows is None:
            examples = sample(source, settings.information_examples, dropping)
            self._rows = (
                packed(examples, dropping, settings.row_length),
                packed_without_thoughts(examples, dropping, settings.row_length),
            )
        measured = _Measured(self._run, params, mesh)
        thought, prompt = self._rows
        totals = measured.totals(thought, dropping.fraction_at(step))
        bare = measured.totals(prompt, 0.0)
        if step == 0 and dropping.drops():
            self._warn(_removed(measured.totals(thought, dropping.largest)))
        weighed, _, supervised, _ = (_by_role(values) for values in totals)
        share, norm = measured.gradients(thought)
        return Information(
            arm=self._arm,
            checkpoint=step,
            action_given_thought=_nats(totals, slice(REASONED, 2 * REASONED)),
            action_given_prompt=_nats(bare, slice(0, 2 * REASONED)),
            loss_share=_shares(weighed, weighed.sum()),
            gradient_share=share,
            gradient_norm=norm,
            removed_share=_rounded(_removed(totals)),
            examples=thought.examples,
            tokens=int(supervised.sum()),
        )

    def _warn(self, removed: float) -> None:
        if removed < LEAST_REMOVED:
            self._reporter.warn(
                f"arm {self._arm!r}: this arm cannot differ from {self._twin}: its masking removes "
                f"{_percent(removed)} of the loss"
            )


class _Measured:
    """The programs, applied to the parameters of one checkpoint."""

    def __init__(self, run: Run, params: Params, mesh: Mesh):
        settings = run.settings
        self._params, self._mesh = params, mesh
        self._size = settings.batch // settings.accumulate
        # Beside a train step's arrays, which "auto" does not count.
        remat = "block" if settings.remat == AUTO else settings.remat
        self._programs = programs(
            run.model, mesh, run.normalizer, remat, settings.scan_layers,
            settings.attention,
        )  # fmt: skip

    def _batches(self, rows: Rows, fraction: float, size: int) -> Iterator[tuple[Batch, jax.Array]]:
        sharding = batch_sharding(self._mesh)
        for batch, groups in rows.batches(size, local_rows(sharding, size), fraction):
            yield (
                global_batch(batch, sharding, size),
                global_batch(groups, sharding, size)["groups"],
            )

    def totals(self, rows: Rows, fraction: float) -> np.ndarray:
        """Return `Programs.totals`, summed over all rows: [4, GROUPS] float64."""
        with jax.set_mesh(self._mesh):
            found = [
                jax.device_get(self._programs.totals(self._params, *each))
                for each in self._batches(rows, fraction, self._size)
            ]
        return np.sum(np.asarray(found, np.float64), axis=0)

    def gradients(self, rows: Rows) -> tuple[dict[str, float], dict[str, float]]:
        """Return each role's share of the gradient of the first rows, and its norm's ratio."""
        rows = rows.first(_GRADIENT_ROWS)
        # The batch's devices divide both numbers.
        size = min(self._size, whole_slots(_GRADIENT_ROWS, self._mesh))
        batches = [batch for batch, _ in self._batches(rows, 0.0, size)]
        there = set(rows.fields["roles"][rows.fields["weights"] > 0].tolist())
        share: dict[Role, float] = {}
        square: dict[Role, float] = {}
        each = jnp.eye(len(Role), dtype=jnp.float32)
        with jax.set_mesh(self._mesh):
            whole = self._gradient(batches, each.sum(0))
            total = float(self._programs.products(whole, whole)[1])
            for role in (role for role in Role if role in there):
                own = self._gradient(batches, each[role])
                share[role], square[role] = map(float, self._programs.products(own, whole))
                del own  # before the next one, so that two gradients are held at most
        if total <= 0:
            return {}, {}
        return (
            {role.name: _rounded(value / total) for role, value in share.items()},
            {role.name: _rounded((value / total) ** 0.5) for role, value in square.items()},
        )

    def _gradient(self, batches: list[Batch], coefficients: jax.Array) -> dict:
        gradient = self._programs.gradient(self._params, batches[0], coefficients)
        for batch in batches[1:]:
            more = self._programs.gradient(self._params, batch, coefficients)
            gradient = jax.tree.map(jnp.add, gradient, more)
        return gradient


def _by_role(values: np.ndarray) -> np.ndarray:
    """Sum values by group over the groups of each role: [GROUPS] -> [roles]."""
    return values.reshape(-1, len(Role)).sum(0)


def _removed(totals: np.ndarray) -> float:
    """Return the share of the loss that is in dropped groups."""
    weighed = totals[0]
    return float(weighed[DROPPED:].sum() / weighed.sum()) if weighed.sum() else 0.0


def _nats(totals: np.ndarray, groups: slice) -> Nats | None:
    """Return the nats of the actions in these groups and in the same ones when dropped."""
    _, losses, tokens, begun = (
        values.reshape(2, DROPPED).sum(0)[groups].reshape(-1, len(Role))[:, Role.ACTION].sum()
        for values in totals
    )
    if not begun:
        return None
    return Nats(token=_rounded(losses / tokens), action=_rounded(losses / begun))


def _shares(values: np.ndarray, total: float) -> dict[str, float]:
    return {role.name: _rounded(values[role] / total) for role in Role if values[role]}


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _said(row: Information) -> str:
    def nats(found: Nats | None) -> str:
        return "-" if found is None else f"{found.action:.3g}"

    share, gradient = (shares.get("ACTION", 0.0) for shares in (row.loss_share, row.gradient_share))
    return (
        f"nats of an action given its thought {nats(row.action_given_thought)}, given the prompt "
        f"{nats(row.action_given_prompt)}; its share of the loss {_percent(share)}, of the "
        f"gradient {_percent(gradient)}; removed {_percent(row.removed_share)}"
    )


def _percent(share: float) -> str:
    """Return a share in percent with two digits, not in powers of ten."""
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def measure_of(
    config: ConfigDict, arm: str, run: Run, folder: Path, reporter: Reporter
) -> Measure | None:
    """Return what measures an arm while it trains; None where the config turns it off."""
    if not config.train.information_examples:
        return None
    return Measure(arm, _twin(config, arm), run, folder, reporter)


def _twin(config: ConfigDict, arm: str) -> str:
    """Name the arm that differs from this one by its intervention alone, which it lacks."""
    arms = arms_of(config)
    for name, other in arms.items():
        mine, theirs = (
            (each.data, each.seed, each.objective, each.start) for each in (arms[arm], other)
        )
        if mine == theirs and not dropping_of(config, name).drops():
            return f"arm {name!r}"
    return "the same arm without it"
