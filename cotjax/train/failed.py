"""A step whose loss is not finite: its batch is kept, to be run through the checkpoint before it.

failed/step-000123/batch-0.npz    rows of process 0, as the train step saw them (step.FIELDS)
failed/step-000123/about.json     step, the checkpoint before it, seed, masking, and the error
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cotjax.errors import DataError
from cotjax.masking import Role
from cotjax.model.config import ModelConfig
from cotjax.model.params import join_params, split_params
from cotjax.model.sharding import batch_sharding
from cotjax.objectives.named import spec_of
from cotjax.objectives.objective import Objective
from cotjax.objectives.supervised import make_objective, token_losses
from cotjax.runtime.files import write_atomic
from cotjax.train.step import FIELDS


def keep_failed(
    folder: Path, step: int, batch: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> Path:
    """Write a failed step's batch (this process's rows) and facts; return its folder."""
    where = folder / f"step-{step:06d}"
    where.mkdir(parents=True, exist_ok=True)
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **batch)
    write_atomic(where / f"batch-{jax.process_index()}.npz", packed.getvalue())
    if jax.process_index() == 0:
        write_atomic(where / "about.json", json.dumps({"step": step, **about}, indent=2) + "\n")
    return where


def load_failed(where: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Return (batch of all processes' rows, facts) of a failed step's folder.

    Raises DataError when it is not such a folder.
    """
    try:
        about = json.loads((where / "about.json").read_text())
        files = [
            where / f"batch-{index}.npz" for index in range(len(list(where.glob("batch-*.npz"))))
        ]
        parts = [dict(np.load(file)) for file in files]
        spec = spec_of(about["objective"]) if "objective" in about else None
        fields = FIELDS["supervised" if spec is None else spec.kind]
        batch = {name: np.concatenate([part[name] for part in parts]) for name in fields}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{where}: not the complete folder of a failed step, as training writes it to "
            f"failed/step-… ({error})"
        ) from None
    return batch, about


@dataclass(frozen=True)
class Examined:
    """The parts of one step over a batch. Losses are in nats.

    losses_BT: loss of each target, times its weight.
    gradient_norms: group of parameters -> norm of the loss's gradient, normalized as in the run.
    wrong_params: names of parameters that are not finite.
    """

    losses_BT: np.ndarray
    gradient_norms: dict[str, float]
    wrong_params: tuple[str, ...]


def objective_of(about: Mapping[str, Any], model: ModelConfig, mesh: Mesh) -> Objective:
    """Return the objective of a failed step, by the facts that were kept with it."""
    how: dict[str, Any] = {"remat": "block", "kernel": "xla"}
    if "objective" in about:
        return spec_of(about["objective"]).make(model, mesh, **how)
    return make_objective(model, mesh, normalizer=about["masking"]["normalizer"], **how)


def examine(
    model: ModelConfig, params: dict, batch: dict[str, np.ndarray], mesh: Mesh, objective: Objective
) -> Examined:
    """Run the loss and its gradients once, forward values kept a token."""
    trained, frozen = split_params(model, params)

    def sums(trained: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        return objective(join_params(model, trained, frozen), batch)["loss"]

    def by_token(params: dict, batch: dict) -> jax.Array:
        return token_losses(model, params, batch, remat="block") * batch["weights"]

    batch = jax.device_put(batch, batch_sharding(mesh))
    with jax.set_mesh(mesh):
        losses_BT = jax.jit(by_token)(params, batch)
        grads, weight = jax.jit(jax.grad(sums, has_aux=True))(trained, batch)
        grads = jax.tree.map(lambda grad: grad / weight, grads)
        squares: dict[str, jax.Array] = {}
        for path, grad in jax.tree.leaves_with_path(grads):
            group = _group([key.key for key in path])
            squares[group] = squares.get(group, 0.0) + jnp.sum(jnp.square(grad.astype(jnp.float32)))
        finite = [
            (".".join(key.key for key in path), jnp.isfinite(leaf).all())
            for path, leaf in jax.tree.leaves_with_path(params)
        ]
    norms = {group: float(square) ** 0.5 for group, square in squares.items()}
    return Examined(
        np.asarray(losses_BT), norms, tuple(name for name, is_finite in finite if not is_finite)
    )


def _group(path: list[str]) -> str:
    """Return the module of a parameter: model.norm, or model.layers.3.self_attn with its parts."""
    return ".".join(path[:-2] if len(path) > 3 else path[:-1])


def by_role(losses_T: np.ndarray, weights_T: np.ndarray, roles_T: np.ndarray) -> dict[str, float]:
    """Return the mean loss of a row's supervised targets by their role, in nats."""
    supervised = weights_T > 0
    return {
        role.name: float(losses_T[chosen].mean())
        for role in Role
        if (chosen := supervised & (roles_T == role)).any()
    }
