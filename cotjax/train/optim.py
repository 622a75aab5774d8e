"""The optimizer: Adam with decoupled weight decay, warm-up, a named schedule, and clipping by global norm (all optax)."""

from __future__ import annotations

from typing import Any

import jax
import optax

from cotjax.errors import UsageError

SCHEDULES = ("constant", "cosine", "linear")


def learning_rate_schedule(*, peak: float, steps: int, warmup: int, schedule: str) -> optax.Schedule:
    """step -> learning rate: linear warm-up over `warmup` steps, then constant, or down to a tenth of the peak at `steps`.

    Raises:
      UsageError: an unknown schedule, or a warm-up that is not shorter than the run.
    """
    if schedule not in SCHEDULES:
        raise UsageError(f"unknown train.schedule {schedule!r}; there are {', '.join(SCHEDULES)}")
    if not 0 <= warmup < steps:
        raise UsageError(f"train.warmup ({warmup}) must be at least 0 and below train.steps ({steps})")
    rest = steps - warmup
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=0.1),
        "linear": optax.linear_schedule(peak, 0.1 * peak, rest),
    }[schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), after], [warmup])


def make_optimizer(
    schedule: optax.Schedule, *, b1: float, b2: float, weight_decay: float, clip_norm: float, vector_rate: float = 1.0
) -> optax.GradientTransformation:
    """Gradients -> updates. `clip_norm` 0 turns clipping off; weight decay spares vectors (norm scales, biases).

    `vector_rate` multiplies the learning rate of vectors. Where queries and keys are normed, attention becomes sharp only as
    the scales of those norms grow, and Adam moves each by about one learning rate a step: a small model from random weights
    waits thousands of steps for heads that look things up, unless its scales move faster.
    """
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity()
    adam = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=_matrices)
    faster = optax.masked(optax.scale(vector_rate), _vectors) if vector_rate != 1.0 else optax.identity()
    return optax.chain(clip, adam, faster)


def configured(settings: Any) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The schedule and the optimizer of a config's `train` section. Raises UsageError as `learning_rate_schedule` does."""
    schedule = learning_rate_schedule(peak=settings.learning_rate, steps=settings.steps, warmup=settings.warmup, schedule=settings.schedule)
    names = ("b1", "b2", "weight_decay", "clip_norm", "vector_rate")
    return schedule, make_optimizer(schedule, **{name: settings[name] for name in names})


def _matrices(params):
    return jax.tree.map(lambda param: param.ndim > 1, params)


def _vectors(params):
    return jax.tree.map(lambda param: param.ndim == 1, params)
