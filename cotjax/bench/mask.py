"""How fast the loss mask is: on the host alone, and inside a train step of the demo's model."""

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

HOST_SHAPE = (64, 4096)
STEP_SHAPE = (8, 768)  # the demo's batch
_PACKED = 8  # examples a row


def benchmark(repeats: int = 30) -> dict[str, float]:
    """Print the mask's speed, and return its figures; each is the best of `repeats`.

    They are tokens/s of packed weights in numpy on one core, and of the draw by each unit; milliseconds of the jitted mask
    alone and of the demo model's jitted forward and backward pass with it, and the first's share of the second in per cent.
    """
    packed = _rows(HOST_SHAPE)
    seconds = _best(lambda: _mask(**packed), repeats)
    figures = {"tokens/s": packed["roles"].size / seconds}
    print(
        f"numpy, one core: weights of {HOST_SHAPE[0]} packed rows of {HOST_SHAPE[1]}: {figures['tokens/s'] / 1e6:,.0f}M tokens/s"
    )
    example = packed["roles"][0, : HOST_SHAPE[1] // _PACKED]
    for unit in UNITS:
        drawn = partial(Dropping(fraction=0.3, unit=unit).tokens, example, "example")
        figures[f"{unit} draws/s"] = len(example) / _best(drawn, repeats)
        print(
            f"  drawing by {unit}, an example of {len(example)} at a time: {figures[f'{unit} draws/s'] / 1e6:,.1f}M tokens/s"
        )

    config = ModelConfig.from_hf(BASE_FOLDER)
    params = init_params(config, jax.random.key(0))
    rows = jax.device_put(_rows(STEP_SHAPE))
    ids = jax.random.randint(jax.random.key(1), STEP_SHAPE, 0, config.vocab_size)
    positions = jnp.broadcast_to(jnp.arange(STEP_SHAPE[1]), STEP_SHAPE)
    alone = jax.jit(lambda rows: _mask(**rows))
    step = jax.jit(jax.value_and_grad(partial(_loss, config)))
    figures["mask_ms"] = 1e3 * _best(lambda: alone(rows).block_until_ready(), repeats)
    figures["step_ms"] = 1e3 * _best(
        lambda: jax.block_until_ready(step(params, ids, positions, rows)), min(repeats, 5)
    )
    figures["share_percent"] = 100 * figures["mask_ms"] / figures["step_ms"]
    print(
        f"jitted, {jax.device_count()} {jax.default_backend()} device(s), {STEP_SHAPE[0]} rows of {STEP_SHAPE[1]}: "
        f"the mask alone {figures['mask_ms']:.3f} ms, the demo model's loss and gradient with it {figures['step_ms']:.0f} ms, "
        f"so the mask takes {figures['share_percent']:.2f} % of it"
    )
    return figures


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
    """Packed rows whose examples are half prompt, half response."""
    place = np.arange(shape[1]) % (shape[1] // _PACKED)
    responses = np.where(place < shape[1] // _PACKED // 2, Role.PROMPT, Role.REASONING)
    roles = np.where(place > shape[1] // _PACKED - 8, Role.ACTION, responses)
    segments = np.arange(shape[1]) // (shape[1] // _PACKED) + 1
    rng = np.random.default_rng(0)
    return {
        "roles": np.broadcast_to(roles, shape).astype(np.int8),
        "segment_ids": np.broadcast_to(segments, shape).astype(np.int32),
        "drop_tokens": rng.random(shape) < 0.3,
    }


def _best(run: Callable[[], Any], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
