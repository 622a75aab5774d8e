"""Shardings: one table from logical axes to mesh axes, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cotjax.errors import UsageError

MESH_AXES = ("data", "fsdp", "tensor")

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": (),
    "layers": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_size": (),
    "group": (),
    "gate_up": (),
    "feed_forward": ("tensor",),
    "vocab": ("tensor",),
    "norm": (),
    "hidden": (),
    "rank": (),
}
"""Logical axis -> mesh axes (an empty tuple: replicated). Why each is so:

batch         over `data` and `fsdp`: an fsdp group shares weights, but each of its devices works on
              its own examples
length        replicated: packed rows are short compared with the batch, and attention needs all
              earlier tokens
layers        replicated: every device computes every layer
embed         over `fsdp`: every matrix has this axis once, so parameters, gradients and optimizer
              state shrink by its size; a layer's matrix is gathered just before use. Activations
              are not sharded along it
heads         over `tensor`: attention is independent by head, so only the output projection sums
              across devices
kv_heads      over `tensor` too, so that a key head stays with its query heads
head_size     replicated: rotary positions and the norm of queries and keys mix within a head
group         replicated: the query heads of one key head, with its key and value, stay together
gate_up       replicated: gate and up of one column are multiplied with each other
feed_forward  over `tensor`: gate and up are split by column, down by row: one sum a layer
vocab         over `tensor`: it is the largest axis, and a softmax over it needs two small sums
norm          replicated: a few thousand numbers are cheaper to keep than to gather
hidden        replicated: an activation's width, which every projection reads in full
rank          replicated: an adapter's inner width is a few numbers, and its other axes are sharded
              as its weight's are
"""


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Return a mesh of `devices` (None: all) with the axes `data`, `fsdp` and `tensor`.

    -1 takes the devices that are left. Raises UsageError when the sizes do not multiply to the
    number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    for name, size in sizes.items():
        if size < 1 and size != -1:
            raise UsageError(f"mesh: {name} is {size}; give 1 or more, or -1 for what is left")
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UsageError(
            f"mesh: both {free[0]} and {free[1]} are -1; only one axis can take what is left"
        )
    taken = prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = max(1, len(devices) // taken)
    if prod(sizes.values()) != len(devices):
        asked = " x ".join(f"{name} {size}" for name, size in sizes.items())
        raise UsageError(
            f"mesh: {asked} = {prod(sizes.values())} devices, but {len(devices)} are there"
        )
    # Explicit axes, make_mesh's default, turn sharding into a type that every model operation would
    # have to satisfy.
    auto = (AxisType.Auto,) * 3
    if devices[0].platform != "tpu":
        return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=auto, devices=devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes["data"] % slices:
        raise UsageError(
            f"mesh: data is {sizes['data']}; it must be a multiple of the {slices} slices, which "
            "a slow network joins"
        )
    # A mesh axis may be part of a side of the slice, or several sides: any sizes that multiply to
    # it will do.
    if slices == 1:
        placed = mesh_utils.create_device_mesh(
            tuple(sizes.values()), devices, allow_split_physical_axes=True
        )
    else:
        within = (sizes["data"] // slices, sizes["fsdp"], sizes["tensor"])
        placed = mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    return Mesh(placed, MESH_AXES, axis_types=auto)


def spec(
    axes: Sequence[str], rules: Mapping[str, tuple[str, ...]] = RULES, *, name: str = "array"
) -> PartitionSpec:
    """Return the PartitionSpec of an array with these logical axes.

    Raises UsageError, naming the array and the axes, when a logical axis has no rule or two of them
    need the same mesh axis.
    """
    used: dict[str, str] = {}
    parts: list[str | tuple[str, ...] | None] = []
    for axis in axes:
        if axis not in rules:
            raise UsageError(
                f"sharding: {name} has the logical axis {axis!r}, which matches no rule; rules: "
                f"{', '.join(rules)}"
            )
        for mesh_axis in rules[axis]:
            if mesh_axis in used:
                raise UsageError(
                    f"sharding: {name} uses mesh axis {mesh_axis!r} twice, for "
                    f"{used[mesh_axis]!r} and {axis!r}"
                )
            used[mesh_axis] = axis
        parts.append(rules[axis] if len(rules[axis]) > 1 else next(iter(rules[axis]), None))
    return PartitionSpec(*parts)


def sharding(
    mesh: Mesh, shape: Sequence[int], axes: Sequence[str], *, name: str = "array"
) -> NamedSharding:
    """Return the sharding of an array of this shape and these logical axes.

    Raises UsageError, with both numbers, when a size does not divide.
    """
    partition = spec(axes, name=name)
    for size, axis in zip(shape, axes, strict=True):
        parts = prod(mesh.shape[mesh_axis] for mesh_axis in RULES[axis])
        if size % parts:
            over = " x ".join(RULES[axis])
            raise UsageError(
                f"sharding: {name} has {size} along {axis!r}, which {over} = {parts} devices do "
                "not divide"
            )
    return NamedSharding(mesh, partition)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays [B, ...]: rows over data and fsdp, the rest replicated."""
    return NamedSharding(mesh, spec(("batch",)))


