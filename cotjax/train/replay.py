"""`cotjax replay`: rerun a step whose loss was not finite, and print its losses and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cotjax.errors import UsageError
from cotjax.masking import Role
from cotjax.model.config import ModelConfig
from cotjax.model.sharding import batch_parts, make_mesh
from cotjax.train.checkpoint import Checkpoints, damage
from cotjax.train.failed import Examined, by_role, examine, load_failed, objective_of

_SHOWN = 8  # tokens of a row that are listed


def replay(failed: Path, step: int | None, console: Console | None = None) -> Examined:
    """Print the losses and gradients of a failed step's batch under a checkpoint.

    Args:
      failed: the failed step's folder.
      step: the checkpoint; None: the newest undamaged one before the failed step.
      console: where to print.

    Raises:
      UsageError: there is no such checkpoint.
      DataError: the failed step's files, or the checkpoint's, are damaged.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    batch, about = load_failed(failed)
    arm = failed.resolve().parents[1]
    model_file = arm.parents[1] / "model.json"
    model = (
        ModelConfig.from_saved(model_file) if model_file.exists() else ModelConfig(**about["model"])
    )
    step = _nearest(arm / "checkpoints", about["step"]) if step is None else step
    mesh = make_mesh()
    if len(batch["ids"]) % batch_parts(mesh):
        mesh = make_mesh(data=1, fsdp=1, tensor=-1)
    params = Checkpoints(arm / "checkpoints").restore_params(step, model, mesh)
    examined = examine(model, params, batch, mesh, objective_of(about, model, mesh))
    console.print(f"Step {about['step']} failed: {about['error']}", markup=False)
    console.print(
        f"Its batch under checkpoint {step}; {about['step'] - 1 - step} updates are between them",
        markup=False,
    )
    _show_rows(batch, examined.losses_BT, console)
    _show_gradients(examined, console)
    return examined


def _nearest(folder: Path, failed_step: int) -> int:
    for step in reversed(Checkpoints(folder).steps() if folder.is_dir() else []):
        if step < failed_step and damage(folder / str(step), "params") is None:
            return step
    raise UsageError(f"{folder}: no undamaged checkpoint before step {failed_step}")


def _show_rows(batch: dict[str, np.ndarray], losses_BT: np.ndarray, console: Console) -> None:
    wrong_BT = ~np.isfinite(losses_BT)
    roles = [role for role in Role if (batch["roles"][batch["weights"] > 0] == role).any()]
    table = Table(title="loss, nats a supervised token", title_justify="left")
    for column in ("row", "all", *(role.name for role in roles), "not finite"):
        table.add_column(column, justify="right")
    for row, (losses_T, weights_T) in enumerate(zip(losses_BT, batch["weights"], strict=True)):
        means = by_role(losses_T, weights_T, batch["roles"][row])
        mean = f"{losses_T[weights_T > 0].mean():.3f}" if weights_T.any() else "-"
        parts = (f"{means[role.name]:.3f}" if role.name in means else "-" for role in roles)
        table.add_row(str(row), mean, *parts, str(wrong_BT[row].sum()))
    console.print(table)
    for row in np.flatnonzero(wrong_BT.any(-1)).tolist():
        columns = np.flatnonzero(wrong_BT[row]).tolist()
        named = ", ".join(
            f"{column} ({Role(batch['roles'][row, column]).name})" for column in columns[:_SHOWN]
        )
        more = f" and {len(columns) - _SHOWN} more" if len(columns) > _SHOWN else ""
        console.print(f"row {row}: not finite at {named}{more}", markup=False)
    for name, values in batch.items():
        if not np.isfinite(values).all():
            wrong = np.flatnonzero(~np.isfinite(values).all(-1)).tolist()
            console.print(f"the batch's own {name} is not finite in rows {wrong}", markup=False)
    if not wrong_BT.any():
        console.print(
            "every loss is finite under this checkpoint: a later update broke the parameters",
            markup=False,
        )


def _show_gradients(examined: Examined, console: Console) -> None:
    table = Table("parameters", title="norm of the gradient", title_justify="left")
    table.add_column("norm", justify="right")
    for group, norm in examined.gradient_norms.items():
        table.add_row(group, f"{norm:.4g}")
    console.print(table)
    for name in examined.wrong_params:
        console.print(f"parameter {name} is not finite in the checkpoint", markup=False)
