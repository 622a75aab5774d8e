"""The optimizer: Adam with decoupled weight decay, warm-up, a named schedule, and clipping by global norm (all optax).

Parameters narrower than float32 get a float32 master copy in its state (Micikevicius et al., 2018, section 3.1).
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
    """step -> learning rate: linear warm-up over `warmup` steps, then constant, or down to a tenth of the peak at `steps`.

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
    """Gradients -> updates. `clip_norm` 0 turns clipping off; weight decay spares vectors (`is_vector`: norm scales, biases).

    `vector_rate` multiplies the learning rate of vectors. Where queries and keys are normed, attention becomes sharp only as
    the scales of those norms grow, and Adam moves each by about one learning rate a step: a small model from random weights
    waits thousands of steps for heads that look things up, unless its scales move faster.

    `master`: keep a float32 copy of the parameters, see `with_master`.
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
    """The schedule and the optimizer of a config's `train` section, for this model. Raises UsageError as `learning_rate_schedule` does."""
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
    """Whether a parameter is a bias or a norm's scale, by its name: the bias of a projection onto heads has two axes, [heads, size]."""
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
    """The state of `with_master`: the parameters in float32, and the state of the optimizer that moves them."""

    master: optax.Params
    inner: optax.OptState


def needs_master(model: ModelConfig) -> bool:
    """Whether what training changes is narrower than float32. bfloat16 keeps eight bits: an update below 1/512 of a parameter is
    rounded away, so that at a learning rate of 1e-5 hardly any parameter ever moves. LoRA's adapters are float32 by themselves.
    """
    paths = declared(model)
    return any(paths[path].dtype != jnp.float32 for path in trainable_paths(model))


def with_master(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer on a float32 copy of the parameters, kept in its state; so are Adam's moments, and the arithmetic.

    `apply` takes the parameters from the copy. The updates that it returns are the copy's.
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
    """The parameters after these updates: where there is a float32 copy, that copy rounded to their dtype."""
    if isinstance(opt_state, Mastered):
        return jax.tree.map(
            lambda param, master: master.astype(param.dtype), params, opt_state.master
        )
    return optax.apply_updates(params, updates)
