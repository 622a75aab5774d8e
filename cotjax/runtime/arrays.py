"""A batch over the devices of all processes, of which each process provides its own rows."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding


def local_rows(sharding: NamedSharding, batch: int) -> list[int]:
    """Return the rows, in order, of an array [batch, ...] that this process's devices hold.

    Processes hold the same rows when their devices differ on another axis than the batch's.
    """
    indices = sharding.addressable_devices_indices_map((batch,)).values()
    return sorted({row for index in indices if index for row in range(*index[0].indices(batch))})


def shared_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Return arrays over all devices of a batch that every process has whole."""
    size = len(next(iter(batch.values())))
    own = local_rows(sharding, size)
    whole = len(own) == size
    rows = batch if whole else {name: array[own] for name, array in batch.items()}
    return global_batch(rows, sharding, size)


def global_batch(
    own: Mapping[str, np.ndarray], sharding: NamedSharding, batch: int
) -> dict[str, jax.Array]:
    """Return arrays [batch, ...] over all devices, from each process's `local_rows`, in order."""
    # On several processes this counts as an implicit transfer, which the training loop refuses.
    with jax.transfer_guard_host_to_device("allow"):
        return {
            name: jax.make_array_from_process_local_data(sharding, rows, (batch, *rows.shape[1:]))
            for name, rows in own.items()
        }
