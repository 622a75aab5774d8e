"""Arrays that one phase of a step does not use, in the host's memory meanwhile (`rl.offload`)."""

from __future__ import annotations

from typing import TypeVar

import jax

_Tree = TypeVar("_Tree")
HOST = "pinned_host"


def to_host(tree: _Tree) -> _Tree:
    """Return the arrays in pinned memory of their devices' host; theirs on the devices are freed.

    Each device's own part stays its host's, so that nothing goes between hosts.
    """
    return _moved(tree, HOST)


def to_devices(tree: _Tree) -> _Tree:
    """Return the arrays of `to_host` on their devices."""
    return _moved(tree, jax.local_devices()[0].default_memory().kind)


def _moved(tree: _Tree, kind: str) -> _Tree:
    places = jax.tree.map(lambda x: x.sharding.with_memory_kind(kind), tree)
    moved = jax.block_until_ready(jax.device_put(tree, places))
    # Not by donation, which jax has within one kind of memory alone.
    for x in jax.tree.leaves(tree):
        if x.sharding.memory_kind != kind:
            x.delete()
    return moved
