"""`cotjax bench kernels`: what each form of the sampler's cache computes, against float32.

The functions that the sampler compiles read pieces of prompts of different lengths and decode, over
one cache. A kernel that is wrong differs from float32 by more than the plain form of its dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from cotjax.bench.comparison import print_table, say
from cotjax.bench.models import named_model
from cotjax.errors import InternalError
from cotjax.model import cache, platform
from cotjax.model.cache_layouts import Blocks, Layout, Pairs, Tokens
from cotjax.model.config import ModelConfig
from cotjax.model.fused import fuse, fuses
from cotjax.model.params import Params, init_params
from cotjax.model.ragged import reads_ragged
from cotjax.model.sharding import make_mesh
from cotjax.model.token_kernels import KERNELS

# A kernel may be this many times as far from float32 as XLA's own form in the same dtype.
TOLERANCE = 1.5
_Form = tuple[Params, Layout, tuple[str, ...]]
_LAYERS, _VOCABULARY, _LONGEST, _CAPACITY, _STEPS = 4, 1024, 64, 256, 3
# Tokens that each of eight slots reads in the first pass, and behind them in the second.
_PIECES = ((64, 3, 17, 64, 1, 50, 33, 64), (0, 64, 5, 64, 64, 1, 10, 20))


def check_kernels(model: str, dtype: str, console: Console | None = None) -> dict[str, float]:
    """Print and return how far from float32 each form's hidden states are, a share of their norm.

    A few layers of the model's sizes, with random weights. Forms are "plain" (blocks of keys, XLA)
    and, by token, each of the device's kernels, as their names joined; on a TPU also its own.

    Raises InternalError where a kernel is farther off than TOLERANCE times the plain form.
    """
    console = console or Console(highlight=False)
    sizes = named_model(model, dtype)
    config = replace(sizes, layers=min(_LAYERS, sizes.layers), vocab_size=_VOCABULARY)
    wide = replace(config, param_dtype="float32", compute_dtype="float32")
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = init_params(config, jax.random.key(0), mesh)
        exact = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        with jax.default_matmul_precision("highest"):
            expected = _hidden(wide, exact, Blocks(_CAPACITY // 4), ())
        plain: _Form = (params, Blocks(_CAPACITY // 4), ())
        forms = {"plain": plain}
        own = params
        if fuses(config, mesh):
            own = fuse(config, mesh, jax.tree.map(jnp.copy, params))
        named = platform.forms_here().token_kernels
        if "ragged" in named and reads_ragged(config, 1):
            forms["pairs: ragged"] = (own, Pairs(_CAPACITY // 4), named)
        kernels = tuple(each for each in named if each in KERNELS)
        for first in range(len(kernels) + 1):
            name = "by token: " + (", ".join(kernels[first:]) or "xla")
            forms[name] = (own, Tokens(_CAPACITY // 4), kernels[first:])
        off = {}
        for name, form in forms.items():
            found = _hidden(config, *form)
            off[name] = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    say(console, f"{model}, {config.layers} layers, {dtype}: distance from float32")
    print_table(console, ("form", "distance"), [[name, f"{x:.2e}"] for name, x in off.items()])
    for name, distance in off.items():
        if name != "plain" and not distance <= TOLERANCE * off["plain"]:
            raise InternalError(
                f"{name}: hidden states are {distance:.2e} of their norm from float32, and XLA's "
                f"{off['plain']:.2e}"
            )
    return off


def _hidden(
    config: ModelConfig, params: Params, layout: Layout, kernels: tuple[str, ...]
) -> np.ndarray:
    """Return the hidden states of all passes and steps, by these kernels."""
    with _by(kernels):
        ids = jax.random.randint(jax.random.key(1), (8, _LONGEST), 0, config.vocab_size)
        held = cache.empty(config, 8, _CAPACITY, _LONGEST, layout)
        hidden = jnp.zeros((8, config.width), config.compute_as)
        # Programs are made anew: their kernels are chosen while they are traced.
        read = jax.jit(lambda *arrays: cache.prefill(config, *arrays))
        found = []
        for counts in _PIECES:
            held, hidden = read(params, held, hidden, ids, jnp.array(counts, jnp.int32))
            found.append(hidden)
        step = jax.jit(lambda *arrays: cache.step(config, *arrays))
        for index in range(_STEPS):
            held, hidden = step(params, held, ids[:, index], jnp.int32(index))
            found.append(hidden)
        return np.stack([np.asarray(x, np.float32) for x in found])


@contextmanager
def _by(kernels: tuple[str, ...]) -> Iterator[None]:
    """Let this device's forms have these kernels for a cache by token."""
    here = platform.platform_here()
    name, forms = "gpu" if here in platform.GPUS else here, platform.FORMS
    before = forms.get(name)
    forms[name] = replace(platform.forms_here(), token_kernels=kernels)
    try:
        yield
    finally:
        if before is None:
            del forms[name]
        else:
            forms[name] = before
