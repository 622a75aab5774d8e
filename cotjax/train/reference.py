"""The reference of a preference run: log-probabilities under the parameters that it starts from.

They are computed once, before the first update, and kept beside the pairs under the hash of the
model. With LoRA the reference is the base with its adapters off; there is no second copy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cotjax.data.held_out import held_out_batches
from cotjax.data.packing import Packing
from cotjax.data.pair_store import PairSource
from cotjax.data.pipeline import Example
from cotjax.errors import UsageError
from cotjax.masking import Dropping
from cotjax.model.config import ModelConfig
from cotjax.model.kernels import kernel_for
from cotjax.model.params import Params, declared, leaf, param_shardings
from cotjax.model.sharding import batch_sharding
from cotjax.objectives.scores import log_probs, reference_of
from cotjax.runtime import distributed
from cotjax.runtime.arrays import global_batch, local_rows

_FIELDS = ("ids", "targets", "weights", "segment_ids", "branches", "positions")


def require_pairs(source: Sequence[Example]) -> PairSource:
    """Return the source of an objective that compares. Raises UsageError unless it holds pairs."""
    if not isinstance(source, PairSource):
        raise UsageError("a preference objective is trained on pairs; see docs/objectives.md")
    return source


def with_reference(
    source: Sequence[Example],
    config: ModelConfig,
    params: Params,
    mesh: Mesh,
    settings: Any,
    say: Callable[[str], None],
) -> PairSource:
    """Return pairs with the log-probabilities of the reference, computed unless they are kept.

    Args:
      params: those that training starts from.
      settings: the config's `train` section.

    Raises:
      UsageError: the source does not hold pairs.
      DataError: a pair is longer than a row, or what is kept is damaged.
    """
    source = require_pairs(source)
    config, params = reference_of(config, params)
    model = model_hash(config, params)
    if not distributed.from_first("reference", lambda: source.has_reference(model)):
        say(f"computing the reference's log-probabilities of {len(source)} pairs")
        found = reference_log_probs(source, config, params, mesh, settings)
        if distributed.first():
            source.keep_reference(model, found)
        distributed.barrier("reference kept")
    return source.with_reference(model)


def reference_log_probs(
    source: Sequence[Example], config: ModelConfig, params: Params, mesh: Mesh, settings: Any
) -> list[np.ndarray]:
    """Return the log-probability of each example's tokens, [T] each; 0 of prompts' tokens.

    Raises DataError when an example is longer than a row.
    """
    sizes = {"row_length": settings.row_length, "batch": settings.batch}
    on_batch = batch_sharding(mesh)
    kernel = kernel_for(config, mesh, settings.attention)
    forward = jax.jit(
        partial(_forward, config, settings.scan_layers, kernel),
        in_shardings=(param_shardings(config, mesh), dict.fromkeys(_FIELDS, on_batch)),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    lengths = np.fromiter((len(example["ids"]) for example in source), np.int32, len(source))
    found = [np.zeros(length, np.float32) for length in lengths]
    rows = _examples_of_rows(lengths, settings.row_length)
    own = local_rows(on_batch, settings.batch)
    for number, made in enumerate(
        held_out_batches(source, dropping=Dropping(fraction=0.0), rows=own, **sizes)
    ):
        batch = global_batch({name: made[name] for name in _FIELDS}, on_batch, settings.batch)
        with jax.set_mesh(mesh):
            log_probs_BT = np.asarray(forward(params, batch))
        for row, examples in enumerate(rows[number * settings.batch :][: settings.batch]):
            start = 0
            for example in examples:
                end = start + lengths[example]
                # A token is predicted one position before its own.
                found[example][1:] = log_probs_BT[row, start : end - 1]
                start = end
    return found


def _examples_of_rows(lengths: np.ndarray, row_length: int) -> list[list[int]]:
    """Return the examples of each row of `held_out_batches`."""
    packing = Packing(lengths, row_length, seed=0)
    return [packing.row(number)[1].tolist() for number in range(packing.rows)]


def _forward(
    config: ModelConfig, scan: bool, kernel: str, params: Params, batch: dict[str, jax.Array]
) -> jax.Array:
    return log_probs(config, params, batch, batch["weights"] > 0, scan=scan, kernel=kernel)


def model_hash(config: ModelConfig, params: Params) -> str:
    """Return a hash of the parameters' values, the same on any mesh.

    Of each parameter two sums of its bits, weighted by place, modulo 2^32.
    """
    sums = jax.device_get(jax.jit(_sums)({".".join(p): leaf(params, p) for p in declared(config)}))
    text = json.dumps({name: [int(one) for one in own] for name, own in sums.items()})
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _sums(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def sums(x: jax.Array) -> jax.Array:
        unsigned = {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        place = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)
        one = bits * (2 * place + 1)
        two = (bits ^ (place * jnp.uint32(0x9E3779B1))) * jnp.uint32(0x85EBCA6B)
        two ^= two >> jnp.uint32(13)
        return jnp.stack([one.sum(dtype=jnp.uint32), two.sum(dtype=jnp.uint32)])

    return jax.tree.map(sums, params)
