"""`cotjax bench mask`: the loss mask's speed on the host, and its share of a train step."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cotjax.assets import BASE_FOLDER
from cotjax.masking import UNITS, Dropping, Role, target_weights, targets, token_sum
from cotjax.model import decoder
from cotjax.model.config import ModelConfig
from cotjax.model.params import init_params
from cotjax.objectives.supervised import masked_cross_entropy
from cotjax.weights.hf_config import config_from_hf

HOST_SHAPE = (64, 4096)
# The demo's batch.
STEP_SHAPE = (8, 768)
# Examples a row.
_PACKED = 8


def benchmark(repeats: int = 30) -> dict[str, float]:
    """Measure the loss mask; prints and returns its figures, each the best of `repeats`.

    Figures are the tokens/s of packed weights in numpy on one core ("tokens/s") and of the draws
    of each unit ("step draws/s"); "mask_ms" of the jitted mask alone, "step_ms" of the demo model's
    loss and gradient with it, and "share_percent", the first over the second.
    """
    figures = _host_figures(repeats) | _device_figures(repeats)
    print(
        f"jitted, {jax.device_count()} {jax.default_backend()} device(s), {STEP_SHAPE[0]} rows of "
        f"{STEP_SHAPE[1]}: the mask alone {figures['mask_ms']:.3f} ms, the demo model's loss and "
        f"gradient with it {figures['step_ms']:.0f} ms, so the mask takes "
        f"{figures['share_percent']:.2f} % of it"
    )
    return figures


def _host_figures(repeats: int) -> dict[str, float]:
    packed = _rows(HOST_SHAPE)
    figures = {"tokens/s": packed["roles"].size / _best(lambda: _mask(**packed), repeats)}
    print(
        f"numpy, one core: weights of {HOST_SHAPE[0]} packed rows of {HOST_SHAPE[1]}: "
        f"{figures['tokens/s'] / 1e6:,.0f}M tokens/s"
    )
    example = packed["roles"][0, : HOST_SHAPE[1] // _PACKED]
    for unit in UNITS:
        draw = partial(Dropping(fraction=0.3, unit=unit).tokens, example, "example")
        rate = len(example) / _best(draw, repeats)
        figures[f"{unit} draws/s"] = rate
        print(
            f"  drawing by {unit}, an example of {len(example)} at a time: "
            f"{rate / 1e6:,.1f}M tokens/s"
        )
    return figures


def _device_figures(repeats: int) -> dict[str, float]:
    config = config_from_hf(BASE_FOLDER)
    params = init_params(config, jax.random.key(0))
    rows = jax.device_put(_rows(STEP_SHAPE))
    ids = jax.random.randint(jax.random.key(1), STEP_SHAPE, 0, config.vocab_size)
    positions = jnp.broadcast_to(jnp.arange(STEP_SHAPE[1]), STEP_SHAPE)
    alone = jax.jit(lambda rows: _mask(**rows))
    step = jax.jit(jax.value_and_grad(partial(_loss, config)))
    mask_s = _best(lambda: alone(rows).block_until_ready(), repeats)
    step_s = _best(
        lambda: jax.block_until_ready(step(params, ids, positions, rows)), min(repeats, 5)
    )
    return {
        "mask_ms": 1e3 * mask_s,
        "step_ms": 1e3 * step_s,
        "share_percent": 100 * mask_s / step_s,
    }


def _mask(roles: Any, drop_tokens: Any, segment_ids: Any) -> Any:
    return target_weights(roles, drop_tokens=drop_tokens, segment_ids=segment_ids)


def _loss(
    config: ModelConfig,
    params: dict,
    ids: jax.Array,
    positions: jax.Array,
    rows: dict[str, jax.Array],
) -> jax.Array:
    hidden = decoder.hidden_states(
        config, params, ids, positions, rows["segment_ids"], jnp.zeros_like(ids), remat="block"
    )
    weights = _mask(**rows)
    losses = masked_cross_entropy(decoder.logits(config, params, hidden), targets(ids), weights > 0)
    total, weight = token_sum(losses, weights)
    return total / weight


def _rows(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return packed rows whose examples are half prompt, half response."""
    length = shape[1] // _PACKED
    positions = np.arange(shape[1]) % length
    responses = np.where(positions < length // 2, Role.PROMPT, Role.REASONING)
    roles = np.where(positions > length - 8, Role.ACTION, responses)
    segments = np.arange(shape[1]) // length + 1
    rng = np.random.default_rng(0)
    return {
        "roles": np.broadcast_to(roles, shape).astype(np.int8),
        "segment_ids": np.broadcast_to(segments, shape).astype(np.int32),
        "drop_tokens": rng.random(shape) < 0.3,
    }


def _best(run: Callable[[], Any], repeats: int) -> float:
    """Return the seconds of the fastest call, after one that compiles."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