def batch_parts(mesh: Mesh) -> int:
    """Return the number of parts of a batch; a global batch is a multiple of it."""
    return int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))


def whole_slots(slots: int, mesh: Mesh) -> int:
    """Return the smallest number of slots, at least `slots`, that divides over the batch's
    devices.
    """
    return -(-slots // batch_parts(mesh)) * batch_parts(mesh)


def on_each_device(kernel: Any, in_axes: tuple[Any, ...], out_axes: Any, *arrays: Any) -> Any:
    """Run a kernel on each device's own part of the arrays: the partitioner cannot see into it.

    The axes are logical ones, of each array and of each result; no sum goes over a sharded one.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return kernel(*arrays)
    placed: Any = jax.tree.map(spec, (in_axes, out_axes), is_leaf=_is_axes)
    return jax.shard_map(kernel, in_specs=placed[0], out_specs=placed[1], check_vma=False)(*arrays)


def _is_axes(x: Any) -> bool:
    return isinstance(x, tuple) and all(isinstance(axis, str) for axis in x)


def constrain(x: jax.Array, axes: Sequence[str]) -> jax.Array:
    """Constrain an activation to the table's sharding, where a mesh is set around the trace.

    Without it the compiler may follow a weight's fsdp axis into the activations and shard the wrong
    axis.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))


def shared_axes(rule: str) -> tuple[str, ...]:
    """Return a rule's mesh axes of more than one device, in the mesh set around the trace."""
    shape = jax.sharding.get_abstract_mesh().shape  # empty where no mesh is set
    return tuple(axis for axis in RULES[rule] if shape.get(axis, 1) > 1)


def lookup(table_VD: jax.Array, ids_BT: jax.Array, dtype: str) -> jax.Array:
    """Return rows [B, T, D] of an embedding, in `dtype`.

    Each device of an fsdp group looks up its columns for the whole group's ids, and they exchange
    the results. That moves far less than the table, and the table's gradient stays sharded.
    """
    columns = shared_axes("embed")
    if not columns:
        return table_VD[ids_BT].astype(dtype)
    shared = shared_axes("batch")

    def on_each_device(columns_VE: jax.Array, ids_BT: jax.Array) -> jax.Array:
        all_ids = jax.lax.all_gather(ids_BT, columns, tiled=True)
        return jax.lax.all_to_all(
            columns_VE[all_ids].astype(dtype), columns, split_axis=0, concat_axis=2, tiled=True
        )

    # Over vocab too, but that the compiler sees to.
    rows, share = PartitionSpec(shared), PartitionSpec(None, columns)
    exchange = jax.shard_map(
        on_each_device,
        in_specs=(share, rows),
        out_specs=rows,
        axis_names=set(shared),
        check_vma=False,
    )
    return exchange(table_VD, ids_BT)
