"""Checks of the config's `train` section, made before any work."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from cotjax.errors import UsageError
from cotjax.model.kernels import KERNELS
from cotjax.model.layers import REMAT
from cotjax.model.sharding import batch_parts
from cotjax.runtime.ranges import check_ranges
from cotjax.train.checkpoint import Keep
from cotjax.train.optim import configured
from cotjax.train.remat import AUTO


def check_counts(settings: Any) -> None:
    """Raise UsageError for a number out of its range, an unknown name, or fields that disagree."""
    check_ranges("train", settings)
    configured(settings)  # raises for an unknown schedule, and a warm-up longer than the run
    if settings.profile_steps and not 1 <= settings.profile_start <= settings.steps:
        raise UsageError(
            f"train.profile_start is {settings.profile_start}; it must be a step, from 1 to "
            f"train.steps ({settings.steps})"
        )
    if settings.remat not in (AUTO, *REMAT):
        raise UsageError(
            f"train.remat is {settings.remat!r}; there are {', '.join((AUTO, *REMAT))}"
        )
    if settings.attention not in ("auto", *KERNELS):
        raise UsageError(
            f"train.attention is {settings.attention!r}; there are auto, {', '.join(KERNELS)}"
        )
    if settings.eval_every and not settings.eval_share:
        raise UsageError(
            f"train.eval_every is {settings.eval_every}, but train.eval_share is 0, which holds "
            "nothing out; set it above 0"
        )
    if settings.eval_share and not settings.eval_every:
        raise UsageError(
            f"train.eval_share is {settings.eval_share}, but train.eval_every is 0, which measures "
            "nothing; set it above 0"
        )
    if settings.keep_best and not settings.eval_every:
        raise UsageError(
            f"train.keep_best is {settings.keep_best}, but train.eval_every is 0: checkpoints are "
            "ranked by their held-out loss; set train.eval_every and train.eval_share, or "
            "train.keep_best to 0"
        )
    Keep(set(), settings.keep_last, settings.keep_every, settings.keep_best)


def check_batch(settings: Any, mesh: Mesh) -> None:
    """Raise UsageError when the batch does not divide over the mesh and its micro-batches."""
    if settings.batch % (batch_parts(mesh) * settings.accumulate):
        parts = f" x {settings.accumulate} parts" if settings.accumulate > 1 else ""
        raise UsageError(
            f"train.batch ({settings.batch}) must be a multiple of the {batch_parts(mesh)} devices "
            f"that share it{parts}"
        )
