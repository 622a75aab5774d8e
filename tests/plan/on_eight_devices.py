"""Run by test_collectives.py in a process of its own: programs whose exchange can be worked out by
hand.
"""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from cotjax.model.sharding import make_mesh
from cotjax.plan.collectives import Collective, collectives

MESH = make_mesh(data=2, fsdp=2, tensor=2)


def found(function, *arguments, out):
    """`arguments`: (shape, PartitionSpec)."""

    def place(spec):
        return NamedSharding(MESH, PartitionSpec(*spec))

    abstract = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place(spec)) for shape, spec in arguments
    ]
    hlo = jax.jit(function, out_shardings=place(out)).lower(*abstract).compile().as_text()
    return collectives(hlo, dict(MESH.shape))


def main():
    # Each device lacks the other half of one axis, for one axis after another.
    for axis in MESH.axis_names:
        assert found(lambda x: x + 1, ((8, 64), (axis,)), out=()) == [
            Collective(axis, "all-gather", 1, 8 * 64 * 4)
        ], axis
    both = found(lambda x: x + 1, ((8, 64), (("data", "tensor"),)), out=())
    assert [each.axis for each in both] == ["data, tensor"], both

    # A contraction over a sharded axis is summed over it.
    (summed,) = found(
        lambda x, w: x @ w, ((16, 32), (None, "tensor")), ((32, 8), ("tensor",)), out=()
    )
    assert summed == Collective("tensor", "all-reduce", 1, 16 * 8 * 4), summed

    # In a loop of five turns it is summed five times; each device keeps half of the columns.
    def five(x, w):
        return jax.lax.fori_loop(
            0,
            5,
            lambda _, x: jnp.tanh(
                jax.lax.with_sharding_constraint(x, PartitionSpec(None, "fsdp")) @ w
            ),
            x,
        )

    with jax.set_mesh(MESH):
        (looped,) = [
            each
            for each in found(five, ((16, 32), ()), ((32, 32), ("fsdp",)), out=())
            if each.kind == "all-reduce"
        ]
    assert looped == Collective("fsdp", "all-reduce", 5, 5 * 16 * 16 * 4), looped

    # Nothing to exchange.
    assert found(lambda x: x + 1, ((8, 64), ("data",)), out=("data",)) == []


if __name__ == "__main__":
    main()
