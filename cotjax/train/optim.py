"""The optimizer: optax's AdamW with warm-up, a named schedule, and clipping by global norm.

Parameters narrower than float32 get a float32 master copy in its state (Micikevicius et al., 2018,
section 3.1).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cotjax.errors import UsageError
from cotjax.model.config import ModelConfig
from cotjax.model.params import declared, trainable_paths

SCHEDULES = ("constant", "cosine", "linear")


def learning_rate_schedule(
    *, peak: float, steps: int, warmup: int, schedule: str
) -> optax.Schedule:
    """Return step -> learning rate.

    Linear warm-up over `warmup` steps, then constant, or a decay to a tenth of the peak at `steps`.

    Raises:
      UsageError: an unknown schedule, or a warm-up that is not shorter than the run.
    """
    if schedule not in SCHEDULES:
        raise UsageError(f"unknown train.schedule {schedule!r}; there are {', '.join(SCHEDULES)}")
    if not 0 <= warmup < steps:
        raise UsageError(
            f"train.warmup ({warmup}) must be at least 0 and below train.steps ({steps})"
        )
    rest = steps - warmup
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=0.1),
        "linear": optax.linear_schedule(peak, 0.1 * peak, rest),
    }[schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), after], [warmup])


def make_optimizer(
    schedule: optax.Schedule,
    *,
    b1: float,
    b2: float,
    weight_decay: float,
    clip_norm: float,
    vector_rate: float = 1.0,
    master: bool = False,
) -> optax.GradientTransformation:
    """Return AdamW with clipping. Weight decay is not applied to vectors (`is_vector`).

    Args:
      clip_norm: global gradient norm; 0: no clipping.
      vector_rate: factor on the learning rate of vectors. Where queries and keys are normed,
        attention becomes sharp only as the scales of those norms grow, and Adam moves a scale by
        about one learning rate a step. A small model from random weights would need thousands of
        steps to form heads that look up earlier tokens, unless its scales move faster.
      master: keep a float32 copy of the parameters, see `with_master`.
    """
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity()
    adam = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=_matrices)
    faster = (
        optax.masked(optax.scale(vector_rate), _vectors) if vector_rate != 1.0 else optax.identity()
    )
    optimizer = optax.chain(clip, adam, faster)
    return with_master(optimizer) if master else optimizer


def configured(
    settings: Any, model: ModelConfig | None = None
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Return the schedule and the optimizer of a config's `train` section, for this model.

    Raises UsageError as `learning_rate_schedule` does.
    """
    ends = settings.schedule_steps or settings.steps
    schedule = learning_rate_schedule(
        peak=settings.learning_rate, steps=ends, warmup=settings.warmup, schedule=settings.schedule
    )
    names = ("b1", "b2", "weight_decay", "clip_norm", "vector_rate")
    master = model is not None and needs_master(model)
    return schedule, make_optimizer(
        schedule, **{name: settings[name] for name in names}, master=master
    )


# ---- which parameters are vectors


def is_vector(path: tuple[str, ...], ndim: int) -> bool:
    """Return whether a parameter is a bias or a norm's scale.

    The name decides too: the bias of a projection onto heads has two axes, [heads, size].
    """
    return ndim < 2 or path[-1] == "bias"


def _matrices(params):
    return jax.tree.map(lambda vector: not vector, _vectors(params))


def _vectors(params):
    return jax.tree.map_with_path(
        lambda path, param: is_vector(tuple(getattr(key, "key", "") for key in path), param.ndim),
        params,
    )


# ---- the float32 copy


class Mastered(NamedTuple):
    """The state of `with_master`: the parameters in float32, and the inner optimizer's state."""

    master: optax.Params
    inner: optax.OptState


def needs_master(model: ModelConfig) -> bool:
    """Return whether the trained parameters are narrower than float32.

    bfloat16 has eight significant bits: an update below 1/512 of a parameter is rounded away, so
    that at a learning rate of 1e-5 hardly any parameter would move. LoRA's adapters are float32.
    """
    paths = declared(model)
    return any(paths[path].dtype != jnp.float32 for path in trainable_paths(model))


def with_master(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the optimizer working on a float32 copy of the parameters, kept in its state.

    Adam's moments and the arithmetic are float32 too. The updates returned are the copy's; `apply`
    rounds the parameters from the copy.
    """

    def init(params: optax.Params) -> Mastered:
        master = optax.tree.cast(params, jnp.float32)
        return Mastered(master, optimizer.init(master))

    def update(
        grads: optax.Updates, state: Mastered, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Mastered]:
        updates, inner = optimizer.update(
            optax.tree.cast(grads, jnp.float32), state.inner, state.master
        )
        return updates, Mastered(optax.apply_updates(state.master, updates), inner)

    return optax.GradientTransformation(init, update)


def apply(params: optax.Params, updates: optax.Updates, opt_state: optax.OptState) -> optax.Params:
    """Return the updated parameters: a float32 copy, rounded to their dtype, where there is one."""
    if isinstance(opt_state, Mastered):
        return jax.tree.map(
            lambda param, master: master.astype(param.dtype), params, opt_state.master
        )
    return optax.apply_updates(params, updates)
